/** Words over a picture: what happened, and what can be done about it. */

import { element } from "./dom.js";
import { onLanguage } from "./i18n.js";

/**
 * @typedef {object} Notice
 * @property {string} title
 * @property {string} [text]
 * @property {number | true} [progress] 0 to 1, or true for "under way"
 * @property {{label: string, act: () => void}[]} [actions]
 */

export class NoticeBoard {
  #board;
  /** @type {(() => Notice) | null} */
  #make = null;

  /** @param {HTMLElement} board */
  constructor(board) {
    this.#board = board;
    onLanguage(() => this.#draw());
  }

  get empty() {
    return this.#make === null;
  }

  /** @param {() => Notice} make called now, and again when the language changes */
  show(make) {
    this.#make = make;
    this.#draw();
  }

  #draw() {
    this.#board.hidden = this.empty;
    if (this.empty) return;
    const { title, text, progress, actions = [] } = this.#make();
    /** @type {HTMLElement[]} */
    const parts = [element("h2", { textContent: title })];
    if (text) parts.push(element("p", { textContent: text }));
    if (progress) {
      const bar = element("progress", { max: 1, "aria-label": title });
      if (progress !== true) bar.value = progress;
      parts.push(bar);
    }
    if (actions.length) {
      const buttons = actions.map(({ label, act }) =>
        element("button", { type: "button", className: "secondary", textContent: label, onclick: act }),
      );
      parts.push(element("div", { className: "tools" }, ...buttons));
    }
    this.#board.replaceChildren(...parts);
  }

  clear() {
    this.#make = null;
    this.#draw();
  }
}

/** One line that goes away by itself. */
export class Toast {
  #line;
  #timer = 0;
  #make = () => "";

  /** @param {HTMLElement} line */
  constructor(line) {
    this.#line = line;
    onLanguage(() => (line.textContent = this.#make()));
  }

  /** @param {() => string} make called now, and again when the language changes @param {number} [lasting] milliseconds */
  show(make, lasting = 5000) {
    clearTimeout(this.#timer);
    this.#make = make;
    const words = make();
    // The same words again, as for every frame with one mistake, would be read aloud again.
    if (this.#line.textContent !== words) this.#line.textContent = words;
    this.#line.hidden = false;
    if (lasting < Infinity) this.#timer = setTimeout(() => this.clear(), lasting);
  }

  clear() {
    clearTimeout(this.#timer);
    this.#line.hidden = true;
  }
}
