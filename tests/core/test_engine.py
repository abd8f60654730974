"""The real engine, its threads included, over a played runner. Nothing here sleeps to wait for something."""

from __future__ import annotations

import asyncio
import io
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import pytest

from app.core.engine import Engine
from app.core.messages import Done, Event, Failed, FrameIn, OutOfMemoryError, Row, SessionKey, Taken, Ticked
from app.utils.logger import RepeatsCounted
from tests.core.fakes import PATIENCE, PlayedBatch, PlayedRunner, frame

BUCKETS = (1, 2, 4, 8)


class Running:
    """An engine and what it delivered, in order."""

    def __init__(self, runner: PlayedRunner, engine: Engine) -> None:
        self.runner = runner
        self.engine = engine
        self.events: list[Event] = []
        self.failures: list[str] = []
        self._news = asyncio.Event()
        engine.on_failure = self._fail

    def deliver(self, events: list[Event]) -> None:
        self.events += events
        self._news.set()

    def _fail(self, reason: str) -> None:
        self.failures.append(reason)
        self._news.set()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until what was delivered makes this true."""
        while not predicate():
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), PATIENCE)

    def of(self, *kinds: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]

    def users(self, kind: type[Done | Failed | Taken]) -> list[str]:
        return [event.session.user for event in self.of(kind)]

    async def ended(self, count: int) -> None:
        await self.until(lambda: len(self.of(Done, Failed)) >= count)

    def submit(self, *frames: FrameIn) -> None:
        for one in frames:
            self.engine.submit(one)

    async def together(self, *frames: FrameIn) -> None:
        """Submit while a batch of somebody else's holds the device, so that these share the next tick."""
        for text in {text for one in frames for text in one.plan.texts}:
            self.engine._prompts.store(text, f"embedding of {text}", frames)
        self.runner.forward.close()
        self.submit(frame("holder", 0))
        await reached(self.runner.forward.reached)
        self.submit(*frames)
        self.runner.forward.open()
        await self.until(lambda: "holder" in self.users(Done))


async def reached(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE)


def at_rest(engine: Engine, threads: int = 2) -> list[object]:
    """The marks of the threads' present waits, once so many wait to be woken."""
    conditions: list[Any] = [engine._changed, engine._text_missing]  # of one lock
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with engine._changed:
            waiters = [waiter for condition in conditions for waiter in condition._waiters]
            if len(waiters) == threads:
                return waiters
        time.sleep(0.001)
    raise AssertionError("the engine does not come to rest")


@asynccontextmanager
async def running(runner: PlayedRunner | None = None, **options: Any) -> AsyncIterator[Running]:
    runner = runner or PlayedRunner()
    arguments: dict[str, Any] = {"buckets": BUCKETS, "stream_batch": False, **options}
    engine = Engine(lambda _report: runner, **arguments)
    context = Running(runner, engine)
    await engine.start(context.deliver)
    try:
        yield context
    finally:
        for gate in (runner.forward, runner.decoding, runner.encoding):
            gate.open()
        await asyncio.wait_for(engine.stop(), PATIENCE)
        assert not any(thread.is_alive() for thread in engine._threads)


# -- making frames ------------------------------------------------------------------------------------


async def test_a_frame_comes_back() -> None:
    async with running() as it:
        assert it.engine.description == {"model": "played"}
        sent = frame("a", 7, prompt="cat", steps=3)
        assert it.engine.submit(sent) is None
        await it.ended(1)
        (done,) = it.of(Done)
        assert done.frame is sent
        assert done.image.mean() == 7
        assert done.admitted_at <= done.finished_at
        assert [type(event) for event in it.events] == [Taken, Ticked, Ticked, Ticked, Done]
        for ticked in it.of(Ticked):
            assert (ticked.rows, ticked.batch) == (1, 1)
            assert ticked.seconds >= 0
    assert it.engine.state == "stopped"


async def test_users_share_a_batch() -> None:
    async with running() as it:
        await it.together(*(frame(user, steps=2) for user in "abc"))
        await it.ended(4)
        assert "launch a1 b1 c1" in it.runner.log
        assert "launch a2 b2 c2" in it.runner.log
        assert sorted(it.users(Done)[1:]) == ["a", "b", "c"]


