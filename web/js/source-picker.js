/** The choice of what goes in: a radio group of icons. */

import { element, icon } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { KINDS } from "./sources/index.js";

/** @type {Record<string, number>} */
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export class SourcePicker {
  #group;
  #onChoose;
  /** @type {string} */
  #chosen;

  /** @param {HTMLElement} group @param {(kind: import("./sources/source.js").Kind) => void} onChoose */
  constructor(group, onChoose) {
    this.#group = group;
    this.#onChoose = onChoose;
    group.addEventListener("keydown", (event) => this.#move(event));
    onLanguage(() => this.#draw());
  }

  /**
   * Arrows only move among the kinds, and Space chooses: a choice may ask for the camera or open a dialogue.
   *
   * @param {KeyboardEvent} event
   */
  #move(event) {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const inputs = [...this.#group.querySelectorAll("input:enabled")];
    const next = inputs.indexOf(event.target) + step;
    inputs.at(next % inputs.length).focus();
  }

  /** Show a kind as chosen. @param {import("./sources/source.js").Kind} kind */
  show(kind) {
    this.#chosen = kind.id;
    this.#draw();
  }

  #draw() {
    const focused = this.#group.contains(document.activeElement);
    this.#group.replaceChildren(...KINDS.map((kind) => this.#choice(kind)));
    if (focused) this.#group.querySelector(":checked").focus();
  }

  /** @param {import("./sources/source.js").Kind} kind */
  #choice(kind) {
    const available = kind.available();
    const name = t(`source.${kind.id}`);
    const input = element("input", {
      type: "radio",
      name: "source",
      value: kind.id,
      checked: kind.id === this.#chosen,
      disabled: !available,
    });
    input.addEventListener("change", () => {
      this.#chosen = kind.id;
      this.#onChoose(kind);
    });
    // Choosing the same again asks again: for another file, or for the camera that was refused.
    input.addEventListener("click", () => kind.id === this.#chosen && kind.asks && this.#onChoose(kind));
    const label = element(
      "label",
      { className: "source", title: available ? name : t("sources.unavailable", { name }) },
      input,
      icon(kind.id),
      element("span", { className: "name", textContent: name }),
    );
    return label;
  }
}
