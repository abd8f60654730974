/** Small helpers over the DOM. */

/**
 * The element with this id, which the page is known to have.
 *
 * @template {HTMLElement} T
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  return /** @type {T} */ (document.getElementById(id));
}

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Partial<HTMLElementTagNameMap[K]> & Record<string, unknown>} [properties] names with a hyphen are
 *   set as attributes
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) made.setAttribute(name, String(value));
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** @param {string} name of a symbol in icons.svg */
export function icon(name) {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(namespace, "use"));
  setIcon(svg, name);
  return svg;
}

/** @param {Element} holder an icon, or what contains one @param {string} name */
export function setIcon(holder, name) {
  holder.querySelector("use").setAttribute("href", `icons.svg#${name}`);
}

/**
 * A button that shows an icon and is named for those who do not see it.
 *
 * @param {string} name of the icon
 * @param {string} label
 * @param {() => void} act
 */
export function toolButton(name, label, act) {
  return element(
    "button",
    { type: "button", className: "tool", title: label, "aria-label": label, onclick: act },
    icon(name),
  );
}
