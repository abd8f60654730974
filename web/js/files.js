/** Files of the user: chosen in a dialogue, or dropped on the page. */

import { byId } from "./dom.js";

/**
 * @param {string} accept
 * @returns {Promise<File>}
 * @throws {DOMException} AbortError, if the user closes the dialogue
 */
export function chooseFile(accept) {
  const input = /** @type {HTMLInputElement} */ (byId("file"));
  input.accept = accept;
  input.value = "";
  return new Promise((resolve, reject) => {
    input.onchange = () => resolve(input.files[0]);
    input.oncancel = () => reject(new DOMException("no file", "AbortError"));
    input.click();
  });
}

/** @param {(file: File) => void} take called with pictures and videos */
export function onDroppedFile(take) {
  // Words that are dragged into a field are the browser's business.
  const withFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => withFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!withFiles(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file && /^(image|video)\//.test(file.type)) take(file);
  });
}
