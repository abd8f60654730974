/** Light, dark, or as the system says. */

import { onLanguage, t } from "./i18n.js";
import { remember, remembered } from "./memory.js";

const THEMES = ["system", "light", "dark"];

/** @param {HTMLButtonElement} button that goes through the themes */
export function initTheme(button) {
  let theme = THEMES.includes(remembered("theme")) ? remembered("theme") : "system";

  function show() {
    document.documentElement.dataset.theme = theme;
    button.title = t(`theme.${theme}`);
    button.setAttribute("aria-label", button.title);
  }

  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    remember("theme", theme);
    show();
  });
  onLanguage(show);
  show();
}
