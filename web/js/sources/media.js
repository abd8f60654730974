/** What camera, screen and video file have in common: a playing <video>. */

import { drawCover } from "./cover.js";

/**
 * A source that draws a video; `video.srcObject` or `video.src` is set already.
 *
 * @param {HTMLVideoElement} video
 * @param {() => boolean} mirrored
 * @throws {DOMException} if it cannot be played; it is closed then
 */
export async function playing(video, mirrored = () => false) {
  video.muted = true;
  video.playsInline = true;
  let fresh = true;
  let closed = false;

  function close() {
    closed = true;
    video.pause();
    const stream = /** @type {MediaStream | null} */ (video.srcObject);
    for (const track of stream?.getTracks() ?? []) track.stop();
    video.srcObject = null;
    URL.revokeObjectURL(video.src); // of a file; of nothing else it does nothing
  }

  try {
    await video.play();
  } catch (error) {
    close();
    throw error;
  }

  function count() {
    fresh = true;
    if (!closed) video.requestVideoFrameCallback(count);
  }
  const counts = "requestVideoFrameCallback" in video;
  if (counts) video.requestVideoFrameCallback(count);

  return {
    /** @param {CanvasRenderingContext2D} context */
    draw(context) {
      if (!video.videoWidth) return false;
      // In a hidden page no frame is reported, but the video goes on.
      const another = fresh || document.hidden || !counts;
      fresh = false;
      context.save();
      if (mirrored()) {
        context.translate(context.canvas.width, 0);
        context.scale(-1, 1);
      }
      drawCover(context, video, video.videoWidth, video.videoHeight);
      context.restore();
      return another;
    },
    close,
  };
}

/** @param {MediaStream} stream @param {() => void} ended */
export function videoOf(stream, ended) {
  const video = document.createElement("video");
  video.srcObject = stream;
  stream.getVideoTracks()[0].addEventListener("ended", ended);
  return video;
}
