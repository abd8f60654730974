import { toolButton } from "../dom.js";
import { t } from "../i18n.js";
import { remember, remembered } from "../memory.js";
import { playing, videoOf } from "./media.js";

const WISHES = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };

/** @type {import("./source.js").Kind} */
export const camera = {
  id: "camera",
  mode: "image",
  asks: true,
  available: () => true, // where there is none, opening it says why
  open: async ({ ended, reopen }) => {
    if (!navigator.mediaDevices) throw new DOMException("no secure context", "SecurityError");
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { ...WISHES, deviceId: { ideal: remembered("camera") ?? undefined } },
    });
    const { deviceId, facingMode } = stream.getVideoTracks()[0].getSettings();
    // People expect to see themselves as in a mirror, and the world as it is.
    let mirrored = facingMode !== "environment";
    const source = await playing(videoOf(stream, ended), () => mirrored);
    const cameras = await listCameras();

    function switchCamera() {
      const next = cameras.findIndex((device) => device.deviceId === deviceId) + 1;
      remember("camera", cameras[next % cameras.length].deviceId);
      reopen();
    }
    function mirror() {
      mirrored = !mirrored;
    }
    return {
      ...source,
      tools: () => [
        toolButton("flip", t("sources.mirror"), mirror),
        ...(cameras.length > 1 ? [toolButton("swap", t("sources.switch"), switchCamera)] : []),
      ],
    };
  },
};

/** Whether there is a camera to ask for. */
export async function hasCamera() {
  return (await listCameras()).length > 0;
}

/** None where the browser does not tell, which need not mean that it gives none. */
async function listCameras() {
  const devices = (await navigator.mediaDevices?.enumerateDevices().catch(() => [])) ?? [];
  return devices.filter(({ kind }) => kind === "videoinput");
}
