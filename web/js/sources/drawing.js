/** A canvas to draw on with pen, finger or mouse. */

import { element, toolButton } from "../dom.js";
import { t } from "../i18n.js";

const COLOURS = {
  black: "#1b1b1f",
  white: "#ffffff",
  red: "#d43d31",
  yellow: "#f2b136",
  green: "#3e8e4f",
  blue: "#2f74c0",
  violet: "#7a4a9e",
  brown: "#8a5a35",
};
const BACKGROUND = "#efe9dc";
const SIZES = { small: 0.012, medium: 0.035, large: 0.09 };
const MAX_UNDO = 20;

/** @type {import("./source.js").Kind} */
export const drawing = {
  id: "drawing",
  mode: "image",
  available: () => true,
  open: async ({ canvas }) => {
    const board = new Board(canvas);
    return {
      drawable: true,
      draw(context) {
        context.drawImage(board.sheet, 0, 0);
        return true;
      },
      tools: () => board.tools(),
      close: () => board.close(),
    };
  },
};

/**
 * A <select> of named values.
 *
 * @template T
 * @param {string} label key of its words
 * @param {Record<string, T>} values by name
 * @param {T} current
 * @param {(value: T) => void} choose
 */
function chooser(label, values, current, choose) {
  const names = Object.keys(values);
  const select = element(
    "select",
    { "aria-label": t(label), title: t(label), onchange: () => choose(values[select.value]) },
    ...names.map((name) => element("option", { value: name, textContent: t(`drawing.${name}`) })),
  );
  select.value = names.find((name) => values[name] === current);
  return select;
}

class Board {
  #canvas;
  #context;
  #colour = COLOURS.black;
  #size = SIZES.medium;
  /** @type {ImageData[]} */
  #undo = [];
  #listening = new AbortController();

  /** @param {HTMLCanvasElement} canvas that the user sees and draws on */
  constructor(canvas) {
    this.#canvas = canvas;
    this.sheet = element("canvas", { width: canvas.width, height: canvas.height });
    this.#context = this.sheet.getContext("2d", { alpha: false, willReadFrequently: true });
    this.#context.lineCap = this.#context.lineJoin = "round";
    this.#begin();
    const { signal } = this.#listening;
    canvas.addEventListener("pointerdown", (event) => this.#down(event), { signal });
    canvas.addEventListener("pointermove", (event) => this.#move(event), { signal });
  }

  close() {
    this.#listening.abort();
  }

  tools() {
    const colours = chooser("drawing.colour", COLOURS, this.#colour, (value) => (this.#colour = value));
    const sizes = chooser("drawing.size", SIZES, this.#size, (value) => (this.#size = value));
    return [
      colours,
      sizes,
      toolButton("undo", t("drawing.undo"), () => this.#takeBack()),
      toolButton("clear", t("drawing.clear"), () => this.#clear()),
    ];
  }

  /** Sky, land and sun to begin with: an empty sheet gives the model nothing to repaint. */
  #begin() {
    const { width, height } = this.sheet;
    this.#fill("#a9cdea", 0, height);
    this.#fill("#6f9a58", 0.66 * height, height);
    this.#context.fillStyle = "#f7d774";
    this.#context.beginPath();
    this.#context.arc(0.74 * width, 0.25 * height, 0.1 * height, 0, 2 * Math.PI);
    this.#context.fill();
  }

  #fill(colour, top, bottom) {
    this.#context.fillStyle = colour;
    this.#context.fillRect(0, top, this.sheet.width, bottom - top);
  }

  #clear() {
    this.#keep();
    this.#fill(BACKGROUND, 0, this.sheet.height);
  }

  #keep() {
    this.#undo.push(this.#context.getImageData(0, 0, this.sheet.width, this.sheet.height));
    if (this.#undo.length > MAX_UNDO) this.#undo.shift();
  }

  #takeBack() {
    const before = this.#undo.pop();
    if (before) this.#context.putImageData(before, 0, 0);
  }

  /** @param {PointerEvent} event */
  #down(event) {
    // Of several fingers the first one draws: a line has one end.
    if (event.button !== 0 || !event.isPrimary) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#keep();
    this.#context.strokeStyle = this.#colour;
    this.#context.lineWidth = this.#size * this.sheet.width;
    this.#context.beginPath();
    this.#lineTo(event);
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (!this.#canvas.hasPointerCapture(event.pointerId)) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) this.#lineTo(each);
  }

  /** @param {PointerEvent} event */
  #lineTo(event) {
    const x = (event.offsetX / this.#canvas.clientWidth) * this.sheet.width;
    const y = (event.offsetY / this.#canvas.clientHeight) * this.sheet.height;
    this.#context.lineTo(x, y);
    this.#context.stroke();
    this.#context.beginPath();
    this.#context.moveTo(x, y);
    // A tap without a movement is a dot; of a line without a length Chromium draws nothing.
    if (event.type === "pointerdown") {
      this.#context.lineTo(x + 0.01, y);
      this.#context.stroke();
    }
  }
}
