"""Who runs in the next tick.

The unit of scheduling is the row, a frame in flight. A tick carries every row in flight and fills the
rest of the batch with new frames: first at most one for each session that has nothing in flight, least
recently served first; then, only into rows that cost nothing, the next frame of a session that has
(StreamDiffusion's stream batch, arXiv:2312.12491, section 3.1, as a policy). A session that was never
served counts as served when it came, so that newcomers, however many, overtake nobody.

A batch that is not full takes as long as a full one. So where two smaller ticks are done before one padded
tick would be, the first of them carries what fills it, and the others are first in the second; unless one of
them would find no place there for long, behind frames of many steps.

Where frames of many steps hold all rows, a frame of few would wait many times as long as it takes. One such
frame a tick goes ahead, and a row makes way for it until the next tick.

Pure bookkeeping: no threads, no clock of its own, no torch. It does not know what a frame looks like.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from app.core.messages import SLOTS_PER_ROW, FrameIn, Row, SessionKey

Embeddings = tuple[Any, ...]
Candidate = tuple[FrameIn, Embeddings]

FREE_COST = 1.25
"""A batch that takes at most so many times what the smallest takes counts as free."""


class Scheduler:
    """Rows in flight, one waiting frame per session, and the order of service.

    Args:
        buckets: the batch sizes that the runner has, ascending; the last is the most rows of a tick.
        stream_batch: whether one session may have several frames in flight.
        embeddings: what the runner needs of a frame's texts, or None while they are being made; a
            frame is not admitted before.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        buckets: Sequence[int],
        *,
        stream_batch: bool,
        embeddings: Callable[[FrameIn], Embeddings | None],
        clock: Callable[[], float],
    ) -> None:
        if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
            raise ValueError(f"batch sizes must be positive and ascending, not {list(buckets)}")
        self._buckets = tuple(buckets)
        self._stream_batch = stream_batch
        self._embeddings = embeddings
        self._clock = clock
        self._limit = self._buckets[-1]
        self._waiting: dict[SessionKey, FrameIn] = {}
        self._in_flight: dict[int, Row] = {}
        self._free_slots = deque(range(SLOTS_PER_ROW * self._buckets[-1]))  # the one longest free comes first
        self._last_served: dict[SessionKey, int] = {}
        self._admissions = 0
        self.learn({})

    @property
    def capacity(self) -> int:
        """The most rows that one tick carries now."""
        return self._limit

    @property
    def in_flight(self) -> tuple[Row, ...]:
        """The rows between two of their steps, the one that has waited longest first."""
        return tuple(self._in_flight.values())

    @property
    def waiting(self) -> tuple[FrameIn, ...]:
        """The frames that wait for a row, the one that has waited longest first."""
        return tuple(self._waiting.values())

    def bucket(self, rows: int) -> int:
        """The smallest batch size that holds so many rows."""
        return next(size for size in self._buckets if size >= rows)

    def learn(self, costs: Mapping[int, float]) -> None:
        """Take what a tick of each batch size takes, in seconds; of none, where that is not known."""
        smallest = costs.get(self._buckets[0], 0.0)
        self._free = max((size for size in costs if costs[size] <= FREE_COST * smallest), default=1)
        self._carried = _carried(self._buckets, costs)

    def limit(self, rows: int) -> None:
        """Carry at most so many rows from now on; when more are in flight they take turns."""
        self._limit = max(1, min(rows, self._buckets[-1]))

    def offer(self, frame: FrameIn) -> FrameIn | None:
        """Let a frame wait for a row. A session has one place to wait in, and its newest frame wins:
        returns the frame that had to leave, or None.
        """
        replaced = self._waiting.pop(frame.session, None)
        self._last_served.setdefault(frame.session, self._admissions)
        self._waiting[frame.session] = frame  # at the end: who offers without pause overtakes nobody
        return replaced

    def discard(self, session: SessionKey) -> None:
        """Forget a session, its waiting frame and its rows."""
        self._waiting.pop(session, None)
        self._last_served.pop(session, None)
        for row in self.in_flight:
            if row.frame.session == session:
                self.drop(row)

    def drop(self, row: Row) -> bool:
        """Take a frame out of flight and free its slot. Returns whether it was in flight."""
        current = self._in_flight.get(row.slot)
        flies = current is not None and current.frame is row.frame
        if flies:
            del self._in_flight[row.slot]
            self._free_slots.append(row.slot)
        return flies

    def withdraw(self, frame: FrameIn) -> bool:
        """Take back a frame that still waits. Returns whether it did."""
        waits = self._waiting.get(frame.session) is frame
        if waits:
            del self._waiting[frame.session]
        return waits

    def next_rows(self) -> tuple[Row, ...]:
        """The rows of the next tick: those in flight, then newly admitted ones. Empty if nobody can run."""
        rows = list(self._in_flight.values())[: self._limit]
        busy = Counter(row.frame.session for row in self._in_flight.values())
        ready = self._ready()
        idle = [(frame, texts) for frame, texts in ready if not busy[frame.session]]
        wanted = min(self._limit, len(rows) + len(idle))
        carried = self._carried[wanted]
        if carried < len(rows):  # they run all the same, and others in what would be their padding
            carried = self.bucket(len(rows))
        room = min(carried, wanted) - len(rows)
        if _too_long(rows, idle[:room], idle[room : wanted - len(rows)]):
            room = wanted - len(rows)
        flying = len(rows)
        rows += self._admit(idle, room)
        if flying > 1 and (short := self._short(rows, idle[room:])) is not None:
            del rows[flying - 1]  # another one than in the tick before, which is the first now
            rows += self._admit([short], room=1)
        if self._stream_batch and 0 < wanted <= len(rows):
            again = [
                (frame, texts)
                for frame, texts in ready
                if 0 < busy[frame.session] < len(frame.plan.timesteps)
            ]
            # Counted by sessions: rows that are there for nothing must not keep a large batch going.
            needed = len({row.frame.session for row in rows})
            free = max(self.bucket(needed), self._free)
            rows += self._admit(again, room=min(free, self._limit) - len(rows))
        return tuple(rows)

    def advance(self, rows: Iterable[Row]) -> None:
        """Note that these rows made their step; those that finished leave."""
        for row in rows:
            if self._in_flight.get(row.slot) is not row:
                continue  # its session left meanwhile
            if row.finishes:
                self.drop(row)
            else:
                del self._in_flight[row.slot]  # to the end of the turn
                self._in_flight[row.slot] = row.advanced()

    def _short(self, rows: list[Row], idle: list[Candidate]) -> Candidate | None:
        """Who takes less than half as long as one of the rows, where they are all that there may be; None if
        nobody does, or a row waits for its turn already.
        """
        if not len(rows) == self._limit == len(self._in_flight):
            return None
        longest = max(len(row.frame.plan.timesteps) - row.stage for row in rows)
        return next((one for one in idle if 2 * len(one[0].plan.timesteps) < longest), None)

    def _ready(self) -> list[Candidate]:
        """The waiting frames whose embeddings are there, least recently served session first."""
        found = [(frame, self._embeddings(frame)) for frame in self._waiting.values()]
        ready = [(frame, texts) for frame, texts in found if texts is not None]
        return sorted(ready, key=lambda entry: self._last_served[entry[0].session])

    def _admit(self, candidates: list[Candidate], room: int) -> list[Row]:
        """Give slots to the first candidates while there is room."""
        admitted = []
        for frame, embeddings in candidates[: max(0, room)]:
            row = Row(self._free_slots.popleft(), frame, self._clock(), embeddings)
            self._in_flight[row.slot] = row
            del self._waiting[frame.session]
            self._last_served[frame.session] = self._admissions
            self._admissions += 1
            admitted.append(row)
        return admitted


def _too_long(rows: list[Row], first: list[Candidate], later: list[Candidate]) -> bool:
    """Whether one of the later frames would wait for the end of a row more than twice as long as it takes."""
    ends = sorted(
        [
            *(len(row.frame.plan.timesteps) - row.stage for row in rows),
            *(len(frame.plan.timesteps) for frame, _ in first),
        ]
    )
    steps = (len(frame.plan.timesteps) for frame, _ in later)
    return any(end > 2 * own for end, own in zip(ends, steps, strict=False))


def _carried(buckets: Sequence[int], costs: Mapping[int, float]) -> list[int]:
    """How many of 0, 1, … rows the next tick carries: all, or as many as fill the largest batch size below
    if that and what the others then take is less than all with their padding.
    """
    carried, seconds = [0], [0.0]
    for rows in range(1, buckets[-1] + 1):
        size = next(size for size in buckets if size >= rows)
        part = max((size for size in buckets if size < rows), default=0)
        ways = [(costs.get(size, 0.0), rows)]
        if part and size > rows:
            ways.append((costs.get(part, 0.0) + seconds[rows - part], part))
        best = min(ways, key=lambda way: way[0])  # of equals the first
        seconds.append(best[0])
        carried.append(best[1])
    return carried
