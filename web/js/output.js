/** Paints results on the canvas, from where they can be saved, recorded and shown full screen. */

export class Output {
  #canvas;
  #context;
  #decoding = false;
  /** @type {import("../client/result.js").Result | null} */
  #next = null;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(result: import("../client/result.js").Result) => void} onShown called when a result is painted
   */
  constructor(canvas, onShown) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
    this.onShown = onShown;
  }

  /** Paint a result, unless a newer one comes before it is decoded. @param {import("../client/result.js").Result} result */
  async show(result) {
    this.#next = result;
    if (this.#decoding) return;
    this.#decoding = true;
    while (this.#next) {
      const current = this.#next;
      this.#next = null;
      // One that cannot be painted must not be the last one.
      await this.#paint(current).catch((error) => console.error(error));
    }
    this.#decoding = false;
  }

  /** @param {import("../client/result.js").Result} result */
  async #paint(result) {
    const bitmap = await createImageBitmap(result.picture);
    this.#resize(bitmap.width, bitmap.height);
    this.#context.drawImage(bitmap, 0, 0);
    bitmap.close();
    this.onShown(result);
  }

  /** Something to look at while there is no result. @param {HTMLCanvasElement} canvas */
  imitate(canvas) {
    this.#resize(canvas.width, canvas.height);
    this.#context.drawImage(canvas, 0, 0);
  }

  /** @param {number} width @param {number} height */
  #resize(width, height) {
    // Setting a size clears the canvas, even if it is the same.
    if (this.#canvas.width !== width) this.#canvas.width = width;
    if (this.#canvas.height !== height) this.#canvas.height = height;
  }
}
