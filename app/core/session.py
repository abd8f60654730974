"""Users: who is connected, what each has waiting, and the newest picture made for each.

A session is one connection of one user. Its frames are numbered, at most one of them waits for the
device, and only a result newer than the last is published, so what anybody is shown never goes back in
time. Results of a connection that is over are told by their key and dropped.

All of this lives on the event loop's thread. It does not know of sockets, of pictures' formats or of
models: whoever talks to the user is a `Listener`, whoever makes frames is a `Frames`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, Protocol

from app.core.messages import Done, Event, Failed, FrameIn, Image, Mode, Plan, SessionKey, Tag, Taken, Ticked
from app.utils.signal import Signal


class Ending(Enum):
    """Why a session is over."""

    LEFT = "left"
    TAKEN_OVER = "taken over"
    IDLE = "idle"
    FAILED = "failed"
    SHUTDOWN = "shutdown"


class ServerFullError(RuntimeError):
    """There is no room for one more user."""


class Frames(Protocol):
    """What makes frames; see `app.core.engine.Engine`."""

    def submit(self, frame: FrameIn) -> FrameIn | None:
        """Let a frame wait. Returns the session's older frame that it replaced."""

    def discard(self, session: SessionKey) -> None:
        """Forget a session's frames."""


class Listener(Protocol):
    """Who talks to the user of a session. Called on the event loop; must not block."""

    def taken(self) -> None:
        """The waiting frame is being made: there is room for the next."""

    def failed(self, reason: str) -> None:
        """A frame gave no picture."""

    def shown(self) -> None:
        """`Session.result` is new."""

    def ended(self, ending: Ending) -> None:
        """The session is over, for a reason other than the user leaving."""


