"""A camera in a window, repainted: `python examples/webcam.py "pencil sketch"`; Escape ends it.

Needs `pip install ./clients/python opencv-python`, outside of the server's environment: see README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import cv2
import numpy as np
from streamdiffusion_client import Client, ClientError

ESCAPE = 27


async def frames(camera: cv2.VideoCapture, size: int) -> AsyncIterator[bytes]:
    """JPEGs of what the camera sees now, cut to a square."""
    while True:
        # read() waits for the camera; elsewhere, so that results can be shown meanwhile.
        seen, picture = await asyncio.to_thread(camera.read)
        if not seen:
            return
        height, width = picture.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = cv2.resize(picture[top : top + side, left : left + side], (size, size))
        yield cv2.imencode(".jpg", square)[1].tobytes()


async def main(arguments: argparse.Namespace) -> None:
    """Show results until Escape is pressed."""
    camera = cv2.VideoCapture(arguments.camera)
    if not camera.isOpened():
        raise SystemExit(f"there is no camera {arguments.camera}")
    parameters = {"prompt": arguments.prompt, "strength": arguments.strength}
    async with Client(arguments.server, user=arguments.user, parameters=parameters) as client:
        print(f"also at {client.stream_address}")
        async with contextlib.aclosing(client.stream(frames(camera, arguments.size))) as results:
            async for result in results:
                picture = cv2.imdecode(np.frombuffer(result.picture, np.uint8), cv2.IMREAD_COLOR)
                assert picture is not None, "a result is a JPEG"
                cv2.imshow("result", picture)
                # Only now: before its first picture there is no window that could have a title.
                if result.frame_time is not None:
                    cv2.setWindowTitle("result", f"{(time.monotonic() - result.frame_time) * 1000:.0f} ms")
                if cv2.waitKey(1) == ESCAPE:
                    return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--server", default="http://localhost:8000")
    parser.add_argument("--user", help="name in the results' address; a new one every time by default")
    parser.add_argument("--camera", type=int, default=0)
    parser.add_argument("--size", type=int, default=512, help="side of the pictures sent, in pixels")
    parser.add_argument("--strength", type=float, default=0.5)
    try:
        asyncio.run(main(parser.parse_args()))
    except ClientError as error:
        raise SystemExit(str(error)) from error
