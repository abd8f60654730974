"""How bytes come and go: what uvicorn leaves open, decided for live pictures.

- A message that is too large is dropped as it arrives and reported, instead of closing the connection.
- Pictures are compressed already, so WebSocket compression, which browsers ask for, only costs time.
- A flood of tiny messages is parsed bit by bit, so that it holds up nobody else.
- The kernel keeps little of what a client has not taken yet: seconds of old pictures would hide there.

`python -m app.main` uses all of this; docs/protocol.md has the flags for plain uvicorn.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from app.api.websocket import OVERSIZE

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent

UNSENT = 64 * 1024
"""Bytes that the kernel takes of a connection beyond what the network has room for: about one picture."""

BACKLOG = 2048
"""Connections that may wait to be accepted."""

SLICE = 4096
"""Bytes that are parsed before it is known that they are not many tiny messages."""

MANY = 32
"""So many messages in a slice are a flood: a page sends three for each picture."""


class BoundedReader(StreamReader):
    """Reads a frame of more than ``limit`` bytes as an empty one, and notes its size in ``oversize``."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.oversize = 0

    def read_exact(self, n: int) -> Generator[None, None, bytearray]:
        """Read ``n`` bytes; more than the limit are dropped while they arrive."""
        if n <= self.limit:
            return (yield from super().read_exact(n))
        left = n
        while True:
            taken = min(left, len(self.buffer))
            del self.buffer[:taken]
            left -= taken
            if not left:
                self.oversize = n
                return bytearray()
            if self.eof:
                raise EOFError(f"stream ends {left} bytes before the end of a frame")
            yield


class LenientServerProtocol(ServerProtocol):
    """Parses frames of any size; those above the limit come out empty."""

    def __init__(self, limit: int, **options: Any) -> None:
        super().__init__(max_size=None, **options)
        self.reader: BoundedReader = BoundedReader(limit)
        self.parser = self.parse()
        next(self.parser)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket without compression, and with messages that are too large reported.

    Usable as `uvicorn --ws app.api.transport:WebSocketProtocol`; the limit is `--ws-max-size`.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limit = config.ws_max_size
        self.conn: LenientServerProtocol = LenientServerProtocol(self._limit, logger=self.logger)
        self._size = 0
        self._oversize = 0
        self._unparsed = bytearray()

    def data_received(self, data: bytes) -> None:
        """Parse what came; of thousands of tiny messages at once only the first, the rest later."""
        if self._unparsed:
            self._unparsed += data
        elif len(data) <= SLICE or not self.handshake_complete:
            super().data_received(data)
        else:
            super().data_received(data[:SLICE])
            if self.queue.qsize() < MANY:
                super().data_received(data[SLICE:])
            else:
                self._unparsed += data[SLICE:]

    async def receive(self) -> ASGIReceiveEvent:
        """The next message; when there is none left, go on with what has not been parsed."""
        while self._unparsed and self.queue.empty():
            data = bytes(self._unparsed[:SLICE])
            del self._unparsed[:SLICE]
            super().data_received(data)
        event = await super().receive()
        if self._unparsed and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()
        return event

    async def run_asgi(self) -> None:
        """Let go of the connection in the end, even if the client never reads what was said last."""
        await super().run_asgi()
        self.loop.call_later(self.close_timeout, self.transport.abort)

    def keepalive_timeout(self) -> None:
        """Give up a client that does not answer. To close politely would wait until it has read the rest,
        and the client is gone: for minutes its place would stay taken.
        """
        super().keepalive_timeout()
        self.transport.abort()

    def handle_text(self, event: Frame) -> None:
        """Take a text message, or the first part of one."""
        self._begin(event)
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """Take a binary message, or the first part of one."""
        self._begin(event)
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """Take a further part of a message; what makes it too large is not kept."""
        self._count(event)
        if self._size > self._limit:
            self._oversize = self._size
            self.frames = []
            event = Frame(event.opcode, b"", event.fin)
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Hand over a complete message, or the size of one that was not kept."""
        if not self._oversize or self.close_sent:
            super().send_receive_event_to_app()
            return
        event: Any = {"type": "websocket.receive", OVERSIZE: self._oversize}
        self._oversize = 0
        self.frames = []
        self.queue.put_nowait(event)
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _begin(self, event: Frame) -> None:
        self._size = self._oversize = 0
        self._count(event)

    def _count(self, event: Frame) -> None:
        dropped, self.conn.reader.oversize = self.conn.reader.oversize, 0
        self._size += dropped or len(event.data)
        if dropped:
            self._oversize = self._size


def listen(host: str, port: int) -> socket.socket:
    """A listening socket whose connections send at once and keep little unsent.

    Raises:
        OSError: if the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit these.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        listener.bind((host, port))
        # Who comes before the server is up waits instead of being refused.
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(True)
    return listener
