"""The bell that wakes whoever waits on the event loop."""

from __future__ import annotations

import asyncio

from app.utils.signal import Signal


async def test_who_has_waited_longest_goes_on_first() -> None:
    signal = Signal()
    woken: list[int] = []

    async def wait(number: int) -> None:
        assert await signal.wait()
        woken.append(number)

    waiting = [asyncio.create_task(wait(number)) for number in range(100)]
    await asyncio.sleep(0)
    signal.ring()
    await asyncio.gather(*waiting)
    assert woken == list(range(100))


async def test_who_no_longer_waits_is_forgotten() -> None:
    """A stream waits once for every frame, for hours."""
    signal = Signal()
    assert not await signal.wait(0.001)
    leaves = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.wait([leaves])
    assert not signal._waiters
