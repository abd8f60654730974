import { FINAL_CODES } from "./close-code.js";
import { decodeResult } from "./result.js";

const FIRST_DELAY = 250;
const LAST_DELAY = 5000;

/**
 * `stopped`: not connected, and not about to be. `connecting`: for the first time. `waiting`: the server is
 * loading its model. `live`: frames go and results come. `reconnecting`: the connection was lost.
 *
 * @typedef {"stopped" | "connecting" | "waiting" | "live" | "reconnecting"} State
 */

/**
 * @typedef {object} Frame
 * @property {Blob | null} picture to send; null in video mode, and where there is none yet
 * @property {number} time when it was taken, in milliseconds of `performance.now()`
 */

/**
 * @typedef {object} Options
 * @property {() => Promise<Frame>} capture called whenever the server has room for a frame; sets the pace by
 *   taking its time. If it rejects, there is no picture yet, and it is called again soon.
 * @property {string | URL} [server] base address of the server, with a slash behind its path; the page's own
 *   by default
 * @property {string} [user] 1 to 128 letters, digits and - . _ ~; random by default
 * @property {"image" | "video"} [mode]
 * @property {"jpeg" | "webp"} [format] of the results
 * @property {number} [quality] of the results, 1 to 100; the server's own by default
 * @property {Record<string, unknown>} [parameters] of the first frame
 */

/**
 * One user's connection, opened again by itself when it is lost.
 *
 * Every frame carries all parameters, so a change is in force from the next frame on, and a connection that
 * is opened again needs nothing else. Dispatches
 * - `state`: `detail` is `{state, code, message}`; code and message say why a connection ended, else null;
 * - `sent`: `detail` is `{frameId}`;
 * - `result`: `detail` is a `Result`;
 * - `problem`: `detail` is `{message}`, words from the server about one frame; the stream goes on. Its last
 *   words before it ends a connection come here too, and a `state` follows them at once. Parameters that JSON
 *   cannot encode are told here as well, and the frame is sent with those of the frame before.
 */
export class StreamClient extends EventTarget {
  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {State} */
  #state = "stopped";
  /** The server's last words, if they may be about the end of the connection. @type {string | null} */
  #message = null;
  #delay = FIRST_DELAY;
  #retry = 0;
  #frameId = 0;
  /** The parameters of the last frame, as they were sent. @type {Record<string, unknown>} */
  #sent = {};
  #options;

  /** @param {Options} options */
  constructor(options) {
    super();
    const { server = document.baseURI, user = newUser(), mode = "image" } = options;
    this.#options = { ...options, server, user, mode };
    /** What the next frame is made with; change it at any time. @type {Record<string, unknown>} */
    this.parameters = { ...options.parameters };
  }

  get state() {
    return this.#state;
  }

  get user() {
    return this.#options.user;
  }

  get mode() {
    return this.#options.mode;
  }

  /** Where the results can also be watched, in an `<img>` or in OBS. */
  get streamAddress() {
    return new URL(`api/stream/${encodeURIComponent(this.user)}`, this.#options.server).href;
  }

  /** Connect, and stay connected until `stop`. Does nothing if it is already so. */
  start() {
    if (this.#state !== "stopped") return;
    this.#delay = FIRST_DELAY;
    this.#message = null;
    this.#connect();
    this.#enter("connecting");
  }

  /** Disconnect. */
  stop() {
    if (this.#state === "stopped") return;
    clearTimeout(this.#retry);
    this.#socket?.close(1000);
    this.#socket = null;
    this.#enter("stopped");
  }

  #connect() {
    const socket = new WebSocket(this.#address());
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    // A socket that was replaced or stopped may still have messages to deliver.
    socket.onmessage = ({ data }) => this.#socket === socket && this.#receive(socket, data);
    socket.onclose = ({ code }) => this.#socket === socket && this.#lost(code);
  }

  #address() {
    const { server, user, mode, format, quality } = this.#options;
    const address = new URL(`api/ws/${encodeURIComponent(user)}`, server);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    address.search = new URLSearchParams({
      mode,
      output: "ws",
      ...(format && { format }),
      ...(quality && { quality: String(quality) }),
    }).toString();
    return address;
  }

  /** @param {WebSocket} socket @param {string | ArrayBuffer} data */
  #receive(socket, data) {
    if (typeof data !== "string") {
      this.#dispatch("result", decodeResult(data));
      return;
    }
    const { status, message = null } = JSON.parse(data);
    if (status === "send_frame") {
      this.#message = null; // it was about a frame, not about the end
      this.#send(socket);
    } else if (status === "connected") {
      this.#delay = FIRST_DELAY;
      this.#enter("live");
    } else if (status === "wait") {
      this.#enter("waiting", null, message);
    } else if (status === "timeout" || status === "error") {
      // Said before the server closes the connection, or about a frame while it lives on.
      this.#message = message;
      if (status === "error" && this.#state === "live") this.#dispatch("problem", { message });
    }
  }

  /** @param {WebSocket} socket */
  async #send(socket) {
    const { picture, time } = await this.#capture();
    if (this.#socket !== socket || socket.readyState !== WebSocket.OPEN) return;
    const frameId = this.#frameId++;
    const parameters = this.#encodable();
    socket.send('{"status": "next_frame"}');
    socket.send(JSON.stringify({ ...parameters, frame_id: frameId, frame_time: time }));
    // A frame without a picture is well understood: the server asks again soon.
    if (this.mode === "image") socket.send(picture ?? new ArrayBuffer(0));
    this.#dispatch("sent", { frameId });
  }

  /** What JSON makes of the parameters; if it refuses them, of those before. */
  #encodable() {
    try {
      this.#sent = JSON.parse(JSON.stringify(this.parameters));
    } catch (error) {
      console.warn(error);
      this.#dispatch("problem", { message: `parameters: ${error.message}` });
    }
    return this.#sent;
  }

  /** @returns {Promise<Frame>} */
  async #capture() {
    try {
      return await this.#options.capture();
    } catch (error) {
      console.warn(error);
      return { picture: null, time: performance.now() };
    }
  }

  /** @param {number} code */
  #lost(code) {
    this.#socket = null;
    if (FINAL_CODES.has(code)) {
      this.#enter("stopped", code, this.#message);
      return;
    }
    // Spread out, so that a server that comes back is not met by everybody at once.
    this.#retry = setTimeout(() => this.#connect(), this.#delay * (0.5 + Math.random()));
    this.#delay = Math.min(2 * this.#delay, LAST_DELAY);
    this.#enter("reconnecting", code, this.#message); // last, so that its listeners may stop
  }

  /** @param {State} state @param {number | null} code @param {string | null} message */
  #enter(state, code = null, message = null) {
    this.#state = state;
    this.#dispatch("state", { state, code, message });
  }

  /** @param {string} type @param {object} detail */
  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** crypto.randomUUID is absent where the page came by plain HTTP. */
function newUser() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
