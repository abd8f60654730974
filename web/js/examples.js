/**
 * Prompts to begin with, in English as the models read it; the locales have a name for each id. In image mode
 * a style or a mood for what is seen already, in video mode a scene.
 */
export const EXAMPLES = {
  image: [
    { id: "neon", prompt: "neon lights" },
    { id: "sunset", prompt: "at sunset" },
    { id: "comic", prompt: "comic book" },
    { id: "blueprint", prompt: "blueprint" },
    { id: "gold", prompt: "made of gold" },
    { id: "glass", prompt: "stained glass" },
    { id: "winter", prompt: "winter, snow" },
    { id: "pencil", prompt: "pencil sketch" },
    { id: "bricks", prompt: "toy bricks" },
    { id: "ice", prompt: "ice sculpture" },
    { id: "oil", prompt: "oil painting" },
    { id: "watercolor-autumn", prompt: "watercolor, autumn colors" },
  ],
  video: [
    { id: "sea", prompt: "the sea at sunset, clouds" },
    { id: "mountains", prompt: "mountains in winter, snow" },
    { id: "forest", prompt: "a forest in autumn" },
    { id: "desert", prompt: "a desert, bright sun" },
    { id: "city", prompt: "a city at night, full moon" },
    { id: "lake", prompt: "a mountain lake at dawn" },
    { id: "planet", prompt: "a planet and stars" },
    { id: "circle", prompt: "a red circle on a blue background" },
  ],
};
