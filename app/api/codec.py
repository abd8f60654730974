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
Job = Callable[[], None]


class Codec:
    """A pool of threads that turns files into arrays of one size and back. What takes seconds has a thread of
    its own: a few users with large pictures would hold all the others up.

    Not `concurrent.futures`: its futures, which nothing here needs, cost a tenth of the decoding itself.

    Args:
        width: of the model, in pixels.
        height: of the model, in pixels.
        max_pixels: the most pixels that a picture of a client may have.
        threads: how many pictures are worked on at once, besides a slow one.
    """

    def __init__(self, *, width: int, height: int, max_pixels: int, threads: int) -> None:
        # The pool is the parallelism; OpenCV's own threads would only compete with it.
        cv2.setNumThreads(1)
        self._decode = partial(pictures.decode, width=width, height=height, max_pixels=max_pixels)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._slow: SimpleQueue[Job | None] = SimpleQueue()
        self._queues = [*[self._jobs] * threads, self._slow]  # of each thread
        self._threads = [
            threading.Thread(target=_work, args=(queue,), name=f"codec-{number}", daemon=True)
            for number, queue in enumerate(self._queues)
        ]
        for thread in self._threads:
            thread.start()

    def decode(
        self, data: bytes, skips: SimilarityFilter | None, then: Callable[[Decoded | Exception], None]
    ) -> None:
        """Decode a picture, and pass it through a filter if there is one; ``then`` is called on this
        event loop with what comes of it.
        """
        decode = _job(partial(self._prepare, data, skips), then)
        self._jobs.put(partial(self._sort, data, decode))

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
            self._jobs.put(
                _job(
                    partial(pictures.encode, result.image, picture_format, quality),
                    partial(_keep, result.encodings, wanted),
                )
            )
        else:
            known.append(waiter)
        return await waiter

    async def stop(self) -> None:
        """End the threads after what they work on; what has not begun is dropped."""
        for queue in (self._jobs, self._slow):
            with suppress(Empty):  # a thread may take the last one at any moment
                while True:
                    queue.get_nowait()
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _prepare(self, data: bytes, skips: SimilarityFilter | None) -> Decoded:
        try:
            image = self._decode(data)
        except PictureError as error:
            return error
        if skips is not None and skips.skips(image):
            return Alike.SKIPPED
        return image

    def _sort(self, data: bytes, decode: Job) -> None:
        if pictures.is_slow(data):
            self._slow.put(decode)
        else:
            decode()


Waiter = asyncio.Future[bytes]


def _work(queue: SimpleQueue[Job | None]) -> None:
    while (job := queue.get()) is not None:
        job()


def _job(work: Callable[[], T], then: Callable[[T | Exception], None]) -> Job:
    return partial(_report, asyncio.get_running_loop(), work, then)


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
