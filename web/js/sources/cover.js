/**
 * Draw something so that it covers the whole canvas, its middle in the middle.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {CanvasImageSource} image
 * @param {number} imageWidth
 * @param {number} imageHeight
 */
export function drawCover(context, image, imageWidth, imageHeight) {
  const { width, height } = context.canvas;
  const scale = Math.max(width / imageWidth, height / imageHeight);
  const [w, h] = [imageWidth * scale, imageHeight * scale];
  context.drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
}
