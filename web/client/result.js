/** The binary messages of a connection with `?output=ws`: a header of 48 bytes or more, then the picture. */

const VERSION = 1;
const MEDIA_TYPES = new Map([
  [1, "image/jpeg"],
  [2, "image/webp"],
]);
const REPEATED = 1;

/**
 * @typedef {object} Result
 * @property {Blob} picture JPEG or WebP, as asked for
 * @property {number} number of the frame in its session, ascending
 * @property {number | null} frameId as the client wrote it on the frame
 * @property {number | null} frameTime as the client wrote it on the frame; the unit is the client's
 * @property {number} revision how often the parameters had changed before this frame
 * @property {number} waited milliseconds the frame waited for the device
 * @property {number} made milliseconds from the first denoising step to the finished picture
 * @property {number} total milliseconds from the frame's arrival at the server to this message
 * @property {number} dropped frames of this session that gave way to newer ones so far
 * @property {boolean} repeated whether the frame was like the one before, so that the picture is that one's
 */

/**
 * @param {ArrayBuffer} message
 * @returns {Result}
 * @throws {RangeError} if this is no result, or of a version that this module does not know
 */
export function decodeResult(message) {
  const view = new DataView(message);
  const version = view.getUint8(0);
  const type = MEDIA_TYPES.get(view.getUint8(1));
  if (version !== VERSION || type === undefined) {
    throw new RangeError(`unknown result: version ${version}, format ${view.getUint8(1)}`);
  }
  const headerSize = view.getUint16(2, true);
  return {
    picture: new Blob([new Uint8Array(message, headerSize)], { type }),
    revision: view.getUint32(4, true),
    frameId: absentIfNaN(view.getFloat64(8, true)),
    frameTime: absentIfNaN(view.getFloat64(16, true)),
    waited: view.getFloat32(24, true),
    made: view.getFloat32(28, true),
    total: view.getFloat32(32, true),
    repeated: (view.getUint32(36, true) & REPEATED) !== 0,
    number: view.getUint32(40, true),
    dropped: view.getUint32(44, true),
  };
}

/** @param {number} value */
function absentIfNaN(value) {
  return Number.isNaN(value) ? null : value;
}