async def test_the_place_is_free_before_the_picture_is_there() -> None:
    """The credit comes when the frame is taken, so that the next one travels meanwhile."""
    async with running() as it:
        it.runner.forward.close()
        it.submit(frame("a"))
        await it.until(lambda: it.users(Taken) == ["a"])
        assert not it.of(Done)


async def test_the_newest_frame_is_made() -> None:
    async with running() as it:
        it.runner.forward.close()
        it.submit(frame("a", 1))
        await reached(it.runner.forward.reached)
        second, third = frame("a", 2), frame("a", 3)
        assert it.engine.submit(second) is None
        assert it.engine.submit(third) is second
        assert it.engine.waiting == 1
        it.runner.forward.open()
        await it.ended(2)
        assert [done.frame.number for done in it.of(Done)] == [1, 3]
        assert it.engine.waiting == 0


async def test_results_are_collected_while_the_next_batch_runs() -> None:
    async with running() as it:
        it.runner.forward.close()
        it.runner.decoding.close()
        it.submit(frame("a", prompt="x"))
        await reached(it.runner.forward.reached)
        it.submit(frame("b", prompt="x"))
        it.runner.forward.open()
        await reached(it.runner.decoding.reached)
        # The first batch still decodes, and the second is on the device already.
        assert it.runner.log == ["launch a1", "wait a1", "launch b1", "collect a1"]
        it.runner.decoding.open()
        await it.ended(2)
        assert it.runner.log[4:] == ["wait b1", "collect b1"]


async def test_what_is_there_is_handed_out_first() -> None:
    """A picture that is ready when its forward pass ends does not wait for the next launch."""
    async with running() as it:
        it.runner.forward.close()
        it.submit(frame("a", prompt="x"))
        await reached(it.runner.forward.reached)
        it.submit(frame("b", prompt="x"))
        it.runner.forward.open()
        await it.ended(2)
        assert it.runner.log[:4] == ["launch a1", "wait a1", "collect a1", "launch b1"]


async def test_a_picture_waits_for_nobodys_next_frame() -> None:
    """Also one that is not decoded yet when its forward pass ends."""
    async with running() as it:
        it.runner.decoding.close()
        it.submit(frame("a"))
        await reached(it.runner.decoding.reached)
        it.runner.decoding.open()
        await it.ended(1)
        assert it.runner.log == ["launch a1", "wait a1", "collect a1"]


async def test_who_leaves_holds_nobody_up() -> None:
    async with running() as it:
        it.runner.forward.close()
        it.submit(frame("a", steps=5))
        await reached(it.runner.forward.reached)
        it.submit(frame("a", 2), frame("b"))
        it.engine.discard(SessionKey("a", 1))
        it.runner.forward.open()
        await it.ended(1)
        assert it.users(Done) == ["b"]
        assert it.runner.log.count("launch a1") == 1
        assert not any("a2" in line for line in it.runner.log)


async def test_a_lone_user_may_have_several_frames_in_flight() -> None:
    async with running(PlayedRunner(costs={1: 1.0, 2: 1.1}), stream_batch=True) as it:
        it.runner.forward.close()
        it.submit(frame("a", 1, steps=4))
        await reached(it.runner.forward.reached)
        it.submit(frame("a", 2, steps=4))
        it.runner.forward.open()
        await it.ended(2)
        assert "launch a2 a1" in it.runner.log
        assert [done.frame.number for done in it.of(Done)] == [1, 2]


async def test_each_frame_ends_once_whatever_happens() -> None:
    """Users at random, some of whose frames fail in every way that leaves the device alive."""
    chance = random.Random(1)
    async with running(PlayedRunner(memory=5)) as it:
        sent, replaced = [], 0
        for number in range(300):
            prompt = chance.choice(["x", "y", "z", "crash", "nan", "bad prompt"])
            one = frame(chance.choice("abcdefghijkl"), number, prompt=prompt, steps=chance.randint(1, 4))
            sent.append(one)
            replaced += it.engine.submit(one) is not None
            if chance.random() < 0.3:
                await asyncio.sleep(0)
            if chance.random() < 0.05:
                await it.ended(len(it.of(Done, Failed)) + 1)
        await it.ended(len(sent) - replaced)
        ends = Counter(event.frame.number for event in it.of(Done, Failed))
        assert set(ends.values()) == {1}
        assert len(ends) == len(sent) - replaced
        assert [event.number for event in it.of(Taken)] != []
        assert Counter(event.number for event in it.of(Taken)) == ends
        for event in it.of(Done):
            assert event.frame.plan.prompt in "xyz"
            assert event.image.mean() == event.frame.number % 256
        for event in it.of(Failed):
            assert event.frame.plan.prompt in ("crash", "nan", "bad prompt")
        taken = {event.number: place for place, event in enumerate(it.events) if isinstance(event, Taken)}
        for place, event in enumerate(it.events):
            if isinstance(event, Done | Failed):
                assert taken[event.frame.number] < place, "the credit comes first"


