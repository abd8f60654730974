import { toolButton } from "../dom.js";
import { t } from "../i18n.js";
import { playing } from "./media.js";

/** @type {import("./source.js").Kind} */
export const video = {
  id: "video",
  mode: "image",
  asks: true,
  file: true,
  available: () => true,
  open: async ({ chooseFile, reopen }) => {
    const player = document.createElement("video");
    player.src = URL.createObjectURL(await chooseFile("video/*"));
    player.loop = true;
    const source = await playing(player);
    return { ...source, tools: () => [toolButton("open", t("sources.other"), reopen)] };
  },
};
