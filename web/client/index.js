/**
 * Streams pictures to a StreamDiffusion Backend and back. No dependencies; docs/protocol.md is what it speaks.
 *
 *     const client = new StreamClient({
 *       capture: () => new Promise((done) => {
 *         const time = performance.now();
 *         canvas.toBlob((picture) => done({ picture, time }), "image/jpeg");
 *       }),
 *     });
 *     client.parameters.prompt = "watercolor painting";
 *     client.addEventListener("result", async ({ detail }) => {
 *       context.drawImage(await createImageBitmap(detail.picture), 0, 0);
 *     });
 *     client.start();
 */

export { StreamClient } from "./stream-client.js";
export { decodeResult } from "./result.js";
export { CloseCode } from "./close-code.js";
