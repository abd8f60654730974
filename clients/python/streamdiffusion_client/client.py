"""One user's connection, opened again by itself when it is lost.

Every frame carries all parameters, and is a pure function of them and of its picture. So a change is in
force from the next frame on, and a frame that was lost with a connection can simply be sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote, urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from streamdiffusion_client.errors import FINAL_CODES, FrameError, UnreachableError, refusal
from streamdiffusion_client.pictures import Pictures
from streamdiffusion_client.result import Result, decode_result

FIRST_DELAY, LAST_DELAY = 0.25, 5.0
"""Seconds between attempts to connect again; doubled from the first to the last until one is welcome."""

LAST_WORDS = 1.0
"""Seconds that a close may come after the error that announces it."""


class Client:
    """A connection to a server.

    Args:
        server: its address, for example ``http://localhost:8000``.
        user: 1 to 128 letters, digits and ``- . _ ~``; random by default.
        mode: ``image``, where every frame has a picture, or ``video``, where none has.
        parameters: of the first frame; `parameters` can be changed at any time.
        format: of the results' pictures.
        quality: of the results' pictures, 1 to 100; None is the server's own.

    Use it as an async context manager, and from one task at a time. Entering it raises UnreachableError where
    there is no server; later a lost connection is opened again.
    """

    def __init__(
        self,
        server: str = "http://localhost:8000",
        *,
        user: str | None = None,
        mode: Literal["image", "video"] = "image",
        parameters: Mapping[str, Any] | None = None,
        format: Literal["jpeg", "webp"] = "jpeg",  # noqa: A002 - the name in the protocol
        quality: int | None = None,
    ) -> None:
        self.user = user or uuid.uuid4().hex
        self.mode = mode
        self.parameters: dict[str, Any] = dict(parameters or {})
        query: dict[str, Any] = {"mode": mode, "output": "ws", "format": format}
        if quality is not None:
            query["quality"] = quality
        if not server.startswith(("http://", "https://")):
            raise ValueError(f"server: an address such as http://localhost:8000 is needed, not {server!r}")
        base, name = server.rstrip("/"), quote(self.user, safe="")
        self._server = server
        self._address = f"{base.replace('http', 'ws', 1)}/api/ws/{name}?{urlencode(query)}"
        self.stream_address = f"{base}/api/stream/{name}"
        """Where the results can also be watched, as an image stream."""
        self._socket: ClientConnection | None = None
        self._credit = False
        self._frame_id = 0
        self._delay = FIRST_DELAY

    async def __aenter__(self) -> Client:
        await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnect."""
        if self._socket is not None:
            await self._socket.close()
            self._socket = None

    async def render(self, picture: bytes | None = None) -> Result:
        """Make one frame, and wait for its result.

        Raises:
            FrameError: if the server cannot take or make it.
            RefusedError: if the server ended the connection for good.
        """
        result = None
        while result is None:
            result = await self._try_to_render(picture)
        return result

    async def stream(self, pictures: AsyncIterable[bytes | None]) -> AsyncGenerator[Result, None]:
        """Send pictures as fast as the server takes them, and yield results as they come.

        A picture is asked for when there is room for one, so a camera should yield what it sees then. Ends
        with the result of the last picture. In video mode pictures are None, and only set the pace.

        Raises:
            FrameError: if the server cannot take or make a frame; the connection lives on. This ends the
                stream and, if it is a generator, the one that gave the pictures: go on with new ones.
            RefusedError: if the server ended the connection for good.
        """
        source = Pictures(pictures)
        try:
            while not source.done:
                try:
                    async with contextlib.aclosing(self._exchange(source)) as results:
                        async for result in results:
                            yield result
                except ConnectionClosed as closed:  # noqa: PERF203 - once a connection, not once a frame
                    source.lose()
                    await self._reconnect(closed)
        finally:
            await source.close()

    async def _try_to_render(self, picture: bytes | None) -> Result | None:
        """`render`; None if the connection was lost and opened again."""
        try:
            while not self._credit:
                await self._receive()
            frame_id = await self._send(picture)
            while True:
                result = await self._receive()
                if result is not None and result.frame_id == frame_id:
                    return result
        except ConnectionClosed as closed:
            await self._reconnect(closed)
            return None

    async def _exchange(self, source: Pictures) -> AsyncGenerator[Result, None]:
        """`stream`, until the connection is lost."""
        receiving: asyncio.Future[Result | None] | None = None
        feeding: asyncio.Future[None] | None = None
        try:
            while not source.done:
                receiving = receiving or asyncio.ensure_future(self._receive())
                if self._credit and feeding is None and not source.ended:
                    feeding = asyncio.ensure_future(self._feed(source))
                waiting: set[asyncio.Future[Any]] = {receiving} if feeding is None else {receiving, feeding}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if feeding is not None and feeding.done():
                    feeding.result()
                    feeding = None
                if receiving.done():
                    # None while the caller has the result, so that no message is lost if it stops there.
                    result, receiving = receiving.result(), None
                    if result is not None:
                        if result.frame_id == self._frame_id - 1:
                            source.seen()
                        yield result
        finally:
            for task in (receiving, feeding):
                if task is not None:
                    task.cancel()
                    await asyncio.wait({task})

    async def _feed(self, source: Pictures) -> None:
        """Send the next picture, if there is one left."""
        with contextlib.suppress(StopAsyncIteration):
            await self._send(await source.next())

    async def _send(self, picture: bytes | None) -> int:
        """Send a frame. Returns its id."""
        assert self._socket is not None, "the client is not connected; use `async with`"
        if self.mode == "image" and not picture:  # to the server that means "none yet": no result would come
            raise FrameError("picture: there is nothing in it")
        frame_id = self._frame_id
        # Before anything is sent: what JSON does not know must not leave half a frame behind.
        tagged = json.dumps({**self.parameters, "frame_id": frame_id, "frame_time": time.monotonic()})
        self._credit = False
        self._frame_id += 1
        await self._socket.send('{"status": "next_frame"}')
        await self._socket.send(tagged)
        if picture and self.mode == "image":
            await self._socket.send(picture)
        return frame_id

    async def _receive(self) -> Result | None:
        """Take note of the next message; the result, if it is one."""
        assert self._socket is not None, "the client is not connected; use `async with`"
        message: str | bytes = await self._socket.recv()
        if isinstance(message, bytes):
            return decode_result(message)
        said = json.loads(message)
        if said["status"] == "send_frame":
            self._credit = True
        elif said["status"] == "connected":
            self._delay = FIRST_DELAY
        elif said["status"] == "error":
            # About a frame, or the last word before a close, whose code says more: what follows tells.
            # Nothing need follow, and a result that does is given up: this ends a stream anyway.
            with contextlib.suppress(asyncio.TimeoutError, FrameError):
                await asyncio.wait_for(self._receive(), LAST_WORDS)
            raise FrameError(said["message"])
        return None

    async def _connect(self) -> None:
        self._credit = False
        try:
            # Pictures are compressed already.
            self._socket = await connect(self._address, compression=None, max_size=None)
        # From Python 3.11 on, the second is an OSError.
        except (OSError, asyncio.TimeoutError, InvalidHandshake) as error:
            raise UnreachableError(f"cannot connect to {self._server}: {error}") from error

    async def _reconnect(self, closed: ConnectionClosed) -> None:
        """Connect until it succeeds. Raises RefusedError if the server closed the connection for good."""
        while True:
            if closed.rcvd is not None and closed.rcvd.code in FINAL_CODES:
                raise refusal(closed.rcvd.code, closed.rcvd.reason) from closed
            # Spread out, so that a server that comes back is not met by everybody at once.
            await asyncio.sleep(self._delay * (0.5 + random.random()))
            self._delay = min(2 * self._delay, LAST_DELAY)
            with contextlib.suppress(UnreachableError):
                await self._connect()
                return
