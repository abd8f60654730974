/** The input picture: one source at a time, drawn on a canvas of the server's size, and captured from there. */

import { drawAnimation } from "./sources/animation.js";
import { hasCamera } from "./sources/camera.js";
import { KINDS } from "./sources/index.js";

const JPEG_QUALITY = 0.9;
/** Milliseconds between pictures that are only looked at; the model may need the same processor. */
const PREVIEW_EVERY = 30;

/** What opening a camera or the screen may run into, by the name of the DOMException. */
const PROBLEMS = {
  NotAllowedError: "refused",
  SecurityError: "insecure",
  NotFoundError: "missing",
  OverconstrainedError: "missing",
  NotReadableError: "busy",
};

/** Why a source could not be opened; `reason` is part of a key of the locales. */
export class SourceProblem extends Error {
  /** @param {string} kind @param {string} reason */
  constructor(kind, reason) {
    super(`${kind}: ${reason}`);
    this.kind = kind;
    this.reason = reason;
  }
}

/** Dispatches `change` when a source was opened or closed, `ended` when one ended by itself, and `frame`. */
export class Input extends EventTarget {
  #context;
  #fileChooser;
  /** @type {import("./sources/source.js").Source | null} */
  #source = null;
  /** @type {((frame: {time: number}) => void)[]} */
  #waiting = [];
  #attempt = 0;
  #drawnAt = 0;
  kind = KINDS[0];

  /** @param {HTMLCanvasElement} canvas @param {(accept: string) => Promise<File>} chooseFile */
  constructor(canvas, chooseFile) {
    super();
    this.canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
    this.#fileChooser = chooseFile;
    document.addEventListener("visibilitychange", () => document.hidden && this.#draw(performance.now()));
    requestAnimationFrame((now) => this.#tick(now));
  }

  /** The camera where there is one, else what moves by itself. */
  static async defaultKind() {
    const id = (await hasCamera()) ? "camera" : "animation";
    return KINDS.find((kind) => kind.id === id);
  }

  get open() {
    return this.#source !== null;
  }

  get drawable() {
    return this.#source?.drawable ?? false;
  }

  /** @returns {HTMLElement[]} in the current language */
  tools() {
    return this.#source?.tools?.() ?? [];
  }

  /** @param {number} width @param {number} height of the pictures that the server takes */
  resize(width, height) {
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
  }

  /** Change to another kind of source, without opening it. @param {import("./sources/source.js").Kind} kind */
  choose(kind) {
    this.#attempt++;
    this.#source?.close();
    this.#source = null;
    this.kind = kind;
    this.dispatchEvent(new Event("change"));
  }

  /**
   * Open the chosen kind, with a file if there is one already.
   *
   * @param {File} [file]
   * @returns {Promise<"open" | "cancelled" | "overtaken">} cancelled if the user closed the dialogue, overtaken if
   *   something else was chosen, or the same once more, before there was an answer
   * @throws {SourceProblem}
   */
  async start(file) {
    this.choose(this.kind);
    const attempt = this.#attempt;
    let source;
    try {
      source = await this.kind.open({
        canvas: this.canvas,
        chooseFile: file ? async () => file : this.#fileChooser,
        ended: () => this.#ended(attempt),
        reopen: () => this.dispatchEvent(new Event("reopen")),
      });
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      if (attempt !== this.#attempt) return "overtaken";
      if (this.kind.file && error.name === "AbortError") return "cancelled";
      const reason = this.kind.file ? "unreadable" : (PROBLEMS[error.name] ?? "dark");
      throw new SourceProblem(this.kind.id, reason);
    }
    if (attempt !== this.#attempt) {
      source.close();
      return "overtaken";
    }
    this.#source = source;
    this.dispatchEvent(new Event("change"));
    // Whoever shares another tab is there by now, and a capture may be waiting.
    if (document.hidden) this.#draw(performance.now());
    return "open";
  }

  /** The next picture of the source; in a hidden page, which draws none by itself, the one of this moment. */
  async capture() {
    const { time } = document.hidden && this.#source ? this.#drawNow() : await this.#nextFrame();
    if (this.kind.mode === "video") return { picture: null, time };
    const picture = await new Promise((done) => this.canvas.toBlob(done, "image/jpeg", JPEG_QUALITY));
    return { picture, time };
  }

  #nextFrame() {
    return new Promise((done) => this.#waiting.push(done));
  }

  #drawNow() {
    const time = performance.now();
    this.#source.draw(this.#context, time);
    return { time };
  }

  /** @param {number} now */
  #tick(now) {
    if (this.#waiting.length || now - this.#drawnAt >= PREVIEW_EVERY) {
      this.#drawnAt = now;
      this.#draw(now);
    }
    requestAnimationFrame((next) => this.#tick(next));
  }

  /** @param {number} now */
  #draw(now) {
    if (!this.#source) {
      // Something to look at, never sent: nobody who chose a camera should see a cartoon go out.
      drawAnimation(this.#context, now);
      this.dispatchEvent(new Event("frame"));
      return;
    }
    if (!this.#source.draw(this.#context, now) && !document.hidden) return;
    const time = performance.now();
    for (const done of this.#waiting.splice(0)) done({ time });
    this.dispatchEvent(new Event("frame"));
  }

  /** @param {number} attempt */
  #ended(attempt) {
    if (attempt !== this.#attempt) return;
    this.choose(this.kind);
    this.dispatchEvent(new Event("ended"));
  }
}
