"""The time before there is a service: to import torch and its company takes seconds.

What can be answered meanwhile is answered at once (health, status); whoever needs the service waits here.
"""

from __future__ import annotations

from fastapi import HTTPException, Request, WebSocket

from app.api.service import Service
from app.config.schema import Settings
from app.core.engine import State
from app.utils.signal import Signal


class NoServiceError(RuntimeError):
    """There will be no service; the message says why."""


class Opening:
    """A service, as soon as it is there."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.service: Service | None = None
        self.closing = False
        self._failure: str | None = None
        self._changed = Signal()

    @property
    def state(self) -> State:
        """Of the engine; "starting" before there is one."""
        if self._failure is not None:
            return "failed"
        return "starting" if self.service is None else self.service.engine.state

    @property
    def progress(self) -> str:
        """What the start is doing."""
        return "importing libraries" if self.service is None else self.service.engine.progress

    @property
    def failure(self) -> str | None:
        """Why it failed."""
        if self._failure is not None or self.service is None:
            return self._failure
        return self.service.engine.failure

    def arrive(self, service: Service) -> None:
        """Let in who waits."""
        self.service = service
        self._changed.ring()

    def fail(self, reason: str) -> None:
        """It cannot go on: tell whoever waits, or every user."""
        self._failure = reason
        if self.service is not None:
            self.service.fail()
        self._changed.ring()

    def close(self) -> None:
        """Tell the users and end the streams; nobody new is let in."""
        self.closing = True
        if self.service is not None:
            self.service.begin_shutdown()
        self._changed.ring()

    async def wait(self) -> Service:
        """The service. Raises NoServiceError if it does not come."""
        while self.service is None:
            if self._failure is not None:
                raise NoServiceError(self._failure)
            if self.closing:
                raise NoServiceError("The server is shutting down")
            await self._changed.wait()
        return self.service


def opening_of(connection: Request | WebSocket) -> Opening:
    """Of the application that a route belongs to."""
    opening: Opening = connection.app.state.opening
    return opening


async def service_of(request: Request) -> Service:
    """The service, once it is there. Raises HTTPException if it does not come."""
    try:
        return await opening_of(request).wait()
    except NoServiceError as error:
        raise HTTPException(503, str(error)) from error
