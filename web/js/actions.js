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
 * @param {() => string | null} parts.streamAddress
 */
export function initActions({ canvas, toast, streamAddress }) {
  initView();
  initFullscreen();
  initRecording(canvas);
  byId("snapshot").addEventListener("click", () => saveSnapshot(canvas));
  byId("link").addEventListener("click", async () => {
    const address = streamAddress();
    if (address === null) return;
    try {
      await navigator.clipboard.writeText(address);
      toast.show(() => t("actions.copied", { address }));
    } catch {
      // There is no clipboard without HTTPS: the address can be copied by hand.
      toast.show(() => address, { stay: true });
    }
  });
}

/** Whether there is a result to do something with. @param {boolean} present */
export function enableActions(present) {
  for (const id of NEEDS_RESULT) disable(id, !present);
  if (!Recorder.supported) disable("record", true);
}

/** @param {string} id @param {boolean} disabled */
function disable(id, disabled) {
  /** @type {HTMLButtonElement} */ (byId(id)).disabled = disabled;
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
