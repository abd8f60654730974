"""When the next batch is launched."""

from __future__ import annotations

import pytest

from app.core.pace import MARGIN, Pace


def test_a_size_that_never_ran_is_waited_for() -> None:
    pace = Pace()
    pace.launched(0.001)
    assert pace.due(1, 10.0) is None
    pace.ended(1, 0.004, 10.1)
    assert pace.due(2, 10.2) is None


def test_a_launch_ends_when_the_forward_pass_does() -> None:
    pace = Pace()
    pace.launched(0.001)
    pace.ended(4, 0.020, 10.0)
    assert pace.due(4, 9.99) == pytest.approx(10.020 - 0.001 - MARGIN)  # it ran when the one before ended
    assert pace.due(4, 11.0) == pytest.approx(11.020 - 0.001 - MARGIN)  # the device had nothing to do


def test_what_was_held_up_once_does_not_count() -> None:
    pace = Pace()
    pace.launched(0.002)
    for forward, counts in ((0.020, 0.020), (2.0, 0.020), (0.030, 0.030), (0.025, 0.025), (0.040, 0.025)):
        pace.ended(1, forward, 5.0)
        assert pace.due(1, 5.0) == pytest.approx(5.0 + counts - 0.002 - MARGIN)


def test_a_launch_longer_than_the_forward_pass_is_due_at_once() -> None:
    pace = Pace()
    pace.launched(0.010)
    pace.ended(1, 0.004, 1.0)
    due = pace.due(1, 1.0)
    assert due is not None
    assert due < 1.0