# -- prompts ------------------------------------------------------------------------------------------


async def test_prompts_are_embedded_beside_the_frames_of_others() -> None:
    async with running() as it:
        it.runner.encoding.close()
        it.submit(frame("a", prompt="slow"))
        await reached(it.runner.encoding.reached)
        it.submit(frame("b", prompt="slow too"))
        it.engine._prompts.store("known", "embedding of known", [])
        it.submit(frame("c", prompt="known"))
        await it.ended(1)
        assert it.users(Done) == ["c"]
        it.runner.encoding.open()
        await it.ended(3)
        assert it.runner.threads["encode"] == "prompts"
        assert it.runner.threads["launch"] == it.runner.threads["collect"] == "engine"


async def test_a_prompt_is_embedded_once() -> None:
    async with running() as it:
        for number in range(3):
            it.submit(frame("a", number, prompt="cat", negative="dog"), frame("b", number, prompt="cat"))
            await it.ended(2 * number + 2)
        assert sorted(it.runner.encoded) == ["cat", "dog"]


async def test_a_negative_prompt_without_effect_is_not_embedded() -> None:
    async with running(PlayedRunner(negative=False)) as it:
        it.submit(frame("a", 1, prompt="cat", negative="bad prompt"))
        await it.ended(1)
        assert it.users(Done) == ["a"]
        assert it.runner.encoded == ["cat"]


async def test_a_prompt_that_nobody_waits_for_any_more_is_not_embedded() -> None:
    async with running() as it:
        it.runner.encoding.close()
        it.submit(frame("a", 1, prompt="slow"))
        await reached(it.runner.encoding.reached)
        it.submit(frame("b", 1, prompt="replaced"), frame("c", 1, prompt="left"), frame("b", 2, prompt="new"))
        it.engine.discard(SessionKey("c", 1))
        it.runner.encoding.open()
        await it.ended(2)
        assert it.runner.encoded == ["slow", "new"]


async def test_the_least_recently_used_embedding_is_forgotten() -> None:
    async with running(prompt_cache_size=2) as it:
        for number, prompt in enumerate(["x", "y", "x", "z", "x", "y"]):
            it.submit(frame("a", number, prompt=prompt))
            await it.ended(number + 1)
        assert it.runner.encoded == ["x", "y", "z", "y"]


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_frames_with_more_texts_than_the_cache_holds_are_all_made(size: int) -> None:
    """Their embeddings must not push each other out before their turn comes."""
    async with running(prompt_cache_size=size) as it:
        it.runner.forward.close()
        it.submit(frame("holder"))
        await reached(it.runner.forward.reached)
        it.submit(*(frame(user, prompt=user, negative=f"no {user}") for user in "abcdefgh"))
        await asyncio.to_thread(at_rest, it.engine, 1)
        it.runner.forward.open()
        await it.ended(9)
        assert len(it.users(Done)) == 9
        assert len(it.runner.encoded) == len(set(it.runner.encoded))
        it.submit(frame("a", 2, prompt="new"))
        await it.ended(10)
        assert len(it.engine._prompts._embeddings) == size


async def test_a_prompt_that_cannot_be_embedded_fails_its_frames_only() -> None:
    async with running() as it:
        it.runner.encoding.close()
        it.submit(frame("holder", prompt="slow"))
        await reached(it.runner.encoding.reached)
        it.submit(frame("a", prompt="bad prompt"), frame("b", prompt="x"), frame("c", prompt="bad prompt"))
        it.runner.encoding.open()
        await it.ended(4)
        assert sorted(it.users(Failed)) == ["a", "c"]
        assert sorted(it.users(Done)) == ["b", "holder"]
        assert {event.reason for event in it.of(Failed)} == {
            "the prompt could not be embedded: no such words"
        }
        assert it.runner.encoded.count("bad prompt") == 1
        it.submit(frame("a", 2, prompt="x"))
        await it.ended(5)
        assert it.users(Done)[-1] == "a"
        assert it.engine.state == "ready"


