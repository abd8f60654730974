"""A real server with a played device, and a client as front ends are."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect

from app.api.service import Service
from app.api.transport import WebSocketProtocol, listen
from app.config.schema import Settings
from app.core.engine import Engine
from app.core.messages import Mode
from app.core.session import Session
from app.main import Process, create_app
from app.utils.image import decode, encode
from tests.fakes import FakePlanner, FakeRunner, create_engine

SIZE = 64
Array = NDArray[np.uint8]


def picture(grey: int = 100, size: int = SIZE) -> bytes:
    return encode(np.full((size, size, 3), grey, np.uint8), "jpeg", 90)


class Server:
    """A server in a thread of its own."""

    def __init__(
        self,
        settings: Settings,
        runner: FakeRunner,
        create_runner: Callable[[Callable[[str], None]], FakeRunner] | None = None,
        ping: float = 20.0,
        importing: Callable[[], object] | None = None,
    ) -> None:
        self.runner = runner
        self.image = FakePlanner("image")
        self.ended: list[int] = []
        self.engine: Engine = create_engine(
            create_runner or (lambda _report: runner), watchdog_timeout=settings.server.watchdog_timeout
        )
        listener = listen("127.0.0.1", 0)
        self.port: int = listener.getsockname()[1]

        def build(_settings: Settings) -> tuple[Engine, dict[Mode, FakePlanner]]:
            if importing is not None:
                importing()
            return self.engine, {"image": self.image, "video": FakePlanner("video")}

        self.app = create_app(
            settings,
            build=build,
            process=Process(self.stop, self.ended.append),
        )
        config = uvicorn.Config(
            self.app,
            ws=WebSocketProtocol,
            ws_max_size=settings.server.max_message_bytes,
            ws_ping_interval=ping,
            ws_ping_timeout=ping,
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self._thread.start()
        while not self._server.started or (importing is None and self.app.state.opening.service is None):
            time.sleep(0.005)

    def _run(self, listener: socket.socket) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[listener])

        asyncio.run(serve())

    @property
    def service(self) -> Service:
        service: Service | None = self.app.state.opening.service
        assert service is not None
        return service

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def address(self, user: str, query: str = "") -> str:
        return f"ws://127.0.0.1:{self.port}/api/ws/{user}{query}"

    def session(self, user: str = "ann") -> Session:
        session = self.service.registry.find(user)
        assert session is not None, f"{user} is not connected"
        return session

    def protocol(self, user: str) -> WebSocketProtocol:
        """What uvicorn has of a user's connection."""
        protocols = [p for p in self._server.server_state.connections if isinstance(p, WebSocketProtocol)]
        return next(p for p in protocols if p.scope["path"] == f"/api/ws/{user}")

    def stop(self) -> None:
        self._server.should_exit = True

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()

    @asynccontextmanager
    async def client(self, user: str = "ann", query: str = "", **options: Any) -> AsyncIterator[Client]:
        options = {"max_size": None, "compression": None, **options}
        async with connect(self.address(user, query), **options) as socket:
            yield Client(socket)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(self.http + path, **options)


class Received(NamedTuple):
    """A binary result message, read as docs/protocol.md says."""

    version: int
    format: int
    size: int
    revision: int
    id: float
    time: float
    waited: float
    made: float
    total: float
    flags: int
    number: int
    dropped: int
    picture: bytes

    @classmethod
    def read(cls, message: bytes) -> Received:
        header = struct.unpack_from("<BBHIddfffIII", message)
        return cls._make((*header, message[header[2] :]))

    @property
    def grey(self) -> int:
        return int(decode(self.picture, width=SIZE, height=SIZE, max_pixels=10**6).mean().round())


class Client:
    """A front end of the StreamDiffusion demo, by hand."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def status(self) -> dict[str, Any]:
        message = await asyncio.wait_for(self.socket.recv(), 5)
        assert isinstance(message, str), "a result came where a status was expected"
        status: dict[str, Any] = json.loads(message)
        return status

    async def expect(self, status: str, words: str = "") -> str:
        message = await self.status()
        assert message["status"] == status, message
        assert words in message.get("message", ""), message
        return str(message.get("message", ""))

    async def begin(self) -> Client:
        while (message := await self.status())["status"] == "wait":
            pass
        assert message == {"status": "connected"}
        await self.expect("send_frame")
        return self

    async def say(self, message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def send(self, data: bytes | None, **parameters: Any) -> None:
        """The three messages of a frame, one after the other without waiting; two in video mode."""
        await self.say({"status": "next_frame"})
        await self.say(parameters)
        if data is not None:
            await self.socket.send(data)

    async def result(self) -> Received:
        """The next result; statuses before it are passed over."""
        while True:
            message = await asyncio.wait_for(self.socket.recv(), 5)
            if isinstance(message, bytes):
                return Received.read(message)

    async def credit(self) -> None:
        """The next request for a frame; results before it are passed over."""
        while isinstance(message := await asyncio.wait_for(self.socket.recv(), 5), bytes):
            pass
        assert json.loads(message) == {"status": "send_frame"}


async def until(condition: Callable[[], object], within: float = 5.0) -> None:
    """Wait for something that no message tells of."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.005)


MakeServer = Callable[..., Server]


@pytest.fixture
def make_server() -> Iterator[MakeServer]:
    """Starts servers; keyword arguments by section: ``server={"timeout": 1}``."""
    with ExitStack() as stack:

        def make(
            runner: FakeRunner | None = None,
            create_runner: Callable[[Callable[[str], None]], FakeRunner] | None = None,
            ping: float = 20.0,
            importing: Callable[[], object] | None = None,
            **sections: dict[str, Any],
        ) -> Server:
            sections = {"pipeline": {}, "server": {}, **sections}
            sections["pipeline"] = {"width": SIZE, "height": SIZE, **sections["pipeline"]}
            sections["server"] = {"stream_grace": 0.3, **sections["server"]}
            settings = Settings.model_validate(sections)
            server = Server(settings, runner or FakeRunner(), create_runner, ping, importing)
            stack.callback(server.join)
            stack.callback(server.stop)
            stack.callback(server.runner.gate.set)
            return server

        yield make


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server()
