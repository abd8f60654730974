"""Users as the page is one: a socket, a stream beside it, and both again whenever the socket closes.

Each user numbers its frames and asks for the results on the socket too, so that a lost frame is a missing
number and not a guess.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import simplejpeg
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

FRAME_ID = struct.Struct("<8xd")
"""Where a result's header has the number of its frame; docs/protocol.md describes all of it."""

RETRY = 0.25
"""Seconds before connecting again, as the page waits the first time."""


def picture(side: int = 64, *, seed: int = 0, noise: int = 0) -> bytes:
    """A JPEG of a gradient; ``noise`` makes it larger, for realistic sizes."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, side)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp, 128.0), axis=2)
    image += generator.uniform(-noise, noise, image.shape) if noise else 0.0
    file: bytes = simplejpeg.encode_jpeg(np.clip(image, 0, 255).astype(np.uint8), quality=90)
    return file


@dataclass
class User:
    """One user. Times are seconds of the monotonic clock.

    ``servers`` names who answered, for each connection, as (socket's server, stream's server); without a
    proxy that says so both are None. ``results`` has (frame id, time sent, time received).
    """

    url: str
    frames_per_second: float = 4.0
    jpeg: bytes = field(default_factory=picture)
    name: str = field(default_factory=lambda: str(uuid4()))
    servers: list[tuple[str | None, str | None]] = field(default_factory=list)
    results: list[tuple[int, float, float]] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)
    connected: list[float] = field(default_factory=list)
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    sent: dict[int, float] = field(default_factory=dict)

    async def run(self) -> None:
        """Connect, and again after every end, until cancelled."""
        while True:
            try:
                await self._connection()
            except (OSError, InvalidHandshake, InvalidMessage, ConnectionClosed):
                self.refused += 1
            await asyncio.sleep(RETRY)

    def lost(self) -> set[int]:
        """Frames that were sent and not answered; the newest two may still be on their way."""
        return set(self.sent) - {number for number, _, _ in self.results} - set(sorted(self.sent)[-2:])

    def first_result_after(self, moment: float) -> float:
        """When the first frame that was sent after a moment came back."""
        return min(received for _, sent, received in self.results if sent > moment)

    def first_part_after(self, moment: float) -> float:
        """When the stream's first picture after a moment came."""
        return min(at for at in self.parts if at > moment)

    def longest_gap(self, begin: float, end: float) -> float:
        """The longest time without a picture in the stream."""
        times = [begin, *(at for at in self.parts if begin < at < end), end]
        return max(later - earlier for earlier, later in pairwise(times))

    async def _connection(self) -> None:
        uri = f"{self.url.replace('http', 'ws', 1)}/api/ws/{self.name}?output=ws"
        async with connect(uri, compression=None, ping_interval=None, max_size=None) as socket:
            assert socket.response is not None
            server = socket.response.headers.get("X-Server")
            stream = None
            pacing: list[asyncio.Task[None]] = []
            try:
                async for message in socket:
                    if isinstance(message, bytes):
                        number = int(FRAME_ID.unpack_from(message)[0])
                        self.results.append((number, self.sent[number], time.monotonic()))
                        continue
                    status = json.loads(message)
                    if status["status"] == "connected":
                        self.connected.append(time.monotonic())
                        stream = asyncio.create_task(self.watch(server))
                    elif status["status"] == "send_frame":
                        pacing = [asyncio.create_task(self._send(socket))]
                    elif status["status"] != "wait":
                        self.errors.append(status.get("message", status["status"]))
            finally:
                if socket.close_code is not None:  # None when it is this side that leaves
                    self.closed.append(time.monotonic())
                for job in [*pacing, *([stream] if stream else [])]:
                    job.cancel()
                    with suppress(asyncio.CancelledError, OSError, ConnectionClosed):
                        await job

    async def _send(self, socket: ClientConnection) -> None:
        last = self.sent[len(self.sent) - 1] if self.sent else 0.0
        await asyncio.sleep(max(0.0, last + 1 / self.frames_per_second - time.monotonic()))
        number = len(self.sent)
        await socket.send('{"status": "next_frame"}')
        await socket.send(json.dumps({"prompt": "watercolor", "seed": 1, "frame_id": number}))
        self.sent[number] = time.monotonic()
        await socket.send(self.jpeg)

    async def watch(self, server: str | None) -> None:
        """Read the image stream until it ends; pictures are counted by their first bytes."""
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            request = f"GET /api/stream/{self.name}?max_fps=60 HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n"
            writer.write(request.encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if " 200 " not in head.splitlines()[0]:
                self.errors.append(f"stream: {head.splitlines()[0]}")
                return
            named = [line.partition(": ")[2] for line in head.splitlines() if line.startswith("x-server: ")]
            self.servers.append((server, named[0] if named else None))
            tail = b""
            while data := await reader.read(65536):
                tail += data
                self.parts += [time.monotonic()] * tail.count(b"\xff\xd8\xff")
                tail = tail[-2:]
        finally:
            writer.close()


@asynccontextmanager
async def connected(*users: User) -> AsyncIterator[None]:
    """All of them connected and each with a result and a picture in its stream."""
    tasks = [asyncio.create_task(user.run()) for user in users]
    try:
        await until(lambda: all(user.results and user.parts for user in users), "results for everybody")
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in ended:
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome


async def until(condition: Callable[[], object], what: str, within: float = 20.0) -> None:
    """Wait for a condition, which is looked at every 10 ms.

    Raises:
        TimeoutError: if it does not come true.
    """
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {within} s")
        await asyncio.sleep(0.01)


def undisturbed(users: list[User]) -> None:
    """Nobody's connection closed and no frame is missing."""
    for user in users:
        assert not user.closed
        assert not user.errors
        assert not user.lost()


def slowest_frame(users: list[User], since: float) -> float:
    """The longest that any of their frames took, of those sent after a moment: what else the machine does
    befalls these as well, so a limit in seconds may be so much longer.
    """
    return max(received - sent for user in users for _, sent, received in user.results if sent > since)


def home(user: User) -> str:
    """The server that a user was last on, socket and stream."""
    socket, stream = user.servers[-1]
    assert socket is not None
    assert socket == stream, f"socket on {socket}, stream on {stream}"
    return socket


async def another_stream(user: User) -> str | None:
    """The server that answers one more viewer of a user."""
    viewer = User(user.url, name=user.name)
    watching = asyncio.create_task(viewer.watch(None))
    try:
        await until(lambda: viewer.parts, "picture for another viewer")
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return viewer.servers[-1][1]
