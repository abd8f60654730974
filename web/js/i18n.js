/** The page's words. What stands in index.html names its words by `data-i18n` attributes. */

import { remember, remembered } from "./memory.js";
import en from "./locales/en.js";
import zh from "./locales/zh.js";

const LOCALES = { en, "zh-Hans": zh };
/** @typedef {keyof typeof LOCALES} Language */

/** @type {Language} */
let language = "en";
const listeners = new Set();

/** Take the language chosen before, or the browser's. */
export function initLanguage() {
  const chosen = remembered("language");
  setLanguage(chosen in LOCALES ? chosen : navigator.language.startsWith("zh") ? "zh-Hans" : "en");
}

/** @param {Language} next */
export function setLanguage(next) {
  language = next;
  document.documentElement.lang = next;
  translate(document);
  for (const listener of listeners) listener();
}

/** Change to the other language, and keep it. */
export function switchLanguage() {
  setLanguage(language === "en" ? "zh-Hans" : "en");
  remember("language", language);
}

/** Call whenever the language changes. @param {() => void} listener */
export function onLanguage(listener) {
  listeners.add(listener);
}

/**
 * The words for a key, with `{name}` replaced by values.
 *
 * @param {string} key
 * @param {Record<string, unknown>} [values]
 */
export function t(key, values = {}) {
  return LOCALES[language][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/**
 * The words for a key that only some have, such as the names of a pipeline's parameters.
 *
 * @param {string} key
 * @param {string} otherwise
 * @param {Record<string, unknown>} [values]
 */
export function translated(key, otherwise, values) {
  return key in LOCALES[language] ? t(key, values) : otherwise;
}

/** @param {ParentNode} root */
function translate(root) {
  forEach(root, "data-i18n", (node, words) => (node.textContent = words));
  forEach(root, "data-i18n-placeholder", (node, words) => node.setAttribute("placeholder", words));
  forEach(root, "data-i18n-label", (node, words) => {
    node.setAttribute("aria-label", words);
    if (node.matches("button")) node.setAttribute("title", words);
  });
}

/** @param {ParentNode} root @param {string} attribute @param {(node: Element, words: string) => void} act */
function forEach(root, attribute, act) {
  for (const node of root.querySelectorAll(`[${attribute}]`)) act(node, t(node.getAttribute(attribute)));
}
