"""Who runs: stated cases first, then whatever order hypothesis finds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.core.messages import SLOTS_PER_ROW, FrameIn, Plan, Row, SessionKey
from app.core.scheduler import Scheduler


def frame(user: str, number: int = 1, *, steps: int = 1, prompt: str = "") -> FrameIn:
    plan = Plan("video", prompt, None, 0, tuple(range(10 * steps, 0, -10)), 1.0, 1.0)
    return FrameIn(SessionKey(user, 1), number, plan, None, received_at=0.0)


def create(*buckets: int, stream_batch: bool = False, free_rows: int = 1, **more: Any) -> Scheduler:
    arguments: dict[str, Any] = {"embeddings": lambda _frame: (), "clock": lambda: 0.0, **more}
    scheduler = Scheduler(buckets, stream_batch=stream_batch, **arguments)
    scheduler.learn({size: max(1.0, size / free_rows) for size in buckets})
    return scheduler


def users(rows: tuple[Row, ...]) -> str:
    return "".join(row.frame.session.user for row in rows)


def tick(scheduler: Scheduler) -> tuple[Row, ...]:
    rows = scheduler.next_rows()
    scheduler.advance(rows)
    return rows


# -- stated cases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("buckets", [(), (0, 1), (2, 1), (1, 1)])
def test_batch_sizes_are_checked(buckets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="positive and ascending"):
        create(*buckets)


def test_nothing_to_do() -> None:
    assert create(4).next_rows() == ()


def test_a_frame_makes_all_its_steps_in_one_slot() -> None:
    scheduler = create(2, clock=lambda: 7.5, embeddings=lambda found: (found.plan.prompt,))
    scheduler.offer(frame("a", steps=3, prompt="cat"))
    rows = [tick(scheduler)[0] for _ in range(3)]
    assert [row.stage for row in rows] == [0, 1, 2]
    assert [(row.begins, row.finishes) for row in rows] == [(True, False), (False, False), (False, True)]
    assert {row.slot for row in rows} == {rows[0].slot}
    assert {row.admitted_at for row in rows} == {7.5}
    assert {row.embeddings for row in rows} == {("cat",)}
    assert not scheduler.next_rows()
    assert not scheduler.in_flight
    assert not scheduler.waiting


def test_the_newest_frame_waits() -> None:
    scheduler = create(1)
    first, second = frame("a", 1), frame("a", 2)
    assert scheduler.offer(first) is None
    assert scheduler.offer(second) is first
    assert scheduler.waiting == (second,)
    assert not scheduler.withdraw(first)
    assert scheduler.withdraw(second)
    assert not scheduler.waiting


def test_a_tick_takes_those_in_flight_then_one_of_each_session() -> None:
    scheduler = create(4, stream_batch=False)
    for user in "ab":
        scheduler.offer(frame(user, steps=2))
    assert users(tick(scheduler)) == "ab"
    for user in "abcd":
        scheduler.offer(frame(user))
    assert users(tick(scheduler)) == "abcd"
    assert users(tick(scheduler)) == "ab"


def test_the_least_recently_served_session_is_first() -> None:
    scheduler = create(1)
    for user in "abc":
        scheduler.offer(frame(user))
    served = ""
    for _ in range(9):
        rows = tick(scheduler)
        served += users(rows)
        scheduler.offer(frame(users(rows)))
    assert served == "abcabcabc"


def test_who_was_quiet_is_not_behind_who_was_served() -> None:
    scheduler = create(1)
    for user in "abc":
        scheduler.offer(frame(user))
    assert users(tick(scheduler)) == "a"
    scheduler.offer(frame("a"))
    assert users(tick(scheduler)) == "b"
    scheduler.offer(frame("b"))
    assert users(tick(scheduler)) == "c"


def test_who_offers_without_pause_overtakes_nobody() -> None:
    scheduler = create(1)
    scheduler.offer(frame("a", 1))
    scheduler.offer(frame("b", 1))
    scheduler.offer(frame("a", 2))
    assert users(tick(scheduler)) == "b"


def test_newcomers_do_not_starve_those_who_are_there() -> None:
    """A session that was served waits behind newcomers once, not behind every one that ever comes."""
    scheduler = create(1)
    scheduler.offer(frame("a", 1))
    tick(scheduler)
    scheduler.offer(frame("a", 2))
    served = ""
    for user in "bcdefg":
        scheduler.offer(frame(user))
        served += users(tick(scheduler))
        scheduler.discard(SessionKey(user, 1))
    assert "a" in served[:2]


def test_frames_wait_for_their_embeddings() -> None:
    ready: set[str] = set()
    scheduler = create(4, embeddings=lambda found: () if found.session.user in ready else None)
    scheduler.offer(frame("a"))
    scheduler.offer(frame("b"))
    assert tick(scheduler) == ()
    ready.add("b")
    assert users(tick(scheduler)) == "b"
    ready.add("a")
    assert users(tick(scheduler)) == "a"


def test_a_session_alone_fills_only_rows_that_are_free() -> None:
    """Stream batch: in flight as many frames as a frame has steps, where rows cost nothing."""
    for free_rows, most in ((1, 1), (2, 2), (3, 3), (8, 4)):
        scheduler = create(1, 2, 3, 8, stream_batch=True, free_rows=free_rows)
        sizes = []
        for number in range(12):
            scheduler.offer(frame("a", number, steps=4))
            sizes.append(len(tick(scheduler)))
        assert max(sizes) == most


def test_padding_is_free() -> None:
    scheduler = create(1, 4, stream_batch=True)
    scheduler.learn({1: 1.0, 4: 1.9})
    for user in "ab":
        scheduler.offer(frame(user, steps=3))
    assert users(tick(scheduler)) == "ab"
    for user in "abc":
        scheduler.offer(frame(user, 2, steps=3))
    assert users(tick(scheduler)) == "abca", "the session without a row in flight, then padding"


def test_free_rows_keep_no_larger_batch_going() -> None:
    """Two sessions need a batch of two; what a third one left as padding is not filled again and again."""
    scheduler = create(2, 4, stream_batch=True)
    for number in range(20):
        for user in "abc" if number < 4 else "ab":
            scheduler.offer(frame(user, number, steps=4))
        rows = tick(scheduler)
        if number == 3:
            assert len(rows) == 4
        if number >= 8:
            assert len(rows) == 2


def test_a_lone_session_does_not_keep_the_batch_that_it_shared() -> None:
    """However many rows it had in what was padding then."""
    scheduler = create(1, 8, stream_batch=True, free_rows=5)
    for number in range(3):
        for user in "ab":
            scheduler.offer(frame(user, number, steps=4))
        tick(scheduler)
    scheduler.discard(SessionKey("b", 1))
    scheduler.offer(frame("a", 3, steps=4))
    assert users(tick(scheduler)) == "aaa"


def test_without_stream_batch_a_session_has_one_row() -> None:
    scheduler = create(1, 8, free_rows=8)
    for number in range(6):
        scheduler.offer(frame("a", number, steps=3))
        assert users(tick(scheduler)) == "a"


def test_one_step_leaves_nothing_to_overlap() -> None:
    scheduler = create(4, stream_batch=True)
    scheduler.offer(frame("a", 1))
    rows = scheduler.next_rows()
    scheduler.offer(frame("a", 2))
    scheduler.advance(rows)
    assert users(tick(scheduler)) == "a"


def test_with_a_limit_rows_take_turns() -> None:
    scheduler = create(1, 2, 4)
    for user in "abcd":
        scheduler.offer(frame(user, steps=3))
    assert users(tick(scheduler)) == "abcd"
    scheduler.limit(2)
    assert scheduler.capacity == 2
    for user in "ef":
        scheduler.offer(frame(user))
    assert [users(tick(scheduler)) for _ in range(5)] == ["ab", "cd", "ab", "cd", "ef"]


def test_a_frame_of_few_steps_does_not_wait_for_those_of_many() -> None:
    """Nor do all frames of few steps together take more than a row of them, who make way in turn."""
    scheduler = create(4)
    for user in "abcd":
        scheduler.offer(frame(user, steps=16))
    assert users(tick(scheduler)) == "abcd"
    for user in "efgh":
        scheduler.offer(frame(user))
    assert [users(tick(scheduler)) for _ in range(5)] == ["abce", "dabf", "cdag", "bcdh", "abcd"]


def test_a_frame_of_half_as_many_steps_waits_for_its_turn() -> None:
    scheduler = create(2)
    for user in "ab":
        scheduler.offer(frame(user, steps=5))
    tick(scheduler)
    scheduler.offer(frame("c", steps=2))
    assert [users(tick(scheduler)) for _ in range(5)] == ["ab", "ab", "ab", "ab", "c"]


def test_a_place_that_becomes_free_is_not_for_few_steps_alone() -> None:
    scheduler = create(3)
    for user in "abc":
        scheduler.offer(frame(user, steps=8 if user != "c" else 1))
    tick(scheduler)
    scheduler.offer(frame("d", steps=8))
    scheduler.offer(frame("e"))
    assert users(tick(scheduler)) == "ade"
    assert users(tick(scheduler)) == "bad"


@pytest.mark.parametrize(("rows", "capacity"), [(0, 1), (1, 1), (3, 3), (99, 4)])
def test_limits(rows: int, capacity: int) -> None:
    scheduler = create(1, 2, 4)
    scheduler.limit(rows)
    assert scheduler.capacity == capacity


def test_batch_sizes() -> None:
    scheduler = create(1, 3, 8)
    assert [scheduler.bucket(rows) for rows in range(1, 9)] == [1, 3, 3, 8, 8, 8, 8, 8]


def test_who_leaves_during_a_step_is_gone_after_it() -> None:
    scheduler = create(2)
    scheduler.offer(frame("a", steps=2))
    scheduler.offer(frame("b", steps=2))
    rows = scheduler.next_rows()
    scheduler.offer(frame("a", 2))
    scheduler.discard(SessionKey("a", 1))
    scheduler.advance(rows)
    assert users(scheduler.in_flight) == "b"
    assert not scheduler.waiting


def test_a_slot_rests_for_a_tick() -> None:
    scheduler = create(1, 3)
    before: set[int] = set()
    for tick in range(10):
        for user in "abc"[: 1 + tick % 3]:
            scheduler.offer(frame(user, tick))
        rows = scheduler.next_rows()
        assert not before & {row.slot for row in rows}
        before = {row.slot for row in rows}
        scheduler.advance(rows)


def test_a_row_is_dropped_once() -> None:
    scheduler = create(1)
    scheduler.offer(frame("a", 1, steps=2))
    (first,) = scheduler.next_rows()
    scheduler.drop(first)
    scheduler.offer(frame("b", 1))
    scheduler.advance(scheduler.next_rows())
    scheduler.offer(frame("c", 1, steps=2))
    (second,) = scheduler.next_rows()
    assert second.slot == first.slot
    scheduler.drop(first)
    assert scheduler.in_flight == (second,)


H100 = {1: 5.2, 2: 7.4, 4: 11.6, 8: 20.8, 16: 39.6}
"""Milliseconds of a tick by batch size, SD-Turbo."""


@pytest.mark.parametrize(
    ("crowd", "sizes"),
    [
        (3, [3]),
        (4, [4]),
        (5, [4, 1]),
        (6, [4, 2]),
        (7, [7]),
        (12, [8, 4]),
        (13, [8, 4, 1]),
        (15, [15]),
        (16, [16]),
    ],
)
def test_two_ticks_that_are_done_before_one_with_padding(crowd: int, sizes: list[int]) -> None:
    scheduler = create(*H100)
    scheduler.learn(H100)
    names = "abcdefghijklmnop"[:crowd]
    for user in names:
        scheduler.offer(frame(user))
    ticks = [tick(scheduler) for _ in sizes]
    assert [len(rows) for rows in ticks] == sizes
    assert "".join(map(users, ticks)) == names, "in the order in which they came"
    assert tick(scheduler) == ()


def test_who_did_not_fit_is_first_in_the_next_tick() -> None:
    scheduler = create(*H100)
    scheduler.learn(H100)
    for user in "abcde":
        scheduler.offer(frame(user))
    assert users(tick(scheduler)) == "abcd"
    for user in "abc":
        scheduler.offer(frame(user, 2))
    assert users(tick(scheduler)) == "eabc"


def test_rows_in_flight_are_carried_whatever_the_padding() -> None:
    scheduler = create(*H100)
    scheduler.learn(H100)
    for user in "abcd":
        scheduler.offer(frame(user, steps=2))
    assert users(tick(scheduler)) == "abcd"
    scheduler.offer(frame("e"))
    assert users(tick(scheduler)) == "abcd"
    assert users(tick(scheduler)) == "e"


def test_what_rows_in_flight_leave_of_their_batch_is_filled() -> None:
    scheduler = create(*H100)
    scheduler.learn(H100)
    for user in "abcdefg":
        scheduler.offer(frame(user, steps=1 if user in "ab" else 2))
    assert users(tick(scheduler)) == "abcdefg"
    scheduler.offer(frame("h"))
    assert users(tick(scheduler)) == "cdefgh", "five of them take a batch of eight in any case"


def test_who_would_wait_long_for_a_place_is_carried_whatever_the_padding() -> None:
    """Two ticks are done before one with padding only if the second has a place."""
    scheduler = create(*H100)
    scheduler.learn(H100)
    for user in "abcd":
        scheduler.offer(frame(user, steps=8))
    tick(scheduler)
    scheduler.offer(frame("e", 1))
    assert users(tick(scheduler)) == "abcde"
    scheduler.offer(frame("e", 2, steps=3))
    assert [users(tick(scheduler)) for _ in range(7)] == ["abcd"] * 6 + ["e"], "six ticks for three steps"
    tick(scheduler)
    for user in "abcd":
        scheduler.offer(frame(user, 2, steps=8))
    tick(scheduler)
    scheduler.offer(frame("f", steps=3))
    assert users(tick(scheduler)) == "abcdf", "it would be seven"


def test_of_unknown_costs_nothing_is_assumed() -> None:
    scheduler = create(1, 8, stream_batch=True)
    scheduler.learn({})
    for user in "abcde":
        scheduler.offer(frame(user))
    assert len(tick(scheduler)) == 5


# -- any order ----------------------------------------------------------------------------------------


USERS = st.sampled_from("abcdef")
PROMPTS = st.sampled_from("xyz")


class AnyOrder(RuleBasedStateMachine):
    """Users come, offer, change their mind and leave; rows fail; memory runs out; ticks go on."""

    buckets: tuple[int, ...] = (1, 2)
    free_rows = 1
    stream_batch = False
    most_steps = 2

    def __init__(self) -> None:
        super().__init__()
        self.missing: set[str] = set()
        self.scheduler = create(
            *self.buckets,
            stream_batch=self.stream_batch,
            free_rows=self.free_rows,
            embeddings=lambda found: None if found.plan.prompt in self.missing else (),
        )
        self.rows = self.buckets[-1]
        self.count = 0
        self.epochs: Counter[str] = Counter()
        self.present: set[SessionKey] = set()
        self.waiting: dict[SessionKey, FrameIn] = {}
        self.flying: dict[int, FrameIn] = {}  # by number
        self.ended: Counter[int] = Counter()  # by number
        self.patience: dict[SessionKey, int] = {}  # ticks that the waiting frame may still have to wait
        self.stood: dict[int, int] = {}  # ticks that a row in flight was left out, by number
        self.slots: set[int] = set()  # of the last tick

    # What happens around the scheduler.

    @rule(user=USERS, steps=st.integers(1, 4), prompt=PROMPTS)
    def offer(self, user: str, steps: int, prompt: str) -> None:
        self.count += 1
        key = SessionKey(user, self.epochs[user])
        plan = Plan("video", prompt, None, 0, tuple(range(min(steps, self.most_steps))), 1.0, 1.0)
        new = FrameIn(key, self.count, plan, None, received_at=0.0)
        assert self.scheduler.offer(new) is self.waiting.get(key)
        self.waiting[key] = new
        self.present.add(key)
        self.patience.setdefault(key, self.bound())

    @rule(user=USERS)
    def leave(self, user: str) -> None:
        key = SessionKey(user, self.epochs[user])
        self.epochs[user] += 1
        self.present.discard(key)
        self.scheduler.discard(key)
        self.waiting.pop(key, None)
        self.patience.pop(key, None)
        for flying in [flying for flying in self.flying.values() if flying.session == key]:
            self.end(flying)

    @rule(user=USERS)
    def withdraw(self, user: str) -> None:
        key = SessionKey(user, self.epochs[user])
        self.patience.pop(key, None)
        waits = self.waiting.pop(key, None)
        if waits is not None:
            assert self.scheduler.withdraw(waits)
            assert not self.scheduler.withdraw(waits)

    @rule(prompts=st.sets(PROMPTS))
    def encode(self, prompts: set[str]) -> None:
        self.missing = prompts

    @rule(rows=st.integers(0, 8))
    def limit(self, rows: int) -> None:
        self.scheduler.limit(rows)
        assert self.scheduler.capacity == max(1, min(rows, self.rows))

    @rule(fails=st.integers(0, 20), leaves=st.none() | USERS)
    def tick(self, fails: int = 20, leaves: str | None = None) -> None:
        rows = self.scheduler.next_rows()
        self.check(rows)
        if leaves is not None:  # while the device works
            self.leave(leaves)
        if fails < len(rows):
            self.scheduler.drop(rows[fails])
            self.end(rows[fails].frame)
            rows = (*rows[:fails], *rows[fails + 1 :])
        self.scheduler.advance(rows)
        for row in rows:
            if row.finishes:
                self.end(row.frame)

    @rule(ticks=st.integers(2, 20))
    def go_on(self, ticks: int) -> None:
        for _ in range(ticks):
            self.tick()

    @rule(newcomers=st.integers(1, 20))
    def rush(self, newcomers: int) -> None:
        """One after the other they come, wait for a tick, and leave."""
        for _ in range(newcomers):
            self.offer("newcomer", 1, "x")
            self.tick()
            self.leave("newcomer")

    @rule(steps=st.integers(1, 4))
    def crowd(self, steps: int) -> None:
        """Everybody at once."""
        for user in "abcdef":
            self.offer(user, steps, "x")

    # What must hold.

    def bound(self) -> int:
        """Ticks after which a frame that is ready must run: the session's own row in flight ends, then
        the others' do, then everybody who is there now may be served once; each as slowly as can be.
        """
        return self.most_steps * (2 * self.rows + len(self.present))

    def end(self, frame: FrameIn) -> None:
        if self.flying.pop(frame.number, None) is not None:
            self.ended[frame.number] += 1
        self.stood.pop(frame.number, None)

    def check(self, rows: tuple[Row, ...]) -> None:
        assert len(rows) <= self.scheduler.capacity
        assert len({row.slot for row in rows}) == len(rows)
        for row in rows:
            if row.frame.number not in self.flying:
                assert row.begins
                assert row.slot not in self.slots, "the last batch may still be using it"
                assert row.frame is self.waiting.pop(row.frame.session), "the newest one runs"
                assert row.frame.plan.prompt not in self.missing
                self.flying[row.frame.number] = row.frame
                self.patience.pop(row.frame.session)
            assert not self.ended[row.frame.number]
        self.slots = {row.slot for row in rows}
        if not rows:
            assert not self.flying
            assert not self.ready()
        self.check_stream_batch(rows)
        self.check_nobody_starves(rows)

    def ready(self) -> list[SessionKey]:
        return [key for key, waits in self.waiting.items() if waits.plan.prompt not in self.missing]

    def check_stream_batch(self, rows: tuple[Row, ...]) -> None:
        in_flight = Counter(flying.session for flying in self.flying.values())
        if not self.stream_batch:
            assert all(count == 1 for count in in_flight.values())
            return
        # A frame that begins while its session has another one in flight.
        again = [row for row in rows if row.begins and in_flight[row.frame.session] > 1]
        if again:
            sessions = len({row.frame.session for row in rows})
            assert len(rows) <= max(self.scheduler.bucket(sessions), self.free_rows)
            assert all(in_flight[row.frame.session] <= len(row.frame.plan.timesteps) for row in again)
            assert all(in_flight[key] for key in self.ready()), "somebody without a row had no place"

    def check_nobody_starves(self, rows: tuple[Row, ...]) -> None:
        ran = {row.frame.number for row in rows}
        for number in self.flying:
            self.stood[number] = 0 if number in ran else self.stood.get(number, 0) + 1
            assert self.stood[number] < self.rows, "rows take turns"
        for key in self.waiting.keys() - self.ready():
            self.patience[key] = self.bound()
        for key in self.ready():
            self.patience[key] -= 1
            assert self.patience[key] > 0, "it waits for ever"

    @invariant()
    def nothing_leaks(self) -> None:
        in_flight = self.scheduler.in_flight
        assert {row.frame.number for row in in_flight} == set(self.flying)
        assert set(self.scheduler.waiting) == set(self.waiting.values())
        assert all(count == 1 for count in self.ended.values())
        slots = [*self.scheduler._free_slots, *(row.slot for row in in_flight)]
        assert sorted(slots) == list(range(SLOTS_PER_ROW * self.rows))
        assert set(self.scheduler._last_served) <= self.present

    def teardown(self) -> None:
        """Left alone, everything that waits or flies ends."""
        self.missing = set()
        for _ in range(self.most_steps * (len(self.flying) + len(self.waiting))):
            self.tick()
        assert not self.flying
        assert not self.waiting
        assert not self.scheduler.next_rows()


class AnyOrderWithStreamBatch(AnyOrder):
    buckets = (1, 2, 3, 6)
    free_rows = 2
    stream_batch = True
    most_steps = 4


class AnyOrderWithPadding(AnyOrder):
    """Four rows are carried as two and two, five as two, two and one."""

    buckets = (1, 2, 6)
    stream_batch = True
    most_steps = 3


class AnyOrderWithManySteps(AnyOrder):
    buckets = (1, 2, 3)
    most_steps = 4


EFFORT = settings(max_examples=60, stateful_step_count=50, deadline=None, derandomize=True)
TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = EFFORT
TestAnyOrderWithStreamBatch = AnyOrderWithStreamBatch.TestCase
TestAnyOrderWithStreamBatch.settings = EFFORT
TestAnyOrderWithPadding = AnyOrderWithPadding.TestCase
TestAnyOrderWithPadding.settings = EFFORT
TestAnyOrderWithManySteps = AnyOrderWithManySteps.TestCase
TestAnyOrderWithManySteps.settings = EFFORT
