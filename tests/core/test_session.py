"""Sessions and their registry, with a played engine and nobody listening but the test."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest

from app.core.messages import Done, Failed, FrameIn, Plan, SessionKey, Tag, Taken, Ticked
from app.core.session import Counters, Ending, Registry, ServerFullError, Session

PLAN = Plan("image", "", None, 0, (999,), 1.0, 1.0)
PICTURE = np.zeros((8, 8, 3), np.uint8)


@dataclass
class Frames:
    """Keeps what waits, as the engine does."""

    waiting: dict[SessionKey, FrameIn] = field(default_factory=dict)
    discarded: list[SessionKey] = field(default_factory=list)

    def submit(self, frame: FrameIn) -> FrameIn | None:
        replaced = self.waiting.get(frame.session)
        self.waiting[frame.session] = frame
        return replaced

    def discard(self, session: SessionKey) -> None:
        self.waiting.pop(session, None)
        self.discarded.append(session)

    def take(self, session: Session) -> FrameIn:
        return self.waiting.pop(session.key)


@dataclass
class Ear:
    heard: list[str] = field(default_factory=list)

    def taken(self) -> None:
        self.heard.append("taken")

    def failed(self, reason: str) -> None:
        self.heard.append(f"failed: {reason}")

    def shown(self) -> None:
        self.heard.append("shown")

    def ended(self, ending: Ending) -> None:
        self.heard.append(ending.value)


@pytest.fixture
def frames() -> Frames:
    return Frames()


@pytest.fixture
def registry(frames: Frames) -> Registry:
    return Registry(frames, limit=2)


def offer(session: Session, **more: Tag) -> None:
    session.offer(PLAN, PICTURE, received_at=1.0, revision=0, tag=more.get("tag", Tag()))


def taken(frame: FrameIn) -> Taken:
    return Taken(frame.session, frame.number)


def done(frame: FrameIn) -> Done:
    return Done(frame, PICTURE + np.uint8(frame.number), 2.0, 3.0)


def test_a_frame_is_offered_taken_and_shown(registry: Registry, frames: Frames) -> None:
    ear = Ear()
    session = registry.connect("ann", "image", ear)
    offer(session, tag=Tag(5, 6.0))
    before = session.waiting
    frame = frames.take(session)
    registry.deliver([taken(frame), done(frame)])
    assert ear.heard == ["taken", "shown"]
    assert (before, session.waiting) == (True, False)
    assert session.result is not None
    assert (session.result.number, session.result.tag) == (1, Tag(5, 6.0))
    assert session.counters == Counters(results=1)


def test_a_newer_frame_replaces_the_one_that_waits(registry: Registry, frames: Frames) -> None:
    session = registry.connect("ann", "image", Ear())
    for _ in range(3):
        offer(session)
    assert session.counters.dropped == 2
    assert frames.take(session).number == 3


def test_news_of_an_older_frame_does_not_free_the_place_of_a_newer(
    registry: Registry, frames: Frames
) -> None:
    session = registry.connect("ann", "image", Ear())
    offer(session)
    first = frames.take(session)
    offer(session)
    registry.deliver([taken(first)])
    assert session.waiting


def test_results_never_go_back_in_time(registry: Registry, frames: Frames) -> None:
    session = registry.connect("ann", "image", Ear())
    made = []
    for _ in range(2):
        offer(session)
        made.append(frames.take(session))
    registry.deliver([done(made[1]), done(made[0])])
    assert session.result is not None
    assert session.result.number == 2
    assert session.counters == Counters(results=1, dropped=1)


def test_failures_are_told(registry: Registry, frames: Frames) -> None:
    ear = Ear()
    session = registry.connect("ann", "image", ear)
    offer(session)
    registry.deliver([Failed(frames.take(session), "no")])
    assert ear.heard == ["failed: no"]
    assert session.counters.failed == 1


def test_a_skip_repeats_the_last_result(registry: Registry, frames: Frames) -> None:
    ear = Ear()
    session = registry.connect("ann", "image", ear)
    session.skip(received_at=1.0, revision=0, tag=Tag(0))
    assert ear.heard == [], "there is nothing to repeat yet"
    offer(session, tag=Tag(1))
    registry.deliver([done(frames.take(session))])
    before = session.result
    session.skip(received_at=9.0, revision=0, tag=Tag(2))
    assert before is not None
    assert session.result is not None
    assert session.result.tag == Tag(2)
    assert session.result.repeated
    assert session.result.image is before.image
    assert session.result.encodings is before.encodings
    assert session.counters == Counters(results=1, skipped=2)


def test_a_skip_does_not_repeat_an_older_picture_than_the_one_under_way(
    registry: Registry, frames: Frames
) -> None:
    ear = Ear()
    session = registry.connect("ann", "image", ear)
    offer(session)
    registry.deliver([done(frames.take(session))])
    offer(session)
    second = frames.take(session)
    for n in (3, 4):
        session.skip(received_at=9.0, revision=0, tag=Tag(n))
    assert ear.heard == ["shown"]
    registry.deliver([done(second)])
    assert session.result is not None
    assert (session.result.number, session.result.tag, session.result.repeated) == (2, Tag(4), True)
    assert session.result.received_at == 9.0


def test_a_skip_gives_way_to_a_newer_frame(registry: Registry, frames: Frames) -> None:
    session = registry.connect("ann", "image", Ear())
    offer(session, tag=Tag(1))
    first = frames.take(session)
    session.skip(received_at=9.0, revision=0, tag=Tag(2))
    offer(session, tag=Tag(3))
    second = frames.take(session)
    tags = []
    for frame in (first, second):
        registry.deliver([done(frame)])
        assert session.result is not None
        tags.append((session.result.tag, session.result.repeated))
    assert tags == [(Tag(1), False), (Tag(3), False)]


def test_a_skip_repeats_nothing_when_the_frame_that_it_is_like_fails(
    registry: Registry, frames: Frames
) -> None:
    """The client is told of the failure; the picture before would be of another frame."""
    ear = Ear()
    session = registry.connect("ann", "image", ear)
    offer(session, tag=Tag(1))
    registry.deliver([done(frames.take(session))])
    offer(session, tag=Tag(2))
    second = frames.take(session)
    session.skip(received_at=9.0, revision=0, tag=Tag(3))
    registry.deliver([Failed(second, "no")])
    session.skip(received_at=9.0, revision=0, tag=Tag(4))  # it was compared before the filter knew
    assert ear.heard == ["shown", "failed: no"]
    assert session.result is not None
    assert session.result.tag == Tag(1)


def test_the_same_user_takes_over(registry: Registry, frames: Frames) -> None:
    ear = Ear()
    old = registry.connect("ann", "image", ear)
    offer(old)
    frame = frames.waiting[old.key]
    new = registry.connect("ann", "image", Ear())
    assert ear.heard == ["taken over"]
    assert old.ending is Ending.TAKEN_OVER
    assert frames.discarded == [old.key]
    registry.deliver([taken(frame), done(frame)])
    assert new.result is None
    assert old.result is None
    registry.end(old, Ending.LEFT)
    assert registry.find("ann") is new


def test_a_frame_after_the_end_is_nobodys(registry: Registry, frames: Frames) -> None:
    session = registry.connect("ann", "image", Ear())
    registry.end(session, Ending.IDLE)
    offer(session)
    assert not frames.waiting


async def test_the_end_can_be_waited_for(registry: Registry) -> None:
    session = registry.connect("ann", "image", Ear())
    waiting = asyncio.create_task(session.wait_until_over())
    await asyncio.sleep(0)
    assert not waiting.done()
    registry.end(session, Ending.LEFT)
    await waiting
    await session.wait_until_over()


def test_room_is_limited_but_not_for_who_is_here(registry: Registry) -> None:
    registry.connect("a", "image", Ear())
    b = registry.connect("b", "image", Ear())
    assert registry.full
    with pytest.raises(ServerFullError):
        registry.connect("c", "image", Ear())
    registry.connect("a", "image", Ear())
    registry.end(b, Ending.LEFT)
    registry.connect("c", "image", Ear())


def test_counters_are_kept_after_the_end(registry: Registry, frames: Frames) -> None:
    session = registry.connect("ann", "image", Ear())
    offer(session)
    registry.deliver([done(frames.take(session))])
    registry.end(session, Ending.LEFT)
    registry.connect("ann", "image", Ear()).counters.errors += 1
    assert registry.counters == Counters(results=1, errors=1)


def test_ticks_and_published_results_are_observed(frames: Frames) -> None:
    seen: list[object] = []
    registry = Registry(frames, observe=seen.append)
    session = registry.connect("ann", "image", Ear())
    made = []
    for _ in range(2):
        offer(session)
        made.append(done(frames.take(session)))
    tick = Ticked(1, 1, 0.1)
    stranger = Done(FrameIn(SessionKey("bob", 1), 1, PLAN, None, 0.0), PICTURE, 0.0, 0.0)
    registry.deliver([tick, stranger, made[1], made[0]])
    assert seen == [tick, made[1]], "neither a stranger's nor one that came too late"


async def test_everybody_who_watches_is_woken(registry: Registry, frames: Frames) -> None:
    session = registry.connect("ann", "image", Ear())
    watching = [asyncio.create_task(session.newer(0)) for _ in range(3)]
    await asyncio.sleep(0)
    offer(session)
    registry.deliver([done(frames.take(session))])
    assert await asyncio.gather(*watching) == [session.result] * 3
    assert await session.newer(0) is session.result
    assert await session.newer(1, wait=0.01) is None


async def test_one_who_stops_watching_disturbs_nobody(registry: Registry, frames: Frames) -> None:
    session = registry.connect("ann", "image", Ear())
    leaves, stays = (asyncio.create_task(session.newer(0)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    offer(session)
    registry.deliver([done(frames.take(session))])
    assert await stays is session.result


async def test_who_watches_is_let_go_at_the_end(registry: Registry) -> None:
    session = registry.connect("ann", "image", Ear())
    watching = asyncio.create_task(session.newer(0))
    await asyncio.sleep(0)
    registry.end_all(Ending.SHUTDOWN)
    assert await watching is None
    assert await session.newer(0) is None


async def test_waiting_for_a_user(registry: Registry) -> None:
    assert await registry.wait_for("ann", within=0.01) is None
    waiting = asyncio.create_task(registry.wait_for("ann", within=5))
    await asyncio.sleep(0)
    registry.connect("bob", "image", Ear())
    ann = registry.connect("ann", "image", Ear())
    assert await waiting is ann


async def test_who_waits_for_a_user_is_let_go_at_the_end(registry: Registry) -> None:
    waiting = asyncio.create_task(registry.wait_for("ann", within=5))
    await asyncio.sleep(0)
    registry.end_all(Ending.SHUTDOWN)
    assert await asyncio.wait_for(waiting, timeout=1) is None