# -- faults -------------------------------------------------------------------------------------------


async def test_a_row_that_raises_takes_nobody_along() -> None:
    async with running() as it:
        crowd = [frame(user, 1, prompt="crash" if user == "e" else "x", steps=2) for user in "abcdefg"]
        await it.together(*crowd)
        await it.ended(8)
        assert it.users(Failed) == ["e"]
        assert it.of(Failed)[0].reason == "RuntimeError: this row cannot be made"
        assert sorted(it.users(Done)[1:]) == list("abcdfg")
        assert it.engine.state == "ready"
        assert it.engine.degraded is None
        assert it.engine.capacity == BUCKETS[-1]
        # Its slot is free again, for all the rows there are; at first it is launched apart.
        for number, sizes in ((2, [1, 7]), (3, [8])):
            await it.together(*(frame(user, number, prompt="x") for user in "abcdefgh"))
            await it.ended(9 * number - 1)
            assert it.runner.launched[-len(sizes) :] == sizes


async def test_a_row_that_raises_in_every_frame_is_logged_as_one_error() -> None:
    """Alone, with others and when it is tried again."""
    stream = io.StringIO()
    handler = RepeatsCounted(logging.StreamHandler(stream), clock=lambda: 0.0)
    log = logging.getLogger("app.core.engine")
    log.addHandler(handler)
    try:
        async with running() as it:
            for number in range(5):
                it.submit(frame("a", number, prompt="crash"))
                await it.ended(number + 1)
            await it.together(*(frame(user, 9, prompt="crash") for user in "abcde"))
            await it.ended(11)
            assert len(it.of(Failed)) == 10
            assert stream.getvalue().count("Traceback") == 1
            it.submit(frame("a", 10, prompt="torn"))
            await it.ended(12)
    finally:
        log.removeHandler(handler)
    assert stream.getvalue().count("Traceback") == 2


async def test_who_raises_in_every_frame_costs_the_others_one_batch_in_parts() -> None:
    """After that the row is launched apart, until one passes where it raised."""
    async with running() as it:
        for number in (1, 2):
            crowd = (frame(user, number, prompt="crash" if user == "e" else "x") for user in "abcdefgh")
            await it.together(*crowd)
            await it.ended(9 * number)
        parts, whole = it.runner.launched[1:8], it.runner.launched[9:]
        assert parts == [8, 4, 4, 2, 1, 1, 2]
        assert whole == [1, 1, 7]
        assert it.users(Failed) == ["e", "e"]
        for number in (3, 4):
            await it.together(*(frame(user, number, prompt="x", steps=2) for user in "abcdefgh"))
            await it.ended(9 * number)
        assert it.runner.launched[13:] == [1, 7, 8, 1, 8, 8]


async def test_who_raises_late_is_launched_apart_only_then() -> None:
    async with running() as it:
        launch = it.runner.launch

        def late(rows: tuple[Row, ...]) -> PlayedBatch:
            if any(row.frame.plan.prompt == "late" and row.stage == 2 for row in rows):
                it.runner.note("raise", rows)
                raise RuntimeError("at the end")
            return launch(rows)

        it.runner.launch = late  # type: ignore[method-assign]
        for number in (1, 2):
            it.runner.log.clear()
            crowd = (frame(user, number, prompt="late" if user == "b" else "x", steps=3) for user in "abc")
            await it.together(*crowd)
            await it.ended(4 * number)
        assert [line for line in it.runner.log if line.startswith(("launch", "raise"))] == [
            "launch holder1",
            "launch a1 b1 c1",
            "launch a2 b2 c2",
            "raise b3",
            "raise b3",
            "launch a3 c3",
        ]


async def test_nothing_is_kept_of_who_raised_and_left() -> None:
    async with running() as it:
        it.submit(frame("a", 1, prompt="crash"))
        await it.ended(1)
        assert it.engine._raised == {SessionKey("a", 1): 0}
        it.engine.discard(SessionKey("a", 1))
        assert not it.engine._raised
        # Or who leaves while the row is launched that raises.
        launch = it.runner.launch

        def leave(rows: tuple[Row, ...]) -> PlayedBatch:
            it.engine.discard(rows[0].frame.session)
            return launch(rows)

        it.runner.launch = leave  # type: ignore[method-assign]
        it.submit(frame("b", 1, prompt="crash"))
        await it.ended(2)
        assert not it.engine._raised


