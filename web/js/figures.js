/** Live figures: how much goes in, how much comes out, and how old it is when it is seen. */

import { element } from "./dom.js";
import { onLanguage, t } from "./i18n.js";

const WINDOW = 2000;
const NAMES = ["in", "out", "age", "queue"];

/** Events of the last two seconds, each with a value. */
class Recent {
  /** @type {{at: number, value: number}[]} */
  #events = [];

  /** @param {number} [value] */
  add(value = 0) {
    this.#events.push({ at: performance.now(), value });
  }

  #forget() {
    const since = performance.now() - WINDOW;
    while (this.#events.length && this.#events[0].at < since) this.#events.shift();
  }

  /** Per second, between the first event and the last; null for none. */
  get rate() {
    this.#forget();
    const [first, last] = [this.#events.at(0), this.#events.at(-1)];
    if (first === undefined || first === last) return null;
    return ((this.#events.length - 1) * 1000) / (last.at - first.at);
  }

  get median() {
    this.#forget();
    if (!this.#events.length) return null;
    const values = this.#events.map((event) => event.value).sort((a, b) => a - b);
    return values[values.length >> 1];
  }
}

export class Figures {
  #sent = new Recent();
  #shown = new Recent();
  /** @type {number | null} */
  #queue = null;
  #limit = 0;
  /** @type {Record<string, {term: HTMLElement, value: HTMLElement}>} */
  #cells;

  /** @param {HTMLElement} list a <dl> */
  constructor(list) {
    this.#cells = Object.fromEntries(
      NAMES.map((name) => [name, { term: element("dt"), value: element("dd", { id: `figure-${name}` }) }]),
    );
    for (const { term, value } of Object.values(this.#cells)) list.append(element("div", {}, term, value));
    onLanguage(() => this.#translate());
    this.#translate();
    setInterval(() => this.#show(), 250);
  }

  sent() {
    this.#sent.add();
  }

  /** @param {number} age milliseconds from the capture of a frame to its result on the screen */
  shown(age) {
    this.#shown.add(age);
  }

  /** @param {number | null} users being served; null when it is not known */
  set queue(users) {
    this.#queue = users;
  }

  /** @param {number} limit users served at most; 0 for no limit */
  set limit(limit) {
    this.#limit = limit;
  }

  #translate() {
    for (const [name, { term }] of Object.entries(this.#cells)) {
      term.textContent = t(`figures.${name}`);
      term.parentElement.title = t(`figures.${name}.help`);
    }
    this.#show();
  }

  #show() {
    this.#set("in", this.#sent.rate, "figures.fps");
    this.#set("out", this.#shown.rate, "figures.fps");
    this.#set("age", this.#shown.median, "figures.ms");
    this.#set("queue", this.#queue, this.#limit ? "figures.limited" : "figures.count");
  }

  /** @param {string} name @param {number | null} value @param {string} unit */
  #set(name, value, unit) {
    const text = value === null ? "–" : t(unit, { value: Math.round(value), limit: this.#limit });
    const cell = this.#cells[name].value;
    if (cell.textContent !== text) cell.textContent = text;
  }
}
