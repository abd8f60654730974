/** One Start to Stop: a client of the server, and the words for what becomes of it. */

import { CloseCode, StreamClient } from "../client/index.js";
import { said, t } from "./i18n.js";
import { lastWords, wordsAbout } from "./server-words.js";
import { getStatus } from "./server.js";

const ASK_PROGRESS_EVERY = 1000;
/** The browser's code for a connection that nobody closed. */
const NO_CONNECTION = 1006;

/** The key of the words for an end, by the code the connection was closed with. @type {Map<number, string>} */
const ENDINGS = new Map([
  [CloseCode.FULL, "full"],
  [CloseCode.TIMEOUT, "timeout"],
  [CloseCode.TAKEN_OVER, "taken"],
  [CloseCode.REFUSED, "refused"],
]);

export class Connection {
  #progress = 0;
  #lostBy = NO_CONNECTION;

  /**
   * @param {object} parts
   * @param {import("../client/stream-client.js").Options} parts.options of the client
   * @param {import("./notices.js").NoticeBoard} parts.notice
   * @param {import("./notices.js").Toast} parts.toast
   * @param {(state: import("../client/stream-client.js").State) => void} parts.onState
   * @param {(result: import("../client/result.js").Result) => void} parts.onResult
   * @param {() => void} parts.onSent
   * @param {() => void} parts.again starts anew
   */
  constructor({ options, notice, toast, onState, onResult, onSent, again }) {
    this.client = new StreamClient(options);
    this.notice = notice;
    this.toast = toast;
    this.again = again;
    this.#on("state", (detail) => {
      this.#tell(detail);
      onState(detail.state);
    });
    this.#on("result", onResult);
    this.#on("sent", onSent);
    this.#on("problem", ({ message }) => toast.show(() => wordsAbout(message)));
    this.client.start();
  }

  /** @param {string} type @param {(detail: any) => void} act */
  #on(type, act) {
    this.client.addEventListener(type, (event) => act(/** @type {CustomEvent} */ (event).detail));
  }

  /** @param {{state: string, code: number | null, message: string | null}} detail */
  #tell({ state, code, message }) {
    clearInterval(this.#progress);
    this.toast.clear();
    this.notice.clear();
    if (state === "waiting") this.#tellProgress();
    else if (state === "reconnecting") this.#tellLoss(code, message);
    else if (state === "live") this.#lostBy = NO_CONNECTION;
    else if (state === "stopped" && code !== null) this.#tellEnding(code, message);
  }

  /** @param {number} code @param {string | null} message */
  #tellLoss(code, message) {
    // Of an attempt to connect again that failed, there are no words: those before still hold.
    if (code !== NO_CONNECTION) this.#lostBy = code;
    const why = () => message && lastWords(message, this.#lostBy);
    this.toast.show(() => [t("connection.lost"), why()].filter(Boolean).join(" — "), Infinity);
  }

  #tellProgress() {
    let told = "";
    const tell = () => this.notice.show(() => ({ title: t("connection.loading"), text: said(told), progress: true }));
    const ask = async () => {
      const { progress } = await getStatus();
      // The same words again would be read aloud again.
      if (this.client.state !== "waiting" || progress === told) return;
      told = progress;
      tell();
    };
    // Without an answer the words stay as they are; the connection itself tells when it is lost.
    const askAgain = () => ask().catch((error) => console.warn(error));
    tell();
    askAgain();
    this.#progress = setInterval(askAgain, ASK_PROGRESS_EVERY);
  }

  /** @param {number} code @param {string | null} message */
  #tellEnding(code, message) {
    const ending = ENDINGS.get(code);
    const refusal = () => message && wordsAbout(message, { user: this.client.user, origin: location.origin });
    this.notice.show(() => ({
      title: t(`connection.${ending}`),
      text: ending === "refused" ? refusal() : t(`connection.${ending}.help`),
      actions: [{ label: t("again"), act: this.again }],
    }));
  }
}
