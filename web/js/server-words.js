/**
 * What the server says, which is English, in the language of the page. A locale may have words of its own for each
 * kind of message, and for the sentences that tell one message of a kind from another.
 */

import { said, translated } from "./i18n.js";

const FAILED = "the frame could not be made";

/** What a message is about stands before its first colon, as docs/protocol.md says. */
const ABOUT = new RegExp(`^(${FAILED}|[^\\s:]+): (.+)$`, "s");

/**
 * Words about a frame, or about the address of the connection.
 *
 * @param {string} message
 * @param {Record<string, unknown>} [values] that the page has for the words of a field
 */
export function wordsAbout(message, values) {
  const [, subject, sentence] = ABOUT.exec(message) ?? [];
  if (subject === undefined) return said(message);
  const words = said(sentence);
  if (subject === FAILED) return translated("server.frame", message, { words });
  const name = translated(`parameter.${subject}`, subject);
  const refused = translated("server.field", message, { name, words });
  return translated(`server.field.${subject}`, refused, { words, ...values });
}

/** The last words of a connection. @param {string} message @param {number} code that it was closed with */
export function lastWords(message, code) {
  return translated(`server.closed.${code}`, wordsAbout(message), { words: said(message) });
}
