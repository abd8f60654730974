/**
 * What a source of pictures is. Each file of this folder with an `open` exports one kind.
 *
 * @typedef {object} Kind
 * @property {string} id also the name of its icon, and the key of its name in the locales
 * @property {"image" | "video"} mode of the connection it feeds
 * @property {boolean} [asks] whether opening it asks the user for something, so that it cannot open by itself
 * @property {boolean} [file] whether it shows a file of the user
 * @property {() => boolean} available whether this browser has it
 * @property {(needs: Needs) => Promise<Source>} open throws a DOMException that `SourceProblem` explains
 *
 * @typedef {object} Needs
 * @property {HTMLCanvasElement} canvas that is drawn on
 * @property {(accept: string) => Promise<File>} chooseFile
 * @property {() => void} ended call when the source ends by itself
 * @property {() => void} reopen close the source and open another of its kind
 *
 * @typedef {object} Source
 * @property {(context: CanvasRenderingContext2D, now: number) => boolean} draw draws the newest picture, and says
 *   whether it is another one than the last
 * @property {() => Tool[]} [tools] what can be done with it, in the current language
 * @property {boolean} [drawable] whether the user draws on its canvas
 * @property {() => void} close
 *
 * @typedef {HTMLElement} Tool
 */

export {};
