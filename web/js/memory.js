/** What the page remembers between visits; nothing, where the browser forbids it. */

const PREFIX = "streamdiffusion.";

/** @param {string} key @returns {any} null where nothing is remembered */
export function remembered(key) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + key));
  } catch {
    return null;
  }
}

/** @param {string} key @param {unknown} value */
export function remember(key, value) {
  try {
    localStorage.setItem(PREFIX + key, JSON.stringify(value));
  } catch {
    // Private windows and full disks: the page works without a memory.
  }
}