async def test_a_row_that_raises_once_is_made() -> None:
    async with running() as it:
        it.runner.faults = [RuntimeError("a hiccup")]
        it.submit(frame("a"))
        await it.ended(1)
        assert it.users(Done) == ["a"]
        assert it.runner.launched == [1, 1]


async def test_a_row_that_raises_later_fails_then() -> None:
    async with running() as it:
        it.submit(frame("a", steps=3))
        it.runner.forward.close()
        await reached(it.runner.forward.reached)
        it.runner.faults = [RuntimeError("no"), RuntimeError("no")]
        it.runner.forward.open()
        await it.ended(1)
        assert it.users(Failed) == ["a"]
        assert it.runner.launched == [1, 1, 1]


async def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    async with running(PlayedRunner(memory=3)) as it:
        await it.together(*(frame(user, 1, steps=2) for user in "abcdefgh"))
        await it.ended(9)
        assert len(it.users(Done)) == 9
        assert not it.of(Failed)
        assert it.engine.capacity == 2
        assert it.engine.degraded is not None
        assert "out of memory" in it.engine.degraded
        assert it.engine.degraded.endswith("at most 2")
        launches = len(it.runner.launched)
        await it.together(*(frame(user, 2) for user in "abcdefgh"))
        await it.ended(18)
        assert max(it.runner.launched[launches:]) == 2
        assert it.engine.state == "ready"


async def test_a_limit_is_never_raised_again() -> None:
    """The second half of a batch fails at a size that the first half went below already."""
    async with running() as it:
        fits = [False, False, False, True, True, True, False]  # 8, 4, 2, 1, 1, 2 and the other 4 rows
        launch = it.runner.launch

        def scarce(rows: tuple[Row, ...]) -> PlayedBatch:
            if len(rows) > 1 or rows[0].frame.session.user != "holder":
                sizes.append(len(rows))
                if fits and not fits.pop(0):
                    raise OutOfMemoryError("no memory")
            return launch(rows)

        sizes: list[int] = []
        it.runner.launch = scarce  # type: ignore[method-assign]
        await it.together(*(frame(user) for user in "abcdefgh"))
        await it.ended(9)
        assert sizes == [8, 4, 2, 1, 1, 2, 4, 2, 2]
        assert not it.of(Failed)
        assert it.engine.capacity == 1


async def test_a_row_too_large_for_the_memory_fails_alone() -> None:
    async with running(PlayedRunner(memory=0)) as it:
        it.submit(frame("a"))
        await it.ended(1)
        assert it.of(Failed)[0].reason == "the device is out of memory"
        assert it.engine.degraded is not None
        it.runner.memory = 9
        await it.together(*(frame(user, 2) for user in "abcdefgh"))
        await it.ended(10)
        assert len(it.users(Done)) == 9
        assert it.runner.launched[-1] == 8, "it says nothing of larger batches"


async def test_no_memory_for_any_row_for_long_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(PlayedRunner(memory=0)) as it:
        it.submit(*(frame(user) for user in "abcdefgh"))
        await it.ended(8)
        assert len(it.of(Failed)) == 8, "all at once is not for long"
        monkeypatch.setattr("app.core.engine.STARVING", 0.0)
        it.runner.memory = 1
        it.submit(frame("a", 1))
        await it.ended(9)
        it.runner.memory = 0
        it.submit(frame("a", 2))
        await it.ended(10)
        assert it.engine.state == "ready"
        it.submit(frame("a", 3))
        await it.until(lambda: bool(it.failures))
        assert it.failures == ["DeviceLostError: no memory even for one row, for 0 s"]


