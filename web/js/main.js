/** The page: input and result, the controls between them, and the connection that they share. */

import { enableActions, initActions } from "./actions.js";
import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { byId, setIcon } from "./dom.js";
import { chooseFile, onDroppedFile } from "./files.js";
import { Figures } from "./figures.js";
import { initLanguage, onLanguage, switchLanguage, t } from "./i18n.js";
import { Input, SourceProblem } from "./input.js";
import { NoticeBoard, Toast } from "./notices.js";
import { Output } from "./output.js";
import { PromptBox } from "./prompt-box.js";
import { getQueueSize, getSettings, getStatus } from "./server.js";
import { SourcePicker } from "./source-picker.js";
import { KINDS } from "./sources/index.js";
import { initTheme } from "./theme.js";

const ASK_QUEUE_EVERY = 3000;
const ASK_SETTINGS_AGAIN = 2000;
const [ANIMATION] = KINDS;

initLanguage();
initTheme(byId("theme"));

/** The stream's address stays the same as long as the page, or as long as one likes: `/?user=name`. */
let user = new URLSearchParams(location.search).get("user") ?? undefined;

/** @type {Connection | null} */
let connection = null;
/** Whether the user wants results, although there may be no input yet. */
let wanted = false;
/** Which mode the controls are shown for. @type {"image" | "video" | null} */
let shownMode = null;

const notice = new NoticeBoard(byId("notice"));
const inputNotice = new NoticeBoard(byId("input-notice"));
const toast = new Toast(byId("toast"));
const figures = new Figures(byId("figures"));
const input = new Input(byId("input"), chooseFile);
const controls = new Controls(byId("controls"), useParameters);
const prompt = new PromptBox(byId("prompt"), byId("chips"), useParameters);
const picker = new SourcePicker(byId("sources"), (kind) => changeSource(kind));
const output = new Output(byId("result"), (result) => {
  byId("stage").classList.remove("preview");
  enableActions(true);
  figures.shown(performance.now() - result.frameTime);
});

initActions({
  canvas: byId("result"),
  toast,
  streamAddress: () => connection?.client.streamAddress ?? null,
});

// -- parameters ---------------------------------------------------------------------------------

/** All parameters, as they are now, from the next frame on. */
function useParameters() {
  if (connection) connection.client.parameters = { ...controls.values, prompt: prompt.value };
}

/** Show the parameters of a mode; tries until the server answers. @param {"image" | "video"} [mode] */
async function showParameters(mode) {
  let settings;
  try {
    settings = await getSettings(mode);
  } catch (error) {
    console.warn(error);
    toast.show(() => t("connection.none"), { stay: true });
    await new Promise((done) => setTimeout(done, ASK_SETTINGS_AGAIN));
    return showParameters(mode);
  }
  toast.clear();
  const { properties } = settings.input_params;
  const { title, input_mode: inputMode } = settings.info.properties;
  figures.limit = settings.max_queue_size;
  shownMode = mode ?? inputMode.default;
  const [width, height] = [properties.width?.default ?? 512, properties.height?.default ?? 512];
  input.resize(width, height);
  byId("stage").style.setProperty("--ratio", String(width / height));
  byId("title").textContent = document.title = titleOf(title);
  controls.describe(Object.values(properties).filter(({ id }) => id !== "prompt"));
  const wasExample = prompt.isExample;
  prompt.mode = shownMode;
  if (!prompt.value || wasExample) prompt.value = properties.prompt?.default || prompt.example;
  byId("prompt-form").hidden = !("prompt" in properties);
  return undefined;
}

/** The title is a text, or a property whose default it is. @param {string | {default: string}} title */
function titleOf(title) {
  return typeof title === "string" ? title : title.default;
}

// -- input --------------------------------------------------------------------------------------

/** @param {import("./sources/source.js").Kind} kind @param {File} [file] */
async function changeSource(kind, file) {
  const before = input.kind;
  const running = wanted;
  input.choose(kind);
  picker.show(kind);
  if (!(await openSource(file)) && input.kind === kind && kind.asks && inputNotice.empty) {
    // The user closed the dialogue: what was there before comes back, unless that would ask again.
    await changeSource(before.asks ? ANIMATION : before);
    return;
  }
  if (kind.mode !== shownMode) {
    stop();
    await showParameters(kind.mode);
  }
  if (running && !connection && input.open) await start();
}

/** @param {File} [file] @returns {Promise<boolean>} whether there is a picture now */
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
    return false;
  }
}

input.addEventListener("change", showTools);
input.addEventListener("reopen", () => changeSource(input.kind));
input.addEventListener("ended", () => changeSource(ANIMATION));
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
  if (!input.open && !(await openSource())) return;
  if (shownMode !== input.kind.mode) await showParameters(input.kind.mode);
  if (connection) return;
  connection = new Connection({
    options: {
      user,
      mode: input.kind.mode,
      parameters: { ...controls.values, prompt: prompt.value },
      capture: () => input.capture(),
    },
    notice,
    toast,
    onState: showState,
    onResult: (result) => output.show(result),
    onSent: () => figures.sent(),
    again: start,
  });
  user = connection.client.user;
  showState(connection.client.state);
}

function stop() {
  connection?.client.stop();
}

/** @param {import("../client/stream-client.js").State} state */
function showState(state) {
  const running = state !== "stopped";
  if (!running) {
    connection = null;
    wanted = false;
  }
  byId("stage").dataset.state = state;
  byId("idle").hidden = running || !notice.empty;
  const button = byId("start");
  setIcon(button, running ? "stop" : "start");
  const words = button.querySelector("span");
  words.dataset.i18n = running ? "stop" : "start";
  words.textContent = t(words.dataset.i18n);
  showQueue();
  if (state === "live") showModel();
}

byId("start").addEventListener("click", () => (connection ? stop() : start()));
byId("idle-start").addEventListener("click", start);
byId("language").addEventListener("click", switchLanguage);
byId("prompt-form").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("submit", (event) => event.preventDefault());

onLanguage(() => {
  controls.draw();
  const chinese = document.documentElement.lang !== "en";
  const other = byId("language");
  other.textContent = chinese ? "English" : "中文";
  other.lang = chinese ? "en" : "zh-Hans";
});

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
const first = shownMode === "video" ? KINDS.at(-1) : await Input.defaultKind();
input.choose(first);
picker.show(first);
// A camera is asked for when the user starts; until then the result shows what is to come.
if (!first.asks) await openSource();
