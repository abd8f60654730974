"""Waking everybody who waits on the event loop."""

from __future__ import annotations

import asyncio


class Signal:
    """A bell: whoever waits when it rings goes on. It keeps no state, so check the condition first.

    Unlike asyncio.Event with asyncio.wait_for, a wait with a timeout makes no task; a stream waits
    once for every frame. All methods belong to the event loop's thread.
    """

    def __init__(self) -> None:
        self._waiters: dict[asyncio.Future[bool], None] = {}  # in the order in which they came

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for the next ring. Returns False if ``timeout`` seconds went by first."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, _settle, waiter, False)
        self._waiters[waiter] = None
        try:
            return await waiter
        finally:
            del self._waiters[waiter]
            if timer is not None:
                timer.cancel()

    def ring(self) -> None:
        """Wake everybody who waits now, the one that has waited longest first."""
        for waiter in self._waiters:
            _settle(waiter, True)


def _settle(waiter: asyncio.Future[bool], rung: bool) -> None:
    if not waiter.done():
        waiter.set_result(rung)
