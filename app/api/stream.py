"""The image stream: `/api/stream/{userId}`, one JPEG after the other, usable as ``<img src="…">``.

Browsers paint a part of `multipart/x-mixed-replace` when the next one begins. So each part is written
together with the boundary and the head of the next: what follows a picture is never waited for.
Chromium and Firefox then paint within 2 to 25 ms; without it they show every picture one late.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.codec import Codec
from app.api.opening import service_of
from app.api.service import Service
from app.api.websocket import FULL, LINGER
from app.core.session import Session

router = APIRouter(tags=["stream"])

BOUNDARY = "frame"
HEAD = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
BETWEEN = b"\r\n" + HEAD

REPEAT_AFTER = 0.2
"""When nothing follows a picture for so many seconds it is sent once more, for viewers that paint a part
only when they have read the next one."""

NOBODY = frozenset({"null", "undefined"})
"""What pages ask for when they have no user; nobody by these names is waited for."""


class Pace:
    """When the next frame may be sent so that there are at most ``fps`` a second.

    A frame that comes a little late does not push back those after it: frames of a 30 fps camera pass a
    limit of 30 although they never come evenly.
    """

    def __init__(self, fps: float) -> None:
        self._interval = 1 / fps
        self._due = 0.0

    def wait(self, now: float) -> float:
        """Seconds until a frame may be sent; 0 if it may be now."""
        return max(0.0, self._due - now)

    def sent(self, now: float) -> None:
        """Note that a frame is sent."""
        self._due = max(self._due, now - self._interval) + self._interval


async def parts(session: Session, codec: Codec, *, quality: int, max_fps: float) -> AsyncIterator[bytes]:
    """The body of the stream: the newest result, again and again, until the session is over. Results
    that come while a viewer is busy with an older one are passed over.
    """
    pace = Pace(max_fps)
    number, repeated = 0, True
    yield HEAD
    while True:
        result = await session.newer(number, None if repeated else REPEAT_AFTER)
        if session.over:
            return
        if result is None:
            repeated, result = True, session.result
            assert result is not None
        else:
            if pause := pace.wait(time.monotonic()):
                await asyncio.sleep(pause)
                result = session.result or result
            pace.sent(time.monotonic())
            number, repeated = result.number, False
        yield await codec.encode(result, "jpeg", quality) + BETWEEN


class MultipartResponse(Response):
    """A stream of parts that ends when they do, or when the viewer leaves.

    Args:
        body: the parts.
        over: returns when nothing comes any more; a viewer who does not read what is left is let go.
    """

    def __init__(self, body: AsyncIterator[bytes], over: Callable[[], Awaitable[None]]) -> None:
        self.status_code = 200
        self.media_type = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        self.background = None
        self._parts = body
        self._over = over
        self.init_headers(
            {
                "Cache-Control": "no-store, no-transform",
                # nginx would otherwise collect pictures before it passes them on.
                "X-Accel-Buffering": "no",
                "Connection": "close",
            }
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the parts until they end or the viewer is gone."""
        del scope
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_left(receive))
        ending = asyncio.create_task(self._linger())
        tasks = {sending, leaving, ending}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not sending.cancelled():
            sending.result()

    async def _linger(self) -> None:
        await self._over()
        await asyncio.sleep(LINGER)

    async def _send(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in self._parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (OSError, ClientDisconnect):
            return


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _session(service: Service, user: str) -> Session:
    registry = service.registry
    if registry.find(user) is None and registry.full:
        raise HTTPException(503, FULL.message)
    grace = 0.0 if user in NOBODY else service.settings.server.stream_grace
    session = await registry.wait_for(user, grace)
    if session is None:
        raise HTTPException(404, "This user is not connected")
    return session


@router.get(
    "/api/stream/{userId}",
    summary="A user's results as a stream of JPEG pictures",
    response_class=Response,
    responses={
        200: {"description": "Parts until the session ends", "content": {"multipart/x-mixed-replace": {}}},
        503: {"description": "The user is not connected, and the server is full"},
        404: {"description": "The user is not connected, and did not connect within a short grace"},
    },
)
async def stream(
    request: Request,
    userId: str,  # noqa: N803 - the contract's name
    quality: Annotated[
        int | None, Query(ge=1, le=100, description="JPEG quality; performance.jpeg_quality if left out")
    ] = None,
    max_fps: Annotated[float, Query(gt=0, le=1000, description="Pictures a second at most")] = 30,
) -> Response:
    """Watch a user's results, from before or after the user connects, as often as wanted."""
    service = await service_of(request)
    session = await _session(service, userId)
    quality = quality or service.settings.performance.jpeg_quality
    body = parts(session, service.codec, quality=quality, max_fps=max_fps)
    return MultipartResponse(body, session.wait_until_over)
