"""The threads that decode and encode pictures, and their way back to the event loop.

It does not know of sessions or sockets. The work itself is in `app.utils.image`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

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
Wanted = tuple[PictureFormat, int]


class Codec:
    """A pool of threads that turns files into arrays of one size and back.

    Not `concurrent.futures`: its futures, which nothing here needs, cost a tenth of the decoding itself.

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
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"codec-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

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
        known: bytes | list[Waiter] | None = result.encodings.get(wanted)
        if isinstance(known, bytes):
            return known
        # Each has a future of its own: one viewer who leaves must not cancel the work for the others.
        waiter: Waiter = asyncio.get_running_loop().create_future()
        if known is None:
            result.encodings[wanted] = [waiter]
            self._run(
                partial(pictures.encode, result.image, picture_format, quality),
                partial(_keep, result.encodings, wanted),
            )
        else:
            known.append(waiter)
        return await waiter

    def close(self) -> None:
        """End the threads after what they work on; what has not begun is dropped."""
        with suppress(Empty):  # a thread may take the last one at any moment
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _prepare(self, data: bytes, skips: SimilarityFilter | None) -> Decoded:
        try:
            image = self._decode(data)
        except PictureError as error:
            return error
        if skips is not None and skips.skips(image):
            return Alike.SKIPPED
        return image

    def _run(self, work: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        self._jobs.put(partial(_report, asyncio.get_running_loop(), work, then))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


Waiter = asyncio.Future[bytes]


def _report(
    loop: asyncio.AbstractEventLoop, work: Callable[[], T], then: Callable[[T | Exception], None]
) -> None:
    outcome: T | Exception
    try:
        outcome = work()
    except Exception as error:  # noqa: BLE001 - it belongs to whoever waits, not to this thread
        outcome = error
    try:
        loop.call_soon_threadsafe(then, outcome)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more


def _keep(encodings: dict[Any, Any], wanted: Wanted, outcome: bytes | Exception) -> None:
    waiters: list[Waiter] = encodings.pop(wanted)
    if isinstance(outcome, bytes):
        encodings[wanted] = outcome
    for waiter in waiters:
        if waiter.done():
            continue
        if isinstance(outcome, bytes):
            waiter.set_result(outcome)
        else:
            waiter.set_exception(outcome)
