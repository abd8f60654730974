/** @type {import("./source.js").Kind} No picture goes in: results come from the prompt alone. */
export const prompt = {
  id: "prompt",
  mode: "video",
  available: () => true,
  open: async () => ({ draw: () => true, close() {} }),
};
