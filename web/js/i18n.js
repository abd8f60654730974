/** The page's words. What stands in index.html names its words by `data-i18n` attributes. */

import { remember, remembered } from "./memory.js";
import en from "./locales/en.js";
import zh from "./locales/zh.js";

/** Where a value stands in words. */
const PLACE = /\{(\w+)\}/g;

const LOCALES = { en, "zh-Hans": zh };
/** @typedef {keyof typeof LOCALES} Language */

/** @type {Language} */
let language = "en";
const listeners = new Set();

/** Take the language chosen before, or the browser's. */
export function initLanguage() {
  const chosen = remembered("language");
  setLanguage(chosen in LOCALES ? chosen : navigator.language.startsWith("zh") ? "zh-Hans" : "en");
}

/** @param {Language} next */
export function setLanguage(next) {
  language = next;
  document.documentElement.lang = next;
  translate(document);
  for (const listener of listeners) listener();
}

/** Change to the other language, and keep it. */
export function switchLanguage() {
  setLanguage(language === "en" ? "zh-Hans" : "en");
  remember("language", language);
}

/** Call whenever the language changes. @param {() => void} listener */
export function onLanguage(listener) {
  listeners.add(listener);
}

/**
 * The words for a key, with `{name}` replaced by values.
 *
 * @param {string} key
 * @param {Record<string, unknown>} [values]
 */
export function t(key, values = {}) {
  return LOCALES[language][key].replace(PLACE, (_, name) => String(values[name]));
}

/**
 * The words for a key that only some have, such as the names of a pipeline's parameters.
 *
 * @param {string} key
 * @param {string} otherwise
 * @param {Record<string, unknown>} [values]
 */
export function translated(key, otherwise, values) {
  return key in LOCALES[language] ? t(key, values) : otherwise;
}

/**
 * The words for a sentence of the server. Its key is the sentence, with `{name}` for what differs each time, which
 * may have words of its own; of several that fit, the first counts. What has none stays as it is.
 *
 * @param {string} sentence
 * @returns {string}
 */
export function said(sentence) {
  for (const [key, words] of Object.entries(LOCALES[language]["server.said"] ?? {})) {
    const found = pattern(key).exec(sentence);
    if (found) return words.replace(PLACE, (_, name) => said(found.groups[name]));
  }
  return sentence;
}

/** @param {string} key */
function pattern(key) {
  const literal = key.replace(/[.*+?^$()|[\]\\]/g, "\\$&");
  return new RegExp(`^${literal.replace(PLACE, "(?<$1>.*)")}$`, "s");
}

/** @param {ParentNode} root */
function translate(root) {
  forEach(root, "data-i18n", (node, words) => (node.textContent = words));
  forEach(root, "data-i18n-placeholder", (node, words) => node.setAttribute("placeholder", words));
  forEach(root, "data-i18n-label", (node, words) => {
    node.setAttribute("aria-label", words);
    if (node.matches("button")) node.setAttribute("title", words);
  });
}

/** @param {ParentNode} root @param {string} attribute @param {(node: Element, words: string) => void} act */
function forEach(root, attribute, act) {
  for (const node of root.querySelectorAll(`[${attribute}]`)) act(node, t(node.getAttribute(attribute)));
}
