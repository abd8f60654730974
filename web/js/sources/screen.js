import { playing, videoOf } from "./media.js";

/** @type {import("./source.js").Kind} */
export const screen = {
  id: "screen",
  mode: "image",
  asks: true,
  available: () => "getDisplayMedia" in (navigator.mediaDevices ?? {}),
  open: async ({ ended }) => {
    const stream = await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { ideal: 30 } } });
    return playing(videoOf(stream, ended));
  },
};
