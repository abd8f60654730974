"""From a client's frames to the session's place in the queue.

A client that keeps to its credits never has more than one frame here. One that does not is served its
newest: a picture that a newer one overtakes before it is decoded costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.api.codec import Alike, Codec, Decoded
from app.api.protocol import Frame
from app.core.session import Session
from app.utils.image import PictureError
from app.utils.similarity import SimilarityFilter

log = logging.getLogger(__name__)

REFRESH = 0.02
"""A frame that waits for the device is replaced by a newer one at most every so many seconds: without a
credit a client may send what it likes, but not keep the codec busy with it."""

SKIP_PAUSE = 1 / 30
"""After a skipped frame the next one is asked for so many seconds later. A skip takes no time of the
device, and without a pause a still picture would be sent and decoded as fast as the network can."""


@dataclass(frozen=True, slots=True)
class _Arrived:
    frame: Frame
    at: float


class Intake:
    """The pictures of one session on their way to the engine.

    Args:
        session: that they belong to.
        codec: decodes them.
        skips: the session's similarity filter, if it is wanted.
        refuse: called with words when a picture cannot be taken.
        ask: called with a pause in seconds when the client should be asked for a frame although none
            was taken.
    """

    def __init__(
        self,
        session: Session,
        codec: Codec,
        skips: SimilarityFilter | None,
        *,
        refuse: Callable[[str], None],
        ask: Callable[[float], None],
    ) -> None:
        self._session = session
        self._codec = codec
        self._skips = skips
        self._refuse = refuse
        self._ask = ask
        self._newest: _Arrived | None = None
        self._decoding = False
        self._began = 0.0
        self._revision = -1
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a picture is being decoded, or waits for that."""
        return self._decoding or self._newest is not None

    def offer(self, frame: Frame) -> None:
        """Take a frame that has just arrived."""
        arrived = _Arrived(frame, time.monotonic())
        self._session.counters.received += 1
        if frame.picture is None:
            self._session.offer(
                frame.plan, None, received_at=arrived.at, revision=frame.revision, tag=frame.tag
            )
            return
        if self._newest is not None:
            self._session.counters.dropped += 1
        self._newest = arrived
        self.proceed()

    def proceed(self) -> None:
        """Decode the newest picture, unless one is being decoded or the last one is fresh and waits."""
        if self._newest is None or self._decoding or self._timer is not None:
            return
        if self._session.waiting:
            pause = self._began + REFRESH - time.monotonic()
            if pause > 0:
                self._timer = asyncio.get_running_loop().call_later(pause, self._refresh)
                return
        arrived, self._newest = self._newest, None
        self._decoding = True
        self._began = time.monotonic()
        if self._skips is not None and arrived.frame.revision != self._revision:
            self._skips.reset()
        self._revision = arrived.frame.revision
        picture = arrived.frame.picture
        assert picture is not None
        self._codec.decode(picture, self._skips, lambda decoded: self._decoded(arrived, decoded))

    def forget_last(self) -> None:
        """The last frame was not made: the next one must not be skipped for being like it."""
        if self._skips is not None:
            self._skips.reset()

    def close(self) -> None:
        """Drop what has not reached the engine."""
        self._newest = None
        self._cancel_timer()

    def _refresh(self) -> None:
        self._timer = None
        self.proceed()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _decoded(self, arrived: _Arrived, decoded: Decoded | Exception) -> None:
        self._decoding = False
        if self._session.over:
            return
        frame = arrived.frame
        if isinstance(decoded, PictureError):
            self._refuse(f"picture: {decoded}")
        elif isinstance(decoded, Exception):
            log.error("a picture could not be decoded by a fault of the server", exc_info=decoded)
            self._refuse("picture: the server could not decode it")
        elif isinstance(decoded, Alike):
            self._session.skip(received_at=arrived.at, revision=frame.revision, tag=frame.tag)
            self._ask(SKIP_PAUSE)
        else:
            self._session.offer(
                frame.plan, decoded, received_at=arrived.at, revision=frame.revision, tag=frame.tag
            )
        self.proceed()

    def taken(self) -> None:
        """The waiting frame is being made; the next one need not wait for its turn to be decoded."""
        self._cancel_timer()
        self.proceed()
