/** The page: input and result, the controls between them, and the connection that they share. */

import { enableActions, initActions } from "./actions.js";
import { Connection } from "./connection.js";
import { byId, setIcon } from "./dom.js";
import { chooseFile, onDroppedFile } from "./files.js";
import { Figures } from "./figures.js";
import { initLanguage, onLanguage, switchLanguage, t } from "./i18n.js";
import { Input, SourceProblem } from "./input.js";
import { NoticeBoard, Toast } from "./notices.js";
import { Output } from "./output.js";
import { Parameters } from "./parameters.js";
import { getQueueSize, getStatus } from "./server.js";
import { SourcePicker } from "./source-picker.js";
import { KINDS } from "./sources/index.js";
import { initTheme } from "./theme.js";

const ASK_QUEUE_EVERY = 3000;
const [ANIMATION] = KINDS;

initLanguage();
initTheme(byId("theme"));

/** The stream's address stays the same once there is one, or as long as one likes: `/?user=name`. */
let user = new URLSearchParams(location.search).get("user") ?? undefined;

/** @type {Connection | null} */
let connection = null;
/** Where the results can be watched, once there may be some. @type {string | null} */
let streamAddress = null;
/** Whether the user wants results, although there may be no input yet. */
let wanted = false;

const notice = new NoticeBoard(byId("notice"));
const inputNotice = new NoticeBoard(byId("input-notice"));
const toast = new Toast(byId("toast"));
const figures = new Figures(byId("figures"));
const input = new Input(byId("input"), chooseFile);
const parameters = new Parameters(toast, useParameters);
const picker = new SourcePicker(byId("sources"), (kind) => changeSource(kind));
const output = new Output(byId("result"), (result) => {
  byId("stage").classList.remove("preview");
  enableActions();
  figures.shown(performance.now() - result.frameTime);
});

initActions({
  canvas: byId("result"),
  toast,
  streamAddress: () => streamAddress,
});

// -- parameters ---------------------------------------------------------------------------------

/** In force from the next frame on. */
function useParameters() {
  if (connection) connection.client.parameters = parameters.values;
}

/** @param {"image" | "video"} [mode] */
async function showParameters(mode) {
  await parameters.show(mode);
  const { width, height, title, limit } = parameters;
  figures.limit = limit;
  input.resize(width, height);
  byId("stage").style.setProperty("--ratio", String(width / height));
  byId("title").textContent = document.title = title;
}

// -- input --------------------------------------------------------------------------------------

/** @param {import("./sources/source.js").Kind} kind @param {File} [file] */
async function changeSource(kind, file) {
  const before = input.kind;
  const running = wanted;
  input.choose(kind);
  picker.show(kind);
  const outcome = await openSource(file);
  // A question that was left open may be answered when something else is long chosen.
  if (outcome === "overtaken") return;
  if (outcome === "cancelled") {
    // What was there before comes back, unless that would ask again.
    await changeSource(before.asks ? ANIMATION : before);
    return;
  }
  if (kind.mode !== parameters.mode) {
    stop();
    // Before the server answers, a kind of the other mode may be chosen.
    while (input.kind.mode !== parameters.mode) await showParameters(input.kind.mode);
  }
  if (running && !connection && input.open) await start();
}

/** @param {File} [file] @returns {Promise<"open" | "cancelled" | "overtaken" | "failed">} */
async function openSource(file) {
  inputNotice.clear();
  try {
    return await input.start(file);
  } catch (error) {
    if (!(error instanceof SourceProblem)) throw error;
    inputNotice.show(() => ({
      title: t(`problem.${error.reason}`),
      text: t(`problem.${error.reason}.help`),
      actions: [
        { label: t("again"), act: () => changeSource(input.kind) },
        { label: t("sources.animation"), act: () => changeSource(ANIMATION) },
      ],
    }));
    showTools();
    return "failed";
  }
}

