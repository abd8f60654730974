/** What frames are made with: as the server describes it, and as the user sets it. */

import { Controls } from "./controls.js";
import { byId } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { PromptBox } from "./prompt-box.js";
import { getSettings } from "./server.js";

const ASK_AGAIN_AFTER = 2000;
/** Of a server that does not say which size of pictures it takes. */
const SIZE = 512;

export class Parameters {
  #controls;
  #prompt;
  #toast;
  /** Which mode they are shown for. @type {"image" | "video" | null} */
  mode = null;
  /** Of the pictures that the server takes. */
  width = SIZE;
  height = SIZE;
  /** Users served at most; 0 for no limit. */
  limit = 0;
  title = "";

  /** @param {import("./notices.js").Toast} toast @param {() => void} onChange called after each change of a value */
  constructor(toast, onChange) {
    this.#toast = toast;
    this.#controls = new Controls(byId("controls"), onChange);
    this.#prompt = new PromptBox(byId("prompt"), byId("chips"), onChange);
    onLanguage(() => this.#controls.draw());
    for (const id of ["controls", "prompt-form"]) {
      byId(id).addEventListener("submit", (event) => event.preventDefault());
    }
  }

  /** What to send with a frame. @returns {Record<string, unknown>} */
  get values() {
    return { ...this.#controls.values, prompt: this.#prompt.value };
  }

  /** Show those of a mode, or of the server's own; tries until it answers. @param {"image" | "video"} [mode] */
  async show(mode) {
    const settings = await this.#ask(mode);
    const { properties } = settings.input_params;
    const { title, input_mode: inputMode } = settings.info.properties;
    this.mode = mode ?? inputMode.default;
    this.width = properties.width?.default ?? SIZE;
    this.height = properties.height?.default ?? SIZE;
    this.limit = settings.max_queue_size;
    // A text, or a property whose default it is: servers differ.
    this.title = typeof title === "string" ? title : title.default;
    this.#controls.describe(Object.values(properties).filter(({ id }) => id !== "prompt"));
    this.#showPrompt(properties.prompt);
  }

  /** @param {import("./controls.js").Property | undefined} property */
  #showPrompt(property) {
    const box = this.#prompt;
    const replaceable = !box.value || box.isExample;
    box.mode = this.mode;
    if (replaceable) box.value = property?.default || box.example;
    byId("prompt-form").hidden = property === undefined;
  }

  /** @param {"image" | "video"} [mode] */
  async #ask(mode) {
    for (;;) {
      try {
        const settings = await getSettings(mode);
        this.#toast.clear();
        return settings;
      } catch (error) {
        console.warn(error);
        this.#toast.show(() => t("connection.none"), Infinity);
        await new Promise((done) => setTimeout(done, ASK_AGAIN_AFTER));
      }
    }
  }
}
