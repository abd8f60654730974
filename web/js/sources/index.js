import { animation } from "./animation.js";
import { camera } from "./camera.js";
import { drawing } from "./drawing.js";
import { picture } from "./picture.js";
import { prompt } from "./prompt.js";
import { screen } from "./screen.js";
import { video } from "./video.js";

/** In the order in which they are offered. @type {import("./source.js").Kind[]} */
export const KINDS = [animation, camera, screen, video, picture, drawing, prompt];
