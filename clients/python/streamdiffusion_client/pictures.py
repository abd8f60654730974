"""The pictures of a stream, which outlive its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable


class Pictures:
    """Gives a caller's pictures one by one, and the last one again if its result was lost."""

    def __init__(self, source: AsyncIterable[bytes | None]) -> None:
        self._source = aiter(source)
        self._asking: asyncio.Future[bytes | None] | None = None
        self._last: bytes | None = None
        self._awaited = False
        self._lost = False
        self.ended = False
        """Whether there is nothing left to send."""

    @property
    def done(self) -> bool:
        """Whether the result of the last picture is there too."""
        return self.ended and not self._awaited

    async def next(self) -> bytes | None:
        """Wait for the next picture to send. Raises StopAsyncIteration if none is left."""
        if self._asking is None:
            self._asking = asyncio.ensure_future(anext(self._source))
        # Whoever waits here is cancelled when the connection is lost. Waited for like this, the source is
        # not: a generator would be at its end.
        await asyncio.wait({self._asking})
        try:
            self._last = self._asking.result()
            self._asking = None
        except StopAsyncIteration:
            if not self._lost:
                self.ended = True
                raise
        self._lost, self._awaited = False, True
        return self._last

    def seen(self) -> None:
        """Note that the result of the newest picture came."""
        self._awaited = False

    def lose(self) -> None:
        """Note that the connection was lost, and with it a result that had not come."""
        self._lost, self._awaited = self._lost or self._awaited, False
        self.ended = self.ended and not self._lost

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
