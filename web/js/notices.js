/** Words over a picture: what happened, and what can be done about it. */

import { element } from "./dom.js";

/**
 * @typedef {object} Notice
 * @property {string} title
 * @property {string} [text]
 * @property {number | true} [progress] 0 to 1, or true for "under way"
 * @property {{label: string, act: () => void}[]} [actions]
 */

export class NoticeBoard {
  #board;

  /** @param {HTMLElement} board */
  constructor(board) {
    this.#board = board;
  }

  /** @param {Notice} notice */
  show({ title, text, progress, actions = [] }) {
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
    this.#board.hidden = false;
  }

  clear() {
    this.#board.hidden = true;
    this.#board.replaceChildren();
  }
}

/** One line that goes away by itself, unless it is to stay. */
export class Toast {
  #line;
  #timer = 0;

  /** @param {HTMLElement} line */
  constructor(line) {
    this.#line = line;
  }

  /** @param {string} text @param {{stay?: boolean}} [options] */
  show(text, { stay = false } = {}) {
    clearTimeout(this.#timer);
    this.#line.textContent = text;
    this.#line.hidden = false;
    if (!stay) this.#timer = setTimeout(() => this.clear(), 5000);
  }

  clear() {
    clearTimeout(this.#timer);
    this.#line.hidden = true;
  }
}