@dataclass(slots=True)
class Counters:
    """What happened to frames.

    ``received`` frames were complete and valid; of those ``dropped`` gave way to a newer one before
    they were made, ``skipped`` were too like the last one, ``failed`` gave no picture, and ``results``
    were published. ``errors`` counts messages and pictures that were refused.
    """

    received: int = 0
    dropped: int = 0
    skipped: int = 0
    failed: int = 0
    results: int = 0
    errors: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A published picture. Times are seconds of the monotonic clock. ``repeated``: the frame with this
    tag was skipped, and the picture is the one before. ``encodings`` is whoever encodes pictures' memo.
    """

    number: int
    revision: int
    tag: Tag
    image: Image
    received_at: float
    admitted_at: float
    finished_at: float
    repeated: bool = False
    encodings: dict[Any, Any] = field(default_factory=dict)


class Session:
    """One connection of one user. Made by `Registry.connect`."""

    def __init__(self, key: SessionKey, mode: Mode, listener: Listener, frames: Frames) -> None:
        self.key = key
        self.mode = mode
        self.counters = Counters()
        self.result: Result | None = None
        self.ending: Ending | None = None
        self._listener = listener
        self._frames = frames
        self._newest = 0  # the number of the frame that was offered last
        self._waiting: int | None = None
        self._skipped: tuple[float, int, Tag] | None = None
        self._news = Signal()
        self._end = Signal()

    @property
    def over(self) -> bool:
        """Whether nothing comes any more."""
        return self.ending is not None

    @property
    def waiting(self) -> bool:
        """Whether a frame waits for the device."""
        return self._waiting is not None

    def offer(self, plan: Plan, image: Image | None, *, received_at: float, revision: int, tag: Tag) -> None:
        """Let a frame wait for the device, in the place of one that waits already."""
        if self.over:
            return
        self._newest += 1
        frame = FrameIn(self.key, self._newest, plan, image, received_at, revision, tag)
        self._waiting = self._newest
        self._skipped = None  # its turn is over, as that of a frame that is dropped
        if self._frames.submit(frame) is not None:
            self.counters.dropped += 1

    def skip(self, *, received_at: float, revision: int, tag: Tag) -> None:
        """Count a frame that is like the last one, and repeat the result of that one for it, as soon as
        there is one.
        """
        self.counters.skipped += 1
        self._skipped = received_at, revision, tag
        self._repeat()

    async def newer(self, than: int, wait: float | None = None) -> Result | None:
        """Wait for a result with a number above ``than``. None when ``wait`` seconds went by, or when
        the session is over.
        """
        while not self.over:
            if self.result is not None and self.result.number > than:
                return self.result
            if not await self._news.wait(wait):
                return None
        return None

    async def wait_until_over(self) -> None:
        """Wait for the end of the session."""
        if not self.over:
            await self._end.wait()

    def handle(self, event: Taken | Done | Failed) -> bool:
        """Take note of what happened to a frame of this session. Returns whether that is a new result."""
        if isinstance(event, Taken):
            if event.number == self._waiting:
                self._waiting = None
            self._listener.taken()
        elif isinstance(event, Failed):
            self.counters.failed += 1
            self._listener.failed(event.reason)
        elif self.result is None or event.frame.number > self.result.number:
            self._publish(event)
            return True
        else:
            self.counters.dropped += 1
        return False

    def end(self, ending: Ending) -> None:
        """Stop: nothing is published any more, and whoever watches is let go."""
        self.ending = ending
        self._frames.discard(self.key)
        self._news.ring()
        self._end.ring()
        if ending is not Ending.LEFT:
            self._listener.ended(ending)

    def _publish(self, done: Done) -> None:
        frame = done.frame
        self.result = Result(
            frame.number,
            frame.revision,
            frame.tag,
            done.image,
            frame.received_at,
            done.admitted_at,
            done.finished_at,
        )
        self.counters.results += 1
        self._listener.shown()
        self._news.ring()
        self._repeat()

    def _repeat(self) -> None:
        """Answer the frame that was skipped with the result of the one that it is like."""
        if self._skipped is None or self.result is None or self.result.number != self._newest:
            return
        received_at, revision, tag = self._skipped
        self._skipped = None
        self.result = replace(self.result, received_at=received_at, revision=revision, tag=tag, repeated=True)
        self._listener.shown()


class Registry:
    """The sessions of all users.

    Args:
        frames: who makes the frames.
        limit: the most sessions at the same time; 0 is no limit.
        observe: told of every tick and every result that is published.
    """

    def __init__(
        self,
        frames: Frames,
        *,
        limit: int = 0,
        observe: Callable[[Ticked | Done], None] = lambda _event: None,
    ) -> None:
        self._frames = frames
        self._limit = limit
        self._observe = observe
        self._sessions: dict[str, Session] = {}
        self._epochs = itertools.count(1)
        self._gone = Counters()
        self._arrivals = Signal()
        self._nobody_comes = False

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    @property
    def full(self) -> bool:
        """Whether a user who is not here yet would be refused."""
        return bool(self._limit) and len(self._sessions) >= self._limit

    @property
    def counters(self) -> Counters:
        """Of all sessions, those that are over included."""
        return sum((session.counters for session in self), self._gone)

    def connect(self, user: str, mode: Mode, listener: Listener) -> Session:
        """Begin a session. If the user has one already, that one ends.

        Raises:
            ServerFullError: if there is no room.
        """
        if user in self._sessions:
            self.end(self._sessions[user], Ending.TAKEN_OVER)
        elif self.full:
            raise ServerFullError
        session = Session(SessionKey(user, next(self._epochs)), mode, listener, self._frames)
        self._sessions[user] = session
        self._arrivals.ring()
        return session

    def end(self, session: Session, ending: Ending) -> None:
        """End a session; nothing happens if it is over already."""
        if self._sessions.get(session.key.user) is session:
            del self._sessions[session.key.user]
            self._gone += session.counters
            session.end(ending)

    def end_all(self, ending: Ending) -> None:
        """End every session for good, and let go who waits for one."""
        self._nobody_comes = True
        for session in self:
            self.end(session, ending)
        self._arrivals.ring()

    def find(self, user: str) -> Session | None:
        """The session of a user now."""
        return self._sessions.get(user)

    async def wait_for(self, user: str, within: float) -> Session | None:
        """The session of a user who may be about to connect; None if that takes longer than ``within``
        seconds.
        """
        deadline = time.monotonic() + within
        while (session := self._sessions.get(user)) is None:
            remaining = deadline - time.monotonic()
            if self._nobody_comes or remaining <= 0 or not await self._arrivals.wait(remaining):
                return None
        return session

    def deliver(self, events: list[Event]) -> None:
        """Hand out what the engine reports. Events of sessions that are over are dropped."""
        for event in events:
            if isinstance(event, Ticked):
                self._observe(event)
                continue
            session = self._sessions.get(event.session.user)
            if session is None or session.key != event.session:
                continue
            if session.handle(event) and isinstance(event, Done):
                self._observe(event)
