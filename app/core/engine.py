"""The StreamDiffusion engine: asyncio on one side, the one thread that owns the device on the other.

The loop of that thread is the whole idea: take the rows that can run, launch one step for all of them,
and while the device works, hand out what the launch before has finished. A second thread makes the
embeddings of new prompts, so that nobody else's frame waits for them. Both sleep on one condition;
nothing here polls.

It does not know what a model is (the runner does) nor who is served first (the scheduler does).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from app.core.messages import (
    DeviceLostError,
    Done,
    Event,
    Failed,
    FrameIn,
    Launched,
    OutOfMemoryError,
    Row,
    Runner,
    SessionKey,
    Taken,
    Ticked,
)
from app.core.prompts import PromptCache
from app.core.scheduler import Scheduler

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "failed", "stopped"]
Report = Callable[[str], None]
Deliver = Callable[[list[Event]], None]

STARVING = 5.0
"""Seconds during which no prompt, or no row even alone in its batch, finds memory: then others had better
serve."""

OUT_OF_MEMORY = "the device is out of memory"


@dataclass(frozen=True)
class Flight:
    """A batch on the device."""

    rows: tuple[Row, ...]
    launched: Launched
    started_at: float


class Engine:
    """Makes frames. All methods belong to the event loop's thread.

    Args:
        create_runner: loads and warms up; called on the engine's thread with a function that takes
            words about the progress.
        buckets: the runner's batch sizes, ascending.
        stream_batch: whether one session may keep several frames in flight.
        prompt_cache_size: how many texts' embeddings are kept.
        watchdog_timeout: seconds after which a tick or an embedding that does not end counts as a lost
            device; None where it may take as long as it likes, as on a CPU.
    """

    def __init__(
        self,
        create_runner: Callable[[Report], Runner],
        *,
        buckets: tuple[int, ...],
        stream_batch: bool,
        prompt_cache_size: int = 256,
        watchdog_timeout: float | None = 30.0,
    ) -> None:
        self._create_runner = create_runner
        self._prompts = PromptCache(prompt_cache_size)
        self._scheduler = Scheduler(
            buckets, stream_batch=stream_batch, embeddings=self._prompts.lookup, clock=time.monotonic
        )
        self._watchdog_timeout = watchdog_timeout
        lock = threading.RLock()  # guards the scheduler, the prompts, _raised and _stopping
        self._changed = threading.Condition(lock)  # what the engine's thread waits for
        self._text_missing = threading.Condition(lock)  # what the prompts' thread waits for
        self._stopping = False
        self._busy_since: float | None = None  # the engine's thread
        self._encoding_since: float | None = None  # the prompts' thread
        self._starving_since: dict[str, float] = {}  # by what finds no memory
        self._raised: dict[SessionKey, int] = {}  # at which stage a session's frame did, until one passes it
        self._threads = [threading.Thread(target=self._own_device, name="engine", daemon=True)]
        self.state: State = "starting"
        self.progress = "starting"
        self.failure: str | None = None
        self.description: Mapping[str, str | int | bool] = {}
        self.degraded: str | None = None
        self.on_failure: Callable[[str], None] = lambda _reason: None

    async def start(self, deliver: Deliver) -> None:
        """Load, warm up, and return when frames can be made; ``deliver`` is called on this loop with
        what happens to them. Raises what creating the runner raised.
        """
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._threads[0].start()
        await self._ready
        self._watch()

    async def stop(self) -> None:
        """End both threads; frames still in flight are dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
            self._text_missing.notify()
        if self.state != "failed":
            self.state = "stopped"
        for thread in self._threads:
            if thread.ident is not None:
                await asyncio.to_thread(thread.join, self._watchdog_timeout)

    def submit(self, frame: FrameIn) -> FrameIn | None:
        """Let a frame wait for the next batch. Returns the session's older frame that it replaced."""
        with self._changed:
            replaced = self._scheduler.offer(frame)
            self._changed.notify()
            if self._prompts.lookup(frame) is None:
                self._text_missing.notify()
        return replaced

    def discard(self, session: SessionKey) -> None:
        """Drop whatever a session has waiting or in flight."""
        with self._changed:
            self._scheduler.discard(session)
            self._raised.pop(session, None)

    @property
    def capacity(self) -> int:
        """The most rows in one batch now."""
        return self._scheduler.capacity

    @property
    def waiting(self) -> int:
        """How many frames wait for a row."""
        with self._changed:
            return len(self._scheduler.waiting)

    # -- on the engine's thread -------------------------------------------------------------------

    def _own_device(self) -> None:
        try:
            runner = self._create_runner(self._report)
            self._scheduler.learn(runner.costs)
            self._prompts.negative = runner.reads_negative_prompts
            self.description = runner.description
            prompts = threading.Thread(
                target=self._encode_prompts, args=(runner,), name="prompts", daemon=True
            )
            prompts.start()
        except BaseException as error:  # noqa: BLE001 - whatever it is, start() raises it
            self._call(self._end_start, error)
            return
        self._threads.append(prompts)
        self._call(self._end_start, None)
        try:
            self._make_frames(runner)
        except BaseException as error:  # SystemExit too, of which nothing would be heard
            log.exception("the engine ended")
            self._call(self._fail, f"{type(error).__name__}: {error}")
        finally:
            self._join_prompts(prompts)

    def _make_frames(self, runner: Runner) -> None:
        """Schedule, launch, publish, until stopped."""
        flights: list[Flight] = []
        while (rows := self._following(flights)) is not None:
            self._busy_since = time.monotonic()
            self._publish([Taken(row.frame.session, row.frame.number) for row in rows if row.begins])
            launched = [
                flight
                for part in self._parts(rows)
                for flight in self._launch(runner, part, again=len(part) == 1)
            ]
            for flight in flights:
                self._publish(self._collect(flight))
            flights = launched

    def _following(self, flights: list[Flight]) -> tuple[Row, ...] | None:
        """The rows of the tick after these, which are handed out if they are there: of who waits when the
        device has nearly done its work, or when it has, or, if there is no other work, of who comes first.
        """
        if flights:
            newest = flights[-1].launched
            for wait in (newest.wait_turn, newest.wait_forward):
                wait()
                while flights and flights[0].launched.complete():
                    self._publish(self._collect(flights.pop(0)))
                rows = self._next_rows(block=False)
                if rows or rows is None:
                    return rows
            if flights:
                return ()
        self._busy_since = None
        return self._next_rows(block=True)

    def _next_rows(self, block: bool) -> tuple[Row, ...] | None:
        """The rows of the next tick, waiting for some if told to; None when the engine stops."""
        with self._changed:
            while not self._stopping:
                rows = self._scheduler.next_rows()
                if rows or not block:
                    return rows
                self._changed.wait()
            return None

    def _parts(self, rows: tuple[Row, ...]) -> list[tuple[Row, ...]]:
        """What is launched as one batch: all rows, but each alone that is where its session's last frame
        raised, or the others' batch would be launched in parts again for every frame that raises.
        """
        with self._changed:
            apart = [row for row in rows if self._raised.get(row.frame.session) == row.stage]
        parts: list[tuple[Row, ...]] = [(row,) for row in apart]
        others = tuple(row for row in rows if row not in apart)
        return [*parts, others] if others else parts

    def _launch(self, runner: Runner, rows: tuple[Row, ...], again: bool) -> list[Flight]:
        """Launch one step. When it raises, nothing was committed: halve the batch until the row that
        cannot be made is alone, so that it takes nobody along.
        """
        started_at = time.monotonic()
        try:
            flight = Flight(rows, runner.launch(rows), started_at)
        except DeviceLostError:
            raise
        except OutOfMemoryError as error:
            self._degrade(len(rows), str(error))
            reason = OUT_OF_MEMORY
            if len(rows) == 1 and not again:
                self._starve("row")
        except Exception as error:
            log.warning("a batch of %d rows raised", len(rows), exc_info=error)
            reason = f"{type(error).__name__}: {error}"
        else:
            self._starving_since.pop("row", None)
            self._advance(rows)
            return [flight]
        if len(rows) > 1:
            half = len(rows) // 2
            return [*self._launch(runner, rows[:half], False), *self._launch(runner, rows[half:], False)]
        if again:
            return self._launch(runner, rows, False)
        with self._changed:
            if self._scheduler.drop(rows[0]) and reason != OUT_OF_MEMORY:
                self._raised[rows[0].frame.session] = rows[0].stage
        self._publish([Failed(rows[0].frame, reason)])
        return []

    def _advance(self, rows: tuple[Row, ...]) -> None:
        """Note that these rows made their step."""
        with self._changed:
            self._scheduler.advance(rows)
            for row in rows:
                if self._raised.get(row.frame.session) == row.stage:
                    del self._raised[row.frame.session]

    def _starve(self, what: str) -> None:
        """Note that not even one row or prompt found memory; raise DeviceLostError if that has gone on for
        long.
        """
        now = time.monotonic()
        if now - self._starving_since.setdefault(what, now) > STARVING:
            raise DeviceLostError(f"no memory even for one {what}, for {STARVING:g} s")

    def _degrade(self, rows: int, reason: str) -> None:
        """Go on with smaller batches: never with larger ones than before, since the parts of a batch may
        fail one after the other. None is smaller than one row, and why there was no memory even for that may
        have passed when there are more.
        """
        if rows == 1:
            self._tell_degraded("out of memory even for one row", reason)
            return
        with self._changed:
            self._scheduler.limit(min(rows // 2, self.capacity))
        words = f"out of memory with {rows} rows in a batch; from now on at most {self.capacity}"
        self._tell_degraded(words, reason)

    def _tell_degraded(self, words: str, reason: str) -> None:
        self.degraded = words
        log.error("%s (%s)", words, reason)

    def _collect(self, flight: Flight) -> list[Event]:
        finished = [row for row in flight.rows if row.finishes]
        try:
            images = flight.launched.collect()
        except DeviceLostError:
            raise
        except Exception as error:
            log.warning("the pictures of %d rows could not be collected", len(finished), exc_info=error)
            return [Failed(row.frame, f"{type(error).__name__}: {error}") for row in finished]
        now = time.monotonic()
        events: list[Event] = [Ticked(len(flight.rows), flight.launched.batch, now - flight.started_at)]
        for row, image in zip(finished, images, strict=True):
            if image is None:
                events.append(Failed(row.frame, "the picture came out non-finite"))
            else:
                events.append(Done(row.frame, image, row.admitted_at, now))
        return events

    # -- on the prompts' thread -------------------------------------------------------------------

    def _encode_prompts(self, runner: Runner) -> None:
        """Embed the texts that waiting frames lack: only those, so that a text nobody waits for any
        more costs nothing.
        """
        try:
            while (text := self._next_text()) is not None:
                self._encode(runner, text)
        except DeviceLostError as error:
            self._call(self._fail, str(error))
        except BaseException as error:
            log.exception("no more prompts are embedded")
            self._call(self._fail, f"{type(error).__name__}: {error}")

    def _encode(self, runner: Runner, text: str) -> None:
        self._encoding_since = time.monotonic()
        try:
            embedding = runner.encode(text)
        except DeviceLostError:
            raise
        except OutOfMemoryError as error:
            self._tell_degraded("out of memory even for one prompt", str(error))
            self._fail_text(text, OUT_OF_MEMORY)
            self._starve("prompt")
        except Exception as error:
            log.warning("a prompt could not be embedded", exc_info=error)
            self._fail_text(text, f"the prompt could not be embedded: {error}")
        else:
            self._starving_since.pop("prompt", None)
            with self._changed:
                self._prompts.store(text, embedding, self._scheduler.waiting)
                self._changed.notify()
        finally:
            self._encoding_since = None

    def _next_text(self) -> str | None:
        with self._changed:
            while not self._stopping:
                text = self._prompts.first_missing(self._scheduler.waiting)
                if text is not None:
                    return text
                self._text_missing.wait()
            return None

    def _fail_text(self, text: str, reason: str) -> None:
        with self._changed:
            frames = [frame for frame in self._scheduler.waiting if text in self._prompts.texts(frame)]
            for frame in frames:
                self._scheduler.withdraw(frame)
        self._publish([Taken(frame.session, frame.number) for frame in frames])
        self._publish([Failed(frame, reason) for frame in frames])

    def _join_prompts(self, prompts: threading.Thread) -> None:
        with self._changed:
            self._stopping = True
            self._text_missing.notify()
        prompts.join()

    # -- back to the event loop -------------------------------------------------------------------

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the event loop is closed; %s is not told", function)

    def _publish(self, events: list[Event]) -> None:
        if events:
            self._call(self._deliver, events)

    def _report(self, words: str) -> None:
        self.progress = words
        log.info(words)

    def _end_start(self, error: BaseException | None) -> None:
        if self._ready.done():
            return  # start() was cancelled
        if error is None:
            self.state = self.progress = "stopped" if self._stopping else "ready"
            self._ready.set_result(None)
        else:
            self.state, self.failure = "failed", str(error)
            self._ready.set_exception(error)

    def _fail(self, reason: str) -> None:
        if self.state == "ready":
            self.state, self.failure = "failed", reason
            self.on_failure(reason)

    def _watch(self) -> None:
        """The watchdog: a tick or an embedding that does not end in time means that the device hangs."""
        if self.state != "ready" or self._watchdog_timeout is None:
            return
        for since in (self._busy_since, self._encoding_since):
            if since is not None and time.monotonic() - since > self._watchdog_timeout:
                self._fail(f"the device did not answer within {self._watchdog_timeout:g} s")
        self._loop.call_later(self._watchdog_timeout / 4, self._watch)
