"""Everything that is asked once: settings, queue, status, health and metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.api.metrics import CONTENT_TYPE
from app.api.opening import opening_of, service_of
from app.api.schema import info, input_params
from app.core.messages import Mode
from app.core.session import Counters

router = APIRouter()

PAGE = "<h1>StreamDiffusion Backend</h1>"
"""Shown by front ends that draw ``page_content``."""

MODES: dict[Mode, str] = {
    "image": "Repaints what your camera sees, as the prompt says.",
    "video": "Makes pictures from the prompt alone.",
}


class SettingsResponse(BaseModel):
    """What a front end builds itself from."""

    input_params: dict[str, Any] = Field(description="JSON schema of a frame's parameters")
    info: dict[str, Any] = Field(description="Title and mode")
    max_queue_size: int = Field(description="Users at the same time at most; 0 is no limit")
    page_content: str = Field(description="HTML for the page's head")


class QueueResponse(BaseModel):
    """How many users there are."""

    queue_size: int = Field(description="Users connected now")


class HealthResponse(BaseModel):
    """One word, and more words where something is wrong or under way."""

    status: str
    message: str | None = None


class SessionsStatus(BaseModel):
    """What became of all frames since the start."""

    connected: int
    limit: int = Field(description="0 is no limit")
    received: int = Field(description="Complete frames of clients")
    results: int = Field(description="Pictures published")
    dropped: int = Field(description="Frames that gave way to a newer one")
    skipped: int = Field(description="Frames that the similarity filter skipped")
    failed: int = Field(description="Frames that gave no picture")
    errors: int = Field(description="Messages and pictures that were refused")


class StatusResponse(BaseModel):
    """What runs here, as it really is."""

    state: str = Field(description="starting, ready, failed, stopped")
    progress: str = Field(description="What the start is doing")
    failure: str | None = Field(description="Why it failed")
    degraded: str | None = Field(description="What is less than it should be, and why")
    engine: dict[str, str | int | bool] = Field(description="Model, device, acceleration in use, sizes")
    max_rows: int = Field(description="Frames in one batch at most, now")
    waiting: int = Field(description="Frames that wait for a batch")
    frames_per_second: float = Field(description="Of all users, over ten seconds")
    sessions: SessionsStatus


@router.get("/api/settings", tags=["front end"], summary="Parameters of a frame, for controls")
async def settings(request: Request, mode: Mode | None = None) -> SettingsResponse:
    """The parameters of the configured pipeline, or of the one for another mode."""
    service = await service_of(request)
    pipeline = service.settings.pipeline
    shown = mode or service.mode
    return SettingsResponse(
        input_params=input_params(
            service.planners[shown].Params, width=pipeline.width, height=pipeline.height
        ),
        info=info(shown, MODES[shown]),
        max_queue_size=service.settings.server.max_queue_size,
        page_content=PAGE,
    )


@router.get("/api/queue", tags=["front end"], summary="How many users there are")
async def queue(request: Request) -> QueueResponse:
    """The number of users that are connected."""
    service = opening_of(request).service
    return QueueResponse(queue_size=0 if service is None else len(service.registry))


@router.get("/api/status", tags=["operation"], summary="What runs, on what, and how well")
async def status(request: Request) -> StatusResponse:
    """The state of the engine and the sums of all sessions."""
    opening = opening_of(request)
    service, limit = opening.service, opening.settings.server.max_queue_size
    if service is None:
        return StatusResponse(
            state=opening.state,
            progress=opening.progress,
            failure=opening.failure,
            degraded=None,
            engine={},
            max_rows=0,
            waiting=0,
            frames_per_second=0.0,
            sessions=_sessions(0, limit, Counters()),
        )
    engine = service.engine
    return StatusResponse(
        state=engine.state,
        progress=engine.progress,
        failure=engine.failure,
        degraded=engine.degraded,
        engine=dict(engine.description),
        max_rows=engine.capacity,
        waiting=engine.waiting,
        frames_per_second=service.metrics.frames_per_second,
        sessions=_sessions(len(service.registry), limit, service.registry.counters),
    )


def _sessions(connected: int, limit: int, counters: Counters) -> SessionsStatus:
    return SessionsStatus(connected=connected, limit=limit, **asdict(counters))


@router.get(
    "/health/live",
    tags=["operation"],
    summary="Whether the process should go on",
    responses={503: {"model": HealthResponse, "description": "It should be started again"}},
)
async def live(request: Request, response: Response) -> HealthResponse:
    """503 when the engine has failed for good."""
    opening = opening_of(request)
    if opening.state == "failed":
        response.status_code = 503
        return HealthResponse(status="failed", message=opening.failure)
    return HealthResponse(status="live")


@router.get(
    "/health/ready",
    tags=["operation"],
    summary="Whether frames can be made",
    responses={503: {"model": HealthResponse, "description": "Not yet, or not any more"}},
)
async def ready(request: Request, response: Response) -> HealthResponse:
    """200 after the warm-up, until the server shuts down or fails."""
    opening = opening_of(request)
    if opening.state == "ready" and not opening.closing:
        return HealthResponse(status="ready")
    response.status_code = 503
    if opening.closing:
        return HealthResponse(status="stopping")
    return HealthResponse(status=opening.state, message=opening.failure or opening.progress)


@router.get("/metrics", tags=["operation"], summary="Metrics for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """Text in Prometheus' exposition format."""
    service = await service_of(request)
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)
