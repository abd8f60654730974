"""Streams of frames through the engine, in one process, as the server would submit them.

A closed stream offers its next frame as soon as the last one was taken, as a client that answers every
``send_frame`` does; an open one offers frames at a fixed rate.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.core.engine import Engine
from app.core.messages import Done, Event, Failed, FrameIn, Image, Plan, SessionKey, Taken, Ticked
from benchmarks.results import summary


def pictures(count: int, width: int, height: int, seed: int = 0) -> list[Image]:
    """Smooth random pictures: gradients and blobs, so that no codec and no branch sees a special case."""
    generator = np.random.default_rng(seed)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    found = []
    for _ in range(count):
        phase = generator.uniform(0, 6.3, (3, 3)).astype(np.float32)
        waves = [np.sin(xs / 40 + a) + np.sin(ys / 30 + b) + np.sin((xs + ys) / 60 + c) for a, b, c in phase]
        found.append(np.ascontiguousarray(np.stack(waves, -1) * 40 + 127).clip(0, 255).astype(np.uint8))
    return found


@dataclass
class Load:
    """Drives an engine and keeps what came back; call ``run`` within one event loop."""

    engine: Engine
    plans: Sequence[Plan]
    images: Sequence[Image]
    rate: float | None = None
    """Frames per second of each stream; None offers the next frame when the last one was taken."""
    one_at_a_time: bool = False
    """Offer the next frame only when the last picture is there: what a lone frame takes."""

    done: list[Done] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    ticks: list[Ticked] = field(default_factory=list)
    offered: int = 0
    _numbers: dict[SessionKey, int] = field(default_factory=lambda: defaultdict(int))
    _running: bool = False
    _awaited: tuple[str, asyncio.Future[Done]] | None = None

    async def first_with(self, prompt: str) -> Done:
        """Wait for the first picture made with a prompt."""
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._awaited = (prompt, future)
        return await future

    def deliver(self, events: list[Event]) -> None:
        """What the engine calls on the event loop."""
        for event in events:
            if isinstance(event, Done):
                self.done.append(event)
                if self._awaited and event.frame.plan.prompt == self._awaited[0]:
                    if not self._awaited[1].done():  # nobody waits any more
                        self._awaited[1].set_result(event)
                    self._awaited = None
                if self.one_at_a_time:
                    self._offer(event.session)
            elif isinstance(event, Taken):
                if self.rate is None and not self.one_at_a_time:
                    self._offer(event.session)
            elif isinstance(event, Ticked):
                self.ticks.append(event)
            elif isinstance(event, Failed):
                self.failed.append(event)

    async def run(self, streams: int, seconds: float, settle: float = 0.5) -> dict[str, Any]:
        """Serve ``streams`` streams; the figures of ``seconds`` after ``settle``."""
        sessions = [SessionKey(f"user {number}", 0) for number in range(streams)]
        self._running = True
        senders = []
        for number, session in enumerate(sessions):
            if self.rate is None:
                self._offer(session)
            else:
                senders.append(asyncio.create_task(self._send(session, number / streams / self.rate)))
        await asyncio.sleep(settle)
        self.done.clear()
        self.ticks.clear()
        self.offered = 0
        started_at, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        elapsed, cpu = time.monotonic() - started_at, time.process_time() - cpu
        done, ticks, offered = list(self.done), list(self.ticks), self.offered
        self._running = False
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
        for session in sessions:
            self.engine.discard(session)
        await asyncio.sleep(0.1)
        if self.failed:
            raise RuntimeError(f"{len(self.failed)} frames failed: {self.failed[0].reason}")
        ages = [1e3 * (event.finished_at - event.frame.received_at) for event in done]
        per_stream = [sum(event.session == session for event in done) for session in sessions]
        return {
            "streams": streams,
            "frames_per_second": round(len(done) / elapsed, 2),
            "ms_per_frame": round(1e3 * elapsed / max(1, len(done)), 4),
            "age_ms": summary(ages),
            "tick_ms": summary([1e3 * tick.seconds for tick in ticks]),
            "batch_fill": round(sum(t.rows for t in ticks) / max(1, sum(t.batch for t in ticks)), 4),
            "rows_per_tick": round(sum(t.rows for t in ticks) / max(1, len(ticks)), 3),
            "host_cpu_ms_per_frame": round(1e3 * cpu / max(1, len(done)), 4),
            "offered": offered,
            "fewest_and_most_per_stream": [min(per_stream), max(per_stream)],
        }

    async def _send(self, session: SessionKey, delay: float) -> None:
        assert self.rate is not None
        due = time.monotonic() + delay
        while self._running:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._offer(session)
            due += 1 / self.rate

    def _offer(self, session: SessionKey) -> None:
        if not self._running:
            return
        number = self._numbers[session]
        self._numbers[session] += 1
        self.offered += 1
        plan = self.plans[int(session.user.split()[1]) % len(self.plans)]
        image = self.images[number % len(self.images)] if plan.mode == "image" else None
        self.engine.submit(FrameIn(session, number, plan, image, received_at=time.monotonic()))
