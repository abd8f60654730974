"""The threads that decode and encode pictures, and their way back to the event loop.

It does not know of sessions or sockets. The work itself is in `app.utils.image`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from functools import partial
from typing import TypeVar

import cv2

from app.core.messages import Image
from app.core.session import Result
from app.utils import image as pictures
from app.utils.image import PictureError, PictureFormat
from app.utils.similarity import SimilarityFilter

T = TypeVar("T")


class Alike(Enum):
    """What becomes of a picture that the similarity filter skips."""

    SKIPPED = auto()


Decoded = Image | Alike | PictureError


class Codec:
    """A pool of threads that turns files into arrays of one size and back.

    Args:
        width: of the model, in pixels.
        height: of the model, in pixels.
        max_pixels: the most pixels that a picture of a client may have.
        threads: how many pictures are worked on at once.
    """

    def __init__(self, *, width: int, height: int, max_pixels: int, threads: int) -> None:
        # The pool is the parallelism; OpenCV's own threads would only compete with it.
        cv2.setNumThreads(1)
        self._decode = partial(pictures.decode, width=width, height=height, max_pixels=max_pixels)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="codec")

    def decode(
        self, data: bytes, skips: SimilarityFilter | None, then: Callable[[Decoded | Exception], None]
    ) -> None:
        """Decode a picture, and pass it through a filter if there is one; ``then`` is called on this
        event loop with what comes of it.
        """
        self._run(partial(self._prepare, data, skips), then)

    async def encode(self, result: Result, picture_format: PictureFormat, quality: int) -> bytes:
        """The file of a result's picture. Whoever asks for the same one waits for the same work."""
        wanted = (picture_format, quality)
        known = result.encodings.get(wanted)
        if isinstance(known, bytes):
            return known
        if known is None:
            known = asyncio.get_running_loop().create_future()
            result.encodings[wanted] = known
            self._run(
                partial(pictures.encode, result.image, picture_format, quality),
                partial(_keep, result, wanted, known),
            )
        # One viewer who leaves must not cancel the work for the others.
        encoded: bytes = await asyncio.shield(known)
        return encoded

    def close(self) -> None:
        """End the threads; what has not begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, data: bytes, skips: SimilarityFilter | None) -> Decoded:
        try:
            image = self._decode(data)
        except PictureError as error:
            return error
        if skips is not None and skips.skips(image):
            return Alike.SKIPPED
        return image

    def _run(self, work: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        self._pool.submit(_work, asyncio.get_running_loop(), work, then)


def _work(
    loop: asyncio.AbstractEventLoop, work: Callable[[], T], then: Callable[[T | Exception], None]
) -> None:
    # A callback instead of asyncio.wrap_future, which costs as much as a tenth of the decoding.
    outcome: T | Exception
    try:
        outcome = work()
    except Exception as error:  # noqa: BLE001 - it belongs to whoever waits, not to this thread
        outcome = error
    try:
        loop.call_soon_threadsafe(then, outcome)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more


def _keep(
    result: Result,
    wanted: tuple[PictureFormat, int],
    future: asyncio.Future[bytes],
    outcome: bytes | Exception,
) -> None:
    if isinstance(outcome, Exception):
        del result.encodings[wanted]
        future.set_exception(outcome)
    else:
        result.encodings[wanted] = outcome
        future.set_result(outcome)
