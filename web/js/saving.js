/** Snapshot (PNG) and recording (WebM, or MP4 where the browser has no WebM) of a canvas. */

const RECORDED_RATE = 30;
const BITS_PER_SECOND = 8_000_000;
const TYPES = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];

/** @param {Blob} blob @param {string} extension */
function download(blob, extension) {
  const link = document.createElement("a");
  const time = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
  link.href = URL.createObjectURL(blob);
  link.download = `streamdiffusion-${time}.${extension}`;
  link.click();
  // The browser reads the address after this turn.
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** @param {HTMLCanvasElement} canvas */
export async function saveSnapshot(canvas) {
  download(await new Promise((done) => canvas.toBlob(done, "image/png")), "png");
}

/** Records a canvas until it is stopped, then hands over the file. */
export class Recorder {
  /** @type {MediaRecorder | null} */
  #recorder = null;
  #startedAt = 0;

  /** Whether this browser can record at all. */
  static get supported() {
    return "MediaRecorder" in globalThis && "captureStream" in HTMLCanvasElement.prototype;
  }

  get recording() {
    return this.#recorder !== null;
  }

  /** Seconds. */
  get duration() {
    return this.recording ? (performance.now() - this.#startedAt) / 1000 : 0;
  }

  /** @param {HTMLCanvasElement} canvas */
  start(canvas) {
    const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    const recorder = new MediaRecorder(canvas.captureStream(RECORDED_RATE), {
      mimeType,
      videoBitsPerSecond: BITS_PER_SECOND,
    });
    /** @type {Blob[]} */
    const parts = [];
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.onstop = () => {
      const type = recorder.mimeType.split(";")[0];
      download(new Blob(parts, { type }), type.split("/")[1]);
    };
    recorder.start(1000);
    this.#recorder = recorder;
    this.#startedAt = performance.now();
  }

  stop() {
    if (!this.#recorder) return;
    for (const track of this.#recorder.stream.getTracks()) track.stop();
    if (this.#recorder.state !== "inactive") this.#recorder.stop();
    this.#recorder = null;
  }
}
