/** The prompt: typed, chosen from examples, or taken from what was typed before. */

import { element, icon } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { onLanguage, t } from "./i18n.js";
import { remember, remembered } from "./memory.js";

const MAX_HISTORY = 12;
/** Milliseconds without a key before a prompt in the making is used: each one costs the server an encoding. */
const PAUSE = 250;

export class PromptBox {
  #input;
  #chips;
  #timer = 0;
  /** @type {"image" | "video"} */
  #mode = "image";
  /** @type {string[]} */
  #history = remembered("prompts") ?? [];

  /**
   * @param {HTMLTextAreaElement} input
   * @param {HTMLElement} chips
   * @param {() => void} onChange called when there is another prompt to use
   */
  constructor(input, chips, onChange) {
    this.#input = input;
    this.#chips = chips;
    this.onChange = onChange;
    const typed = (event) => {
      clearTimeout(this.#timer);
      // The letters that an input method makes words of are no prompt yet.
      if (!event.isComposing) this.#timer = setTimeout(() => this.#use(), PAUSE);
    };
    input.addEventListener("input", typed);
    input.addEventListener("compositionend", typed);
    input.addEventListener("change", () => this.#keep());
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#keep();
      this.#use();
    });
    // A press that took the focus from a changed prompt would have the chips drawn anew before it is released,
    // and would be no click.
    chips.addEventListener("mousedown", (event) => event.preventDefault());
    onLanguage(() => this.#draw());
  }

  get value() {
    return this.#input.value.trim();
  }

  set value(prompt) {
    this.#input.value = prompt;
    this.#use();
  }

  /** Examples differ: repainting wants a style, making from nothing a scene. @param {"image" | "video"} mode */
  set mode(mode) {
    this.#mode = mode;
    this.#draw();
  }

  get example() {
    return EXAMPLES[this.#mode][0].prompt;
  }

  /** Whether the prompt is one of the examples, so that it can be changed for another one's. */
  get isExample() {
    return Object.values(EXAMPLES).flat().some(({ prompt }) => prompt === this.value);
  }

  #use() {
    clearTimeout(this.#timer);
    this.onChange();
    this.#mark();
  }

  #keep() {
    if (!this.value || this.isExample) return;
    this.#history = [this.value, ...this.#history.filter((prompt) => prompt !== this.value)].slice(0, MAX_HISTORY);
    remember("prompts", this.#history);
    this.#draw();
  }

  #draw() {
    const chips = [
      ...this.#history.map((prompt) => this.#chip(prompt, prompt, icon("history"))),
      ...EXAMPLES[this.#mode].map(({ id, prompt }) => this.#chip(prompt, t(`example.${id}`))),
    ];
    if (this.#history.length) {
      const forget = element("button", { type: "button", className: "chip", textContent: t("prompt.forget") });
      forget.addEventListener("click", () => {
        this.#history = [];
        remember("prompts", []);
        this.#draw();
        this.#input.focus();
      });
      chips.push(forget);
    }
    this.#chips.replaceChildren(...chips);
    this.#mark();
  }

  /** @param {string} prompt @param {string} name @param {...Node} before */
  #chip(prompt, name, ...before) {
    const words = element("span", { textContent: name });
    const chip = element("button", { type: "button", className: "chip", title: prompt }, ...before, words);
    chip.dataset.prompt = prompt;
    chip.addEventListener("click", () => {
      this.#input.blur(); // what was typed is kept first
      this.value = prompt;
    });
    return chip;
  }

  #mark() {
    for (const chip of this.#chips.querySelectorAll("[data-prompt]")) {
      chip.setAttribute("aria-pressed", String(chip.dataset.prompt === this.value));
    }
  }
}
