/** Controls for whatever parameters the server describes; nothing here knows a particular one. */

import { element, toolButton } from "./dom.js";
import { t, translated } from "./i18n.js";

/** A seed of which every JSON parser keeps all digits. */
const MAX_SEED = Number.MAX_SAFE_INTEGER;

/**
 * One property of `/api/settings`.
 *
 * @typedef {object} Property
 * @property {string} id under which the value is sent
 * @property {string} title
 * @property {string} [description]
 * @property {string} type of JSON: string, number, integer, boolean
 * @property {"textarea" | "range" | "seed" | "checkbox" | "select"} [field] that of its type where it is absent
 * @property {any} [default]
 * @property {number} [min]
 * @property {number} [max]
 * @property {number} [step]
 * @property {any[]} [values] of a select
 * @property {boolean} [hide] whether no control is drawn
 * @property {boolean} [disabled]
 */

export class Controls {
  #form;
  #onChange;
  /** @type {Property[]} */
  #properties = [];
  /** Values that were changed, kept while other parameters are shown. @type {Record<string, unknown>} */
  #changed = {};

  /** @param {HTMLElement} form @param {() => void} onChange called after each change */
  constructor(form, onChange) {
    this.#form = form;
    this.#onChange = onChange;
  }

  /** @param {Property[]} properties */
  describe(properties) {
    this.#properties = properties;
    this.draw();
  }

  /** What to send: the default, where the user has not changed it. @returns {Record<string, unknown>} */
  get values() {
    const shown = this.#properties.filter((property) => !property.hide);
    return Object.fromEntries(shown.map((property) => [property.id, this.#value(property)]));
  }

  /** Build the controls, in the current language. */
  draw() {
    const shown = this.#properties.filter((property) => !property.hide);
    const reset = element("button", {
      type: "button",
      className: "secondary",
      textContent: t("controls.reset"),
      onclick: () => this.#reset(),
    });
    this.#form.replaceChildren(...shown.map((property) => this.#control(property)), reset);
  }

  #reset() {
    this.#changed = {};
    this.draw();
    this.#onChange();
  }

  /** @param {Property} property */
  #value({ id, default: initial }) {
    return id in this.#changed ? this.#changed[id] : initial;
  }

  /** @param {Property} property @param {unknown} value */
  #set({ id }, value) {
    this.#changed[id] = value;
    this.#onChange();
  }

  /** @param {Property} property */
  #control(property) {
    const label = element("label", { htmlFor: `control-${property.id}` }, nameOf(property));
    const head = element("div", { className: "head" }, label);
    if (property.description) head.append(...help(property));
    return element("div", { className: "control" }, head, ...this.#field(property));
  }

  /** @param {Property} property @returns {HTMLElement[]} */
  #field(property) {
    switch (property.field ?? property.type) {
      case "range":
        return this.#range(property);
      case "seed":
        return this.#seed(property);
      case "checkbox":
      case "boolean":
        return [this.#checkbox(property)];
      case "select":
        return [this.#select(property)];
      case "integer":
      case "number":
        return [this.#number(property)];
      default:
        return [this.#text(property)];
    }
  }

  /** What every field has. @param {Property} property */
  #common(property) {
    return { id: `control-${property.id}`, name: property.id, disabled: property.disabled ?? false };
  }

  /** A slider, and a number to type. @param {Property} property */
  #range(property) {
    const { min, max, step = property.type === "integer" ? 1 : "any" } = property;
    const value = this.#value(property) ?? min;
    const bounds = { min: String(min), max: String(max), step: String(step) };
    const slider = element("input", { type: "range", ...this.#common(property), ...bounds, value });
    const number = element("input", {
      type: "number",
      ...bounds,
      value,
      disabled: slider.disabled,
      "aria-label": nameOf(property),
    });
    slider.addEventListener("input", () => {
      number.value = slider.value;
      this.#set(property, slider.valueAsNumber);
    });
    // What is typed counts as the nearest value that the slider can have, and becomes it when it is done.
    number.addEventListener("input", () => {
      if (number.value === "") return;
      slider.value = number.value;
      this.#set(property, slider.valueAsNumber);
    });
    number.addEventListener("change", () => (number.value = slider.value));
    return [number, slider];
  }

  /** A number to type. @param {Property} property */
  #number(property) {
    const { min = "", max = "", step = property.type === "integer" ? 1 : "any" } = property;
    const value = () => String(this.#value(property) ?? min);
    const bounds = { min: String(min), max: String(max), step: String(step) };
    const input = element("input", { type: "number", ...this.#common(property), ...bounds, value: value() });
    input.addEventListener("input", () => {
      if (input.validity.valid && input.value !== "") this.#set(property, input.valueAsNumber);
    });
    // What it cannot be gives way to what is in force.
    input.addEventListener("change", () => (input.value = value()));
    return input;
  }

  /** A whole number, and a button for another one. @param {Property} property */
  #seed(property) {
    const { min = 0, max = MAX_SEED } = property;
    const input = this.#number({ ...property, min, max, step: 1 });
    const roll = toolButton("dice", t("controls.roll"), () => {
      // Six digits are enough to choose from, and can be read aloud.
      input.value = String(min + Math.floor(Math.random() * Math.min(1_000_000, max - min + 1)));
      this.#set(property, input.valueAsNumber);
    });
    roll.disabled = input.disabled;
    return [element("div", { className: "seed" }, input, roll)];
  }

  /** @param {Property} property */
  #checkbox(property) {
    const input = element("input", {
      type: "checkbox",
      ...this.#common(property),
      checked: Boolean(this.#value(property)),
    });
    input.addEventListener("change", () => this.#set(property, input.checked));
    return input;
  }

  /** @param {Property} property */
  #select(property) {
    const { values = [] } = property;
    const select = element(
      "select",
      this.#common(property),
      ...values.map((value) => element("option", { textContent: String(value) })),
    );
    select.selectedIndex = Math.max(0, values.indexOf(this.#value(property)));
    select.addEventListener("change", () => this.#set(property, values[select.selectedIndex]));
    return select;
  }

  /** @param {Property} property */
  #text(property) {
    const common = { ...this.#common(property), value: this.#value(property) ?? "" };
    const input =
      property.field === "textarea"
        ? element("textarea", { ...common, rows: 2 })
        : element("input", { ...common, type: "text" });
    input.addEventListener("input", () => this.#set(property, input.value));
    return input;
  }
}

/** @param {Property} property */
function nameOf({ id, title }) {
  return translated(`parameter.${id}`, title ?? id);
}

/** A button and the words it opens. @param {Property} property */
function help(property) {
  const { id, description } = property;
  const words = translated(`parameter.${id}.help`, description);
  const question = t("controls.help", { name: nameOf(property) });
  const popover = element("p", { id: `help-${id}`, className: "help", popover: "auto", textContent: words });
  const button = element("button", {
    type: "button",
    className: "help-button",
    title: question,
    "aria-label": question,
    popoverTargetElement: popover,
  });
  return [button, popover];
}
