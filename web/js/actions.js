/** What can be done with the result: seen alone or full screen, saved, recorded, shown elsewhere. */

import { byId, setIcon } from "./dom.js";
import { t } from "./i18n.js";
import { remember, remembered } from "./memory.js";
import { Recorder, saveSnapshot } from "./saving.js";

const NEEDS_RESULT = ["snapshot", "record", "link"];

/**
 * @param {object} parts
 * @param {HTMLCanvasElement} parts.canvas of the result
 * @param {import("./notices.js").Toast} parts.toast
 * @param {() => string} parts.streamAddress asked for when there was a result
 */
export function initActions({ canvas, toast, streamAddress }) {
  initView();
  initFullscreen();
  initRecording(canvas);
  byId("snapshot").addEventListener("click", () => saveSnapshot(canvas));
  byId("link").addEventListener("click", async () => {
    const address = streamAddress();
    try {
      await navigator.clipboard.writeText(address);
      toast.show(() => t("actions.copied", { address }));
    } catch {
      // There is no clipboard without HTTPS: there is time to copy the address by hand.
      toast.show(() => address, 30_000);
    }
  });
}

/** Call when there is a result to do something with. */
export function enableActions() {
  for (const id of NEEDS_RESULT) {
    /** @type {HTMLButtonElement} */ (byId(id)).disabled = id === "record" && !Recorder.supported;
  }
}

function initView() {
  const stage = byId("stage");
  const button = byId("view");
  const show = (view) => {
    stage.dataset.view = view;
    button.setAttribute("aria-pressed", String(view === "alone"));
    setIcon(button, view === "alone" ? "both" : "result");
  };
  button.addEventListener("click", () => {
    const view = stage.dataset.view === "alone" ? "both" : "alone";
    remember("view", view);
    show(view);
  });
  show(remembered("view") === "alone" ? "alone" : "both");
}

function initFullscreen() {
  const pane = byId("result-pane");
  const leave = () => pane.classList.remove("filling");
  byId("fullscreen").addEventListener("click", () => {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (pane.requestFullscreen) pane.requestFullscreen();
    else pane.classList.add("filling"); // an iPhone lets only videos have the screen
  });
  pane.addEventListener("click", leave);
  document.addEventListener("keydown", (event) => event.key === "Escape" && leave());
}

/** @param {HTMLCanvasElement} canvas */
function initRecording(canvas) {
  const recorder = new Recorder();
  const button = byId("record");
  const badge = byId("recording");
  let timer = 0;

  function showTime() {
    const seconds = Math.floor(recorder.duration);
    const rest = String(seconds % 60).padStart(2, "0");
    badge.textContent = `● ${Math.floor(seconds / 60)}:${rest}`;
  }
  button.addEventListener("click", () => {
    if (recorder.recording) {
      recorder.stop();
      clearInterval(timer);
    } else {
      recorder.start(canvas);
      timer = setInterval(showTime, 500);
    }
    showTime();
    badge.hidden = !recorder.recording;
    button.setAttribute("aria-pressed", String(recorder.recording));
  });
}
