"""The WebSocket: `/api/ws/{userId}`; docs/protocol.md describes it for clients.

A connection reads, talks and shows at the same time: a client that reads slowly holds up neither the
frames it sends nor anybody else. What is to be said is kept as state (a credit, the newest result)
rather than in a queue, so it cannot grow.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, Field, StringConstraints, ValidationError
from starlette.datastructures import Headers, QueryParams
from starlette.websockets import WebSocketDisconnect

from app.api.intake import Intake
from app.api.opening import NoServiceError, Opening, opening_of
from app.api.protocol import Assembler, Frame, NoPicture, Outcome, Parameters, Refusal
from app.api.results import pack_header
from app.api.service import Service
from app.config.schema import ServerSettings
from app.core.messages import Mode
from app.core.session import Ending, ServerFullError, Session
from app.utils.image import PictureFormat

log = logging.getLogger(__name__)
router = APIRouter()

PAUSE = 0.01
"""Seconds before a client that sent nothing of use is asked again: pages answer at once, with empty
pictures, until their camera is ready."""

LONGEST_PAUSE = 1.0
"""Seconds before a client whose frames all fail is asked again, at most: they take the device's time for
nothing, and what makes them fail may take a while to pass."""

MAX_UNSAID = 16
"""Error messages kept for a client that does not read; older ones are dropped."""

LINGER = 1.0
"""Seconds that a client who does not read has to hear why it is sent away."""

OVERSIZE = "streamdiffusion.oversize"
"""Key of a receive event that `app.api.transport` adds: the size of a message it did not keep."""

Status = Literal["connected", "send_frame", "wait", "timeout", "error"]


class Options(BaseModel):
    """What a client says in the address."""

    user: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._~-]{1,128}$")]
    mode: Mode
    output: Literal["stream", "ws"] = "stream"
    format: PictureFormat = "jpeg"
    quality: Annotated[int, Field(ge=1, le=100)]


@dataclass(frozen=True)
class Farewell:
    """The last words to a client, and the code that the connection is closed with."""

    status: Status
    message: str
    code: int

    def because(self, reason: str | None) -> Farewell:
        """With a reason, if there is one."""
        return self if reason is None else replace(self, message=f"{self.message}: {reason}")


FULL = Farewell("error", "Server is full", 1013)
FAULT = Farewell("error", "The server made a mistake; its log says which", 1011)
ENDINGS = {
    Ending.TAKEN_OVER: Farewell("error", "This user id connected again; this connection is closed", 4001),
    Ending.IDLE: Farewell("timeout", "No message for too long; the session is closed", 4002),
    Ending.FAILED: Farewell("error", "The server cannot go on", 1011),
    Ending.SHUTDOWN: Farewell("error", "The server is shutting down", 1012),
}


def status_text(status: Status, message: str | None = None) -> str:
    """A status message."""
    return json.dumps({"status": status} if message is None else {"status": status, "message": message})


SEND_FRAME = status_text("send_frame")


@router.websocket("/api/ws/{user:path}")
async def websocket(websocket: WebSocket, user: str) -> None:
    """One connection. It is always accepted: a page cannot see why a handshake was refused."""
    opening = opening_of(websocket)
    await websocket.accept()
    try:
        _check_origin(opening.settings.server, websocket.headers)
        service = await _service(websocket, opening)
        options = _options(service, user, websocket.query_params)
    except ValueError as error:
        await _say_farewell(websocket, Farewell("error", str(error), 1008))
    except NoServiceError as error:
        farewell = ENDINGS[Ending.SHUTDOWN if opening.closing else Ending.FAILED]
        await _say_farewell(websocket, farewell.because(None if opening.closing else str(error)))
    else:
        await Connection(websocket, service, options).run()


@router.websocket("/{path:path}")
async def elsewhere(websocket: WebSocket, path: str) -> None:
    """Any other address: say where the WebSocket is."""
    await websocket.accept()
    farewell = Farewell("error", f"There is no WebSocket at /{path[:60]}; it is at /api/ws/{{userId}}", 1008)
    await _say_farewell(websocket, farewell)


async def _service(websocket: WebSocket, opening: Opening) -> Service:
    if opening.service is None:
        await _send(websocket, status_text("wait", "The server is starting"))
    return await opening.wait()


def _options(service: Service, user: str, query: QueryParams) -> Options:
    defaults = {"mode": service.mode, "quality": service.settings.performance.jpeg_quality}
    try:
        return Options.model_validate({**defaults, **query, "user": user})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "userId" if first["loc"][0] == "user" else first["loc"][0]
        words = first["msg"].removeprefix("Input ")
        if name == "userId":
            words = "must be 1 to 128 letters, digits and - . _ ~"
        raise ValueError(f"{name}: {words}, not {str(first['input'])[:60]!r}") from error


def _check_origin(server: ServerSettings, headers: Headers) -> None:
    """CORS does not cover WebSockets: a browser connects from any page, and says from which."""
    allowed, origin = server.allowed_origins, headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return
    if urlsplit(origin).netloc != headers.get("host"):
        raise ValueError(f"origin: pages of {origin[:100]} may not use this server")


async def _send(websocket: WebSocket, message: str | bytes) -> None:
    """Send a message. Raises WebSocketDisconnect if the connection is closed or about to be."""
    try:
        if isinstance(message, str):
            await websocket.send_text(message)
        else:
            await websocket.send_bytes(message)
    except RuntimeError as error:
        # uvicorn's word for a connection that it has begun to close by itself: no answer to its pings, or
        # bytes that are no WebSocket.
        raise WebSocketDisconnect(1006) from error


async def _say_farewell(websocket: WebSocket, farewell: Farewell) -> None:
    async def say() -> None:
        await _send(websocket, status_text(farewell.status, farewell.message))
        # The protocol leaves 123 bytes for the reason.
        await websocket.close(farewell.code, farewell.message.encode()[:123].decode(errors="ignore"))

    try:
        await asyncio.wait_for(say(), LINGER)
    except (WebSocketDisconnect, asyncio.TimeoutError):
        log.debug("a client did not hear: %s", farewell.message)


class Connection:
    """One client: the `Listener` of its session."""

    def __init__(self, websocket: WebSocket, service: Service, options: Options) -> None:
        self._websocket = websocket
        self._service = service
        self._options = options
        server = service.settings.server
        parameters = Parameters(service.planners[options.mode], server.max_prompt_length)
        self._assembler = Assembler(options.mode, parameters)
        self._session: Session | None = None
        self._intake: Intake | None = None
        self._unsaid: deque[str] = deque(maxlen=MAX_UNSAID)
        self._credit = False
        self._farewell: Farewell | None = None
        self._to_say = asyncio.Event()
        self._to_show = asyncio.Event()
        self._pause = 0.0
        self._asking: asyncio.TimerHandle | None = None
        self._idling: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._heard_at = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Serve the client until it leaves or is sent away."""
        jobs: list[Coroutine[Any, Any, None]] = [self._read(), self._talk()]
        if self._options.output == "ws":
            jobs.append(self._show())
        tasks = self._tasks = [asyncio.create_task(job) for job in jobs]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a connection ends by a fault of the server", exc_info=error)
                self._farewell = self._farewell or FAULT
        if self._farewell is not None:
            await _say_farewell(self._websocket, self._farewell)

    # -- what the session tells -------------------------------------------------------------------

    def taken(self) -> None:
        """Ask for the next frame: there is room for it. After frames that failed, not at once."""
        if self._pause:
            self._ask_after(self._pause)
        else:
            self._ask()
        if self._intake is not None:
            self._intake.taken()

    def failed(self, reason: str) -> None:
        """Tell the client; it has been asked for the next frame already, or will be."""
        self._pause = min(max(PAUSE, 2 * self._pause), LONGEST_PAUSE)
        if self._intake is not None:
            self._intake.forget_last()
        self._say("error", f"the frame could not be made: {reason}")

    def shown(self) -> None:
        """Send the newest result, if the client wants it here."""
        self._pause = 0.0
        self._to_show.set()

    def ended(self, ending: Ending) -> None:
        """Send the client away."""
        reason = self._service.engine.failure if ending is Ending.FAILED else None
        self._send_away(ENDINGS[ending].because(reason))

    # -- reading ----------------------------------------------------------------------------------

    async def _read(self) -> None:
        count = 0
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            self._heard_at = time.monotonic()
            if self._session is not None:
                self._take(self._outcome(message))
            count += 1
            if not count % 16:
                # Messages that came together are received without waiting: let others have a turn.
                await asyncio.sleep(0)

    def _outcome(self, message: Any) -> Outcome:
        if (size := message.get(OVERSIZE)) is not None:
            return self._assembler.oversized(size, self._service.settings.server.max_message_bytes)
        if (text := message.get("text")) is not None:
            return self._assembler.text(text)
        return self._assembler.binary(message["bytes"])

    def _take(self, outcome: Outcome) -> None:
        if isinstance(outcome, Frame):
            assert self._intake is not None
            self._intake.offer(outcome)
        elif isinstance(outcome, Refusal):
            self._refuse(outcome.message)
        elif outcome is NoPicture.YET:
            self._ask_after(PAUSE)

    def _refuse(self, words: str) -> None:
        assert self._session is not None
        self._session.counters.errors += 1
        self._say("error", words)
        self._ask_after(PAUSE)

    # -- talking ----------------------------------------------------------------------------------

    async def _talk(self) -> None:
        try:
            if not await self._admitted():
                return
            while True:
                await self._to_say.wait()
                self._to_say.clear()
                while self._unsaid:
                    await _send(self._websocket, self._unsaid.popleft())
                if self._farewell is not None:
                    return
                if self._credit:
                    self._credit = False
                    self._assembler.asked()
                    self._heard_at = time.monotonic()  # from now on it is the client's turn
                    await _send(self._websocket, SEND_FRAME)
        except WebSocketDisconnect:
            return

    async def _admitted(self) -> bool:
        """Let the client in as soon as frames can be made. Returns False if that will not be."""
        service, told = self._service, False
        while not service.ready:
            if service.closing or service.engine.state in {"failed", "stopped"}:
                self.ended(Ending.SHUTDOWN if service.closing else Ending.FAILED)
                return False
            if not told:
                told = True
                await _send(self._websocket, status_text("wait", "The model is loading"))
            await service.changed.wait()
        try:
            session = service.registry.connect(self._options.user, self._options.mode, self)
        except ServerFullError:
            self._send_away(FULL)
            return False
        self._intake = Intake(
            session, service.codec, service.similarity_filter(), refuse=self._refuse, ask=self._ask_after
        )
        self._session = session
        self._heard_at = time.monotonic()  # whoever waited for the model was not idle
        self._watch_idleness()
        await _send(self._websocket, status_text("connected"))
        self._ask()
        return True

    def _say(self, status: Status, message: str) -> None:
        self._unsaid.append(status_text(status, message))
        self._to_say.set()

    def _ask(self) -> None:
        self._credit = True
        self._to_say.set()

    def _ask_after(self, pause: float) -> None:
        if self._asking is None:
            self._asking = asyncio.get_running_loop().call_later(pause, self._ask_now)

    def _ask_now(self) -> None:
        self._asking = None
        self._ask()

    def _send_away(self, farewell: Farewell) -> None:
        if self._farewell is None:
            self._farewell = farewell
            self._to_say.set()
            loop = asyncio.get_running_loop()
            self._lingering = loop.call_later(LINGER, self._tasks[0].cancel)

    # -- showing ----------------------------------------------------------------------------------

    async def _show(self) -> None:
        """Send results here; while one is being sent, newer ones replace each other."""
        options = self._options
        try:
            while True:
                await self._to_show.wait()
                self._to_show.clear()
                session = self._session
                if session is None or (result := session.result) is None:
                    continue
                picture = await self._service.codec.encode(result, options.format, options.quality)
                header = pack_header(
                    result, options.format, now=time.monotonic(), dropped=session.counters.dropped
                )
                await _send(self._websocket, header + picture)
        except WebSocketDisconnect:
            return

    # -- the end ----------------------------------------------------------------------------------

    def _watch_idleness(self) -> None:
        limit = self._service.settings.server.timeout
        if not limit or self._session is None or self._intake is None:
            return
        if self._session.waiting or self._intake.busy or self._asking is not None:
            self._heard_at = time.monotonic()  # the client waits for us, however long a frame takes
        remaining = self._heard_at + limit - time.monotonic()
        if remaining <= 0:
            self._service.registry.end(self._session, Ending.IDLE)
        else:
            self._idling = asyncio.get_running_loop().call_later(remaining, self._watch_idleness)

    def _leave(self) -> None:
        for timer in (self._asking, self._idling, self._lingering):
            if timer is not None:
                timer.cancel()
        if self._intake is not None:
            self._intake.close()
        if self._session is not None:
            self._service.registry.end(self._session, Ending.LEFT)
