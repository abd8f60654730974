"""Many front ends in one process, written to cost little themselves: frames are masked beforehand, and what
the server sends is cut out of the buffer by hand.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections import deque
from dataclasses import dataclass, field

from websockets.speedups import apply_mask

MASK = b"\x5a\xc3\x17\x8e"
SEND_FRAME = b'{"status": "send_frame"}'
BOUNDARY = b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n"


def client_frame(opcode: int, payload: bytes) -> bytes:
    """One message of a client as it stands on the wire (RFC 6455, section 5.2)."""
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 2**16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
    return head + MASK + bytes(apply_mask(payload, MASK))


@dataclass
class Record:
    """What one user saw: when each result came (s, monotonic) and how old it was (s)."""

    times: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    late: int = 0


class User(asyncio.Protocol):
    """One front end: answers each `send_frame`, at once or at the rate of its camera."""

    def __init__(
        self, host: str, name: str, pictures: list[bytes], record: Record, fps: float | None, output: str
    ) -> None:
        self._request = (
            f"GET /api/ws/{name}?output={output} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ).encode()
        self._next = client_frame(1, b'{"status": "next_frame"}')
        self._pictures = [client_frame(2, picture) for picture in pictures]
        self._record = record
        self._prompt = f"a portrait of {name}".encode()
        self._interval = None if fps is None else 1 / fps
        self._buffer = bytearray()
        self._upgraded = False
        self._credit = False
        self._sent = 0
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Shake hands."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Cut messages out of what came."""
        self._buffer += data
        if not self._upgraded:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            assert head.startswith(b"HTTP/1.1 101"), head
            self._upgraded, self._buffer = True, rest
            if self._interval is not None:
                # Cameras do not start together.
                self._due = time.monotonic() + int.from_bytes(os.urandom(2), "big") / 2**16 * self._interval
                self._shoot()
        while (message := self._cut()) is not None:
            opcode, payload = message
            if opcode == 2:
                (sent_at,) = struct.unpack_from("<d", payload, 16)
                now = time.monotonic()
                self._record.times.append(now)
                self._record.ages.append(now - sent_at)
            elif opcode == 9:  # who does not answer is cut off after forty seconds
                self._transport.write(client_frame(10, payload))
            elif payload == SEND_FRAME:
                self._credit = True
                if self._interval is None:
                    self._send()

    def close(self) -> None:
        """Leave."""
        self._interval = None
        self._transport.abort()

    def _cut(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1], 2
        if size == 126:
            if len(buffer) < 4:
                return None
            size, start = int.from_bytes(buffer[2:4], "big"), 4
        elif size == 127:
            if len(buffer) < 10:
                return None
            size, start = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < start + size:
            return None
        opcode, payload = buffer[0] & 15, bytes(buffer[start : start + size])
        del buffer[: start + size]
        return opcode, payload

    def _shoot(self) -> None:
        """A camera's shutter: the newest picture goes out if it is wanted."""
        if self._interval is None or self._transport.is_closing():
            return
        if self._credit:
            self._send()
        else:
            self._record.late += 1
        self._due += self._interval
        asyncio.get_running_loop().call_at(
            asyncio.get_running_loop().time() + max(0.0, self._due - time.monotonic()), self._shoot
        )

    def _send(self) -> None:
        self._credit = False
        parameters = b'{"prompt":"%s","frame_time":%.6f}' % (self._prompt, time.monotonic())
        picture = self._pictures[self._sent % len(self._pictures)]
        self._sent += 1
        self._transport.write(self._next + client_frame(1, parameters) + picture)


class Viewer(asyncio.Protocol):
    """An `<img>` of the stream: counts parts."""

    def __init__(self, host: str, name: str, arrivals: deque[float]) -> None:
        self._request = (f"GET /api/stream/{name}?max_fps=1000 HTTP/1.1\r\nHost: {host}\r\n\r\n").encode()
        self._arrivals = arrivals
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note each part that is complete."""
        data = self._tail + data
        self._arrivals.extend([time.monotonic()] * data.count(BOUNDARY))
        self._tail = data[-len(BOUNDARY) + 1 :]

    def close(self) -> None:
        """Look away."""
        self._transport.abort()
