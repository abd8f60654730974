"""How bytes come and go: what uvicorn leaves open, decided for live pictures.

- A message that is too large is dropped as it arrives and reported, instead of closing the connection.
- Pictures are compressed already, so WebSocket compression, which browsers ask for, only costs time.
- A flood of tiny messages is parsed bit by bit, so that it holds up nobody else.
- Reading pauses when messages pile up, and not, as in uvicorn, for every one of them.
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

READS = 128
BREATH = 0.002
"""So many parts of frames are parsed within so many seconds. A frame has two to five, and a page sends three
frames for each picture. A loop that never sleeps would starve the threads that decode: CPython makes room for
one that waits long, not for one that is woken too late again and again."""

LAST_WORDS = 0.5
"""Seconds that the application has, when the server ends, to say why before its connections are closed."""

AHEAD = 4
"""Messages that may wait for the application while more are read: those of one picture, and one more."""


class BoundedReader(StreamReader):
    """Reads a frame of more than ``limit`` bytes as an empty one, and notes its size in ``oversize``. When
    ``budget`` is used up, the rest waits for a new one.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.oversize = 0
        self.budget = READS

    @property
    def behind(self) -> bool:
        """Whether there is more that a new budget would let through."""
        return self.budget == 0 and bool(self.buffer)

    def read_exact(self, n: int) -> Generator[None, None, bytearray]:
        """Read ``n`` bytes; more than the limit are dropped while they arrive."""
        while self.budget == 0:
            yield
        self.budget -= 1
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
        self._rest = bytearray()
        self._refill_at = 0.0
        self._turn: asyncio.TimerHandle | None = None
        self.read_paused = True  # so that the base class does not pause; `_pace` does

    def data_received(self, data: bytes) -> None:
        """Parse what came; of thousands of tiny messages only the first, the others later."""
        now = self.loop.time()
        if now >= self._refill_at:
            self.conn.reader.budget = READS
            self._refill_at = now + BREATH
        super().data_received(data)
        self._pace()

    async def receive(self) -> ASGIReceiveEvent:
        """The next message."""
        event = await self.queue.get()
        self._pace()
        return event

    def _pace(self) -> None:
        """Parse and read no more than is handled, and of a flood a little at a time."""
        if self.transport.is_closing():
            return
        full, behind = self.queue.qsize() > AHEAD, self.conn.reader.behind
        if behind and not full and self._turn is None:
            self._turn = self.loop.call_at(self._refill_at, self._go_on)
        if (full or behind) == self.transport.is_reading():
            if full or behind:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _go_on(self) -> None:
        self._turn = None
        if not self.transport.is_closing():
            self.data_received(b"")

    async def run_asgi(self) -> None:
        """Let go of the connection in the end, even if the client never reads what was said last."""
        await super().run_asgi()
        self.loop.call_later(self.close_timeout, self.transport.abort)

    def shutdown(self) -> None:
        """Leave it to the application to say why and to close; it has been told. uvicorn would be faster."""
        if self.handshake_complete and not self.close_sent:
            self.loop.call_later(LAST_WORDS, self._shut)
        else:
            super().shutdown()

    def _shut(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def keepalive_timeout(self) -> None:
        """Give up a client that does not answer. To close politely would wait until it has read the rest,
        and the client is gone: for minutes its place would stay taken.
        """
        super().keepalive_timeout()
        self.transport.abort()

    def handle_ping(self) -> None:
        """Answer, unless the client does not read: answers would pile up."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

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
            self._rest.clear()
        else:
            # Joined as they come: as objects, millions of tiny parts would take gigabytes.
            self._rest += event.data
        if event.fin:
            self.frames.append(bytes(self._rest))
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        """Hand over a complete message, or the size of one that was not kept."""
        if not self._oversize or self.close_sent:
            super().send_receive_event_to_app()
            return
        event: Any = {"type": "websocket.receive", OVERSIZE: self._oversize}
        self._oversize = 0
        self.frames = []
        self.queue.put_nowait(event)

    def _begin(self, event: Frame) -> None:
        self._size = self._oversize = 0
        self._rest.clear()
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