input.addEventListener("change", showTools);
input.addEventListener("reopen", () => changeSource(input.kind));
// A camera that was unplugged is asked for again: it may be back, and if not, that is told.
input.addEventListener("ended", () => changeSource(input.kind.id === "camera" ? input.kind : ANIMATION));
input.addEventListener("frame", () => {
  if (byId("stage").classList.contains("preview")) output.imitate(input.canvas);
});
onLanguage(showTools);

function showTools() {
  byId("source-tools").replaceChildren(...input.tools());
  byId("input-pane").classList.toggle("drawable", input.drawable);
  const stage = byId("stage");
  stage.dataset.source = input.kind.id;
  stage.dataset.open = String(input.open);
  byId("input-ready").hidden = input.open || input.kind.id !== "camera" || !inputNotice.empty;
}

onDroppedFile((file) => {
  const id = file.type.startsWith("video/") ? "video" : "picture";
  changeSource(KINDS.find((kind) => kind.id === id), file);
});

// -- connection ---------------------------------------------------------------------------------

async function start() {
  if (connection) return;
  wanted = true;
  if (!input.open && (await openSource()) !== "open") return;
  if (parameters.mode !== input.kind.mode) await showParameters(input.kind.mode);
  if (connection) return;
  connection = new Connection({
    options: {
      user,
      mode: input.kind.mode,
      parameters: parameters.values,
      capture: () => input.capture(),
    },
    notice,
    toast,
    onState: showState,
    onResult: (result) => output.show(result),
    onSent: () => figures.sent(),
    again: start,
  });
  showState(connection.client.state);
}

function stop() {
  connection?.client.stop();
}

/** Stop for good, as far as the user knows: a camera that stays on would be a surprise, and Start opens it again. */
function stopAndLetGo() {
  stop();
  if (input.kind.id === "camera") input.choose(input.kind);
}

/** @param {import("../client/stream-client.js").State} state */
function showState(state) {
  const running = state !== "stopped";
  if (!running) {
    connection = null;
    wanted = false;
  }
  byId("stage").dataset.state = state;
  const idle = byId("idle");
  const pressed = idle.contains(document.activeElement);
  idle.hidden = running || !notice.empty;
  // A button that goes would leave a keyboard nowhere.
  if (pressed && idle.hidden) byId("start").focus({ preventScroll: true });
  const button = byId("start");
  setIcon(button, running ? "stop" : "start");
  const words = button.querySelector("span");
  words.dataset.i18n = running ? "stop" : "start";
  words.textContent = t(words.dataset.i18n);
  showQueue();
  if (state !== "live") return;
  // Not before: proxies place users by their ids, and whom a full server refused may find room under another one.
  ({ user, streamAddress } = connection.client);
  showModel();
}

byId("start").addEventListener("click", () => (connection ? stopAndLetGo() : start()));
byId("idle-start").addEventListener("click", start);
byId("language").addEventListener("click", switchLanguage);

/** The button names the language that it changes to, in that language. */
function showOtherLanguage() {
  const chinese = document.documentElement.lang !== "en";
  const other = byId("language");
  other.textContent = chinese ? "English" : "中文";
  other.lang = chinese ? "en" : "zh-Hans";
}

onLanguage(showOtherLanguage);
showOtherLanguage();

// -- what goes on by itself ---------------------------------------------------------------------

async function showQueue() {
  figures.queue = await getQueueSize().catch(() => null);
}

async function showModel() {
  const { engine } = await getStatus().catch(() => ({ engine: {} }));
  const accelerated = engine.acceleration !== "none" && engine.acceleration;
  byId("model").textContent = [engine.model, engine.device, accelerated].filter(Boolean).join(" · ");
}

setInterval(() => document.hidden || showQueue(), ASK_QUEUE_EVERY);
showQueue();

byId("stage").classList.add("preview");
await showParameters();
showModel();
const first = parameters.mode === "video" ? KINDS.at(-1) : await Input.defaultKind();
input.choose(first);
picker.show(first);
for (const id of ["start", "idle-start"]) byId(id).disabled = false;
// A camera is asked for when the user starts; until then the result shows what is to come.
if (!first.asks) await openSource();
