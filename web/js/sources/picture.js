import { toolButton } from "../dom.js";
import { t } from "../i18n.js";
import { drawCover } from "./cover.js";

/** @type {import("./source.js").Kind} */
export const picture = {
  id: "picture",
  mode: "image",
  asks: true,
  file: true,
  available: () => true,
  open: async ({ chooseFile, reopen }) => {
    const bitmap = await createImageBitmap(await chooseFile("image/*"));
    return {
      draw(context) {
        drawCover(context, bitmap, bitmap.width, bitmap.height);
        return true;
      },
      tools: () => [toolButton("open", t("sources.other"), reopen)],
      close: () => bitmap.close(),
    };
  },
};