async def test_no_memory_for_a_prompt_is_told_and_for_long_ends_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Though the frames of others are made."""
    monkeypatch.setattr("app.core.engine.STARVING", 0.0)
    async with running() as it:
        for number in (1, 2):
            it.submit(frame("a", number, prompt="long prompt"))
            await it.ended(2 * number - 1)
            assert it.of(Failed)[-1].reason == "the device is out of memory"
            assert it.engine.degraded == "out of memory even for one prompt"
            assert it.engine.state == "ready", "there was memory meanwhile"
            it.submit(frame("b", number, prompt=f"words {number}"))
            await it.ended(2 * number)
        it.submit(frame("a", 3, prompt="long prompt"))
        await it.ended(5)
        it.submit(frame("b", 3, prompt="words 1"))
        await it.ended(6)
        it.submit(frame("a", 4, prompt="long prompt"))
        await it.until(lambda: bool(it.failures))
        assert it.failures == ["no memory even for one prompt, for 0 s"]
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_non_finite_picture_fails_alone() -> None:
    async with running() as it:
        await it.together(frame("a", prompt="x"), frame("b", prompt="nan"), frame("c", prompt="x"))
        await it.ended(4)
        assert it.users(Failed) == ["b"]
        assert it.of(Failed)[0].reason == "the picture came out non-finite"
        assert sorted(it.users(Done)[1:]) == ["a", "c"]


async def test_pictures_that_cannot_be_collected_fail_and_the_engine_goes_on() -> None:
    async with running() as it:
        it.submit(frame("a", prompt="torn"))
        await it.ended(1)
        assert it.of(Failed)[0].reason == "RuntimeError: the pictures are torn"
        it.submit(frame("b"))
        await it.ended(2)
        assert it.users(Done) == ["b"]


async def test_a_device_lost_while_a_prompt_is_embedded_ends_the_engine() -> None:
    async with running(PlayedRunner(lost_at="encode")) as it:
        it.submit(frame("a"))
        await it.until(lambda: bool(it.failures))
        assert it.engine.failure == "the device fell off the bus"


@pytest.mark.parametrize("place", ["launch", "encode"])
async def test_whatever_ends_a_thread_ends_the_engine(place: str) -> None:
    """A pipeline may call `sys.exit`, which ends a thread without a word."""

    def leave(_: object) -> NoReturn:
        raise SystemExit(3)

    async with running() as it:
        setattr(it.runner, place, leave)
        it.submit(frame("a"))
        await it.until(lambda: bool(it.failures))
        assert it.failures == ["SystemExit: 3"]
        assert it.engine.state == "failed"


async def test_without_a_watchdog_a_tick_may_take_long() -> None:
    async with running(watchdog_timeout=None) as it:
        it.runner.forward.close()
        it.submit(frame("a"))
        await reached(it.runner.forward.reached)
        it.engine._watch()
        assert it.engine.state == "ready"
        it.runner.forward.open()
        await it.ended(1)


@pytest.mark.parametrize("place", ["launch", "wait", "collect"])
async def test_a_lost_device_ends_the_engine(place: str) -> None:
    async with running(PlayedRunner(lost_at=place)) as it:
        it.submit(frame("a", prompt="lost" if place == "launch" else "x"))
        await it.until(lambda: bool(it.failures))
        assert it.failures == ["DeviceLostError: the device fell off the bus"]
        assert it.engine.failure == it.failures[0]
        assert it.engine.state == "failed"
        assert not it.of(Done)
        await asyncio.to_thread(it.engine._threads[0].join, PATIENCE)
        assert not any(thread.is_alive() for thread in it.engine._threads)
    assert it.engine.state == "failed", "stopping does not make it well"


async def test_a_tick_that_hangs_ends_the_engine() -> None:
    """And if the device then tells that it is lost, nobody is told again."""
    async with running(PlayedRunner(lost_at="wait"), watchdog_timeout=0.05) as it:
        it.runner.forward.close()
        it.submit(frame("a"))
        await it.until(lambda: bool(it.failures))
        assert it.failures == ["the device did not answer within 0.05 s"]
        assert it.engine.state == "failed"
        it.runner.forward.open()
    await asyncio.sleep(0)
    assert len(it.failures) == 1


async def test_a_prompt_that_hangs_ends_the_engine() -> None:
    async with running(watchdog_timeout=0.05) as it:
        it.runner.encoding.close()
        it.submit(frame("a", prompt="slow words"))
        await it.until(lambda: bool(it.failures))
        assert it.failures == ["the device did not answer within 0.05 s"]
        it.runner.encoding.open()


async def test_doing_nothing_is_not_hanging() -> None:
    async with running() as it:
        it.submit(frame("a"))
        await it.ended(1)
        await asyncio.to_thread(at_rest, it.engine)
        it.engine._watchdog_timeout = 0.02
        it.engine._watch()
        await asyncio.sleep(0.1)  # not to wait for something, but for nothing
        assert it.engine.state == "ready"
        assert not it.failures


# -- beginning and end --------------------------------------------------------------------------------


async def test_progress_is_told_while_it_starts() -> None:
    reported, go_on = threading.Event(), threading.Event()
    runner = PlayedRunner()

    def create(report: Callable[[str], None]) -> PlayedRunner:
        report("loading weights")
        reported.set()
        assert go_on.wait(PATIENCE)
        return runner

    engine = Engine(create, buckets=BUCKETS, stream_batch=False)
    starting = asyncio.create_task(engine.start(lambda _events: None))
    await reached(reported)
    assert (engine.state, engine.progress) == ("starting", "loading weights")
    go_on.set()
    await starting
    assert engine.state == "ready"
    await engine.stop()


async def test_what_the_runner_raises_at_the_start_is_raised() -> None:
    error = LookupError("there is no such model")

    def create(_report: Callable[[str], None]) -> PlayedRunner:
        raise error

    engine = Engine(create, buckets=BUCKETS, stream_batch=False)
    with pytest.raises(LookupError) as caught:
        await engine.start(lambda _events: None)
    assert caught.value is error
    assert (engine.state, engine.failure) == ("failed", "there is no such model")
    await engine.stop()
    assert engine.state == "failed"
    assert not any(thread.is_alive() for thread in engine._threads)


async def test_a_start_that_fails_behind_the_runner_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a container allows no more threads."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "prompts":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    engine = Engine(lambda _report: PlayedRunner(), buckets=BUCKETS, stream_batch=False)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await asyncio.wait_for(engine.start(lambda _events: None), 5)
    assert (engine.state, engine.failure) == ("failed", "can't start new thread")
    await engine.stop()


async def test_it_may_be_stopped_while_it_starts() -> None:
    begun, go_on = threading.Event(), threading.Event()
    runner = PlayedRunner()

    def create(_report: Callable[[str], None]) -> PlayedRunner:
        begun.set()
        assert go_on.wait(PATIENCE)
        return runner

    engine = Engine(create, buckets=BUCKETS, stream_batch=False)
    starting = asyncio.create_task(engine.start(lambda _events: None))
    await reached(begun)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait_for(stopping, PATIENCE)
    await asyncio.wait_for(starting, PATIENCE)
    assert engine.state == "stopped"
    assert not any(thread.is_alive() for thread in engine._threads)


async def test_it_stops_with_frames_in_flight() -> None:
    async with running() as it:
        it.runner.forward.close()
        for user in "abcdef":
            it.submit(frame(user, steps=100_000))
        await reached(it.runner.forward.reached)
        stopping = asyncio.create_task(it.engine.stop())
        await asyncio.sleep(0)  # it has been told by now, and waits for the thread
        it.runner.forward.open()
        await asyncio.wait_for(stopping, PATIENCE)
        assert not it.of(Done)
        assert it.engine.state == "stopped"


async def test_it_stops_with_a_prompt_being_embedded() -> None:
    async with running() as it:
        it.runner.encoding.close()
        it.submit(frame("a", prompt="slow"))
        await reached(it.runner.encoding.reached)
        stopping = asyncio.create_task(it.engine.stop())
        it.runner.encoding.open()
        await asyncio.wait_for(stopping, 2)


async def test_stopping_waits_no_longer_than_the_watchdog_for_a_device_that_hangs() -> None:
    async with running(watchdog_timeout=0.05) as it:
        it.runner.forward.close()
        it.submit(frame("a"))
        await reached(it.runner.forward.reached)
        await asyncio.wait_for(it.engine.stop(), PATIENCE)
        assert it.engine._threads[0].is_alive()


async def test_an_engine_that_never_started_can_be_stopped() -> None:
    engine = Engine(lambda _report: PlayedRunner(), buckets=BUCKETS, stream_batch=False)
    await engine.stop()
    assert engine.state == "stopped"


async def test_an_idle_engine_does_nothing() -> None:
    """Both threads wait to be woken."""
    async with running() as it:
        it.submit(frame("a"))
        await it.ended(1)
        before = await asyncio.to_thread(at_rest, it.engine)
        await asyncio.sleep(0.1)  # not to wait for something, but for nothing
        assert at_rest(it.engine) == before, "somebody woke up"
