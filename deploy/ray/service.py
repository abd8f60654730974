"""The server on Ray Serve: `serve run deploy.ray.service:app`, or `serve deploy deploy/ray/serve.yaml`.

Each replica is the whole application with a GPU of its own, as `python -m app.main` is without Ray.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from ray import serve

USERS = 8
"""Users for each replica that autoscaling aims at; measure with your model and GPU (docs/scaling.md)."""

CONNECTIONS = 2
"""Of a user: Ray counts the socket and the stream as one ongoing request each."""


def build() -> FastAPI:
    """The application, whose start ends only when frames can be made: before that, a replica gets no users.

    Runs in the replica.
    """
    from app import main

    app: FastAPI = main.app
    starts = app.router.lifespan_context

    @asynccontextmanager
    async def starts_and_loads(started: FastAPI) -> AsyncIterator[Any]:
        async with starts(started) as state:
            opening = started.state.opening
            service = await opening.wait()
            while not service.ready:
                if opening.closing or opening.failure is not None:
                    raise RuntimeError(opening.failure or "stopped while loading")
                await service.changed.wait()
            yield state

    app.router.lifespan_context = starts_and_loads
    return app


streamdiffusion = serve.deployment(
    name="streamdiffusion",
    ray_actor_options={"num_cpus": 1, "num_gpus": 1},
    request_router_config={"request_router_class": "deploy.ray.router.StickyRouter"},
    autoscaling_config={
        "min_replicas": 1,
        "max_replicas": 8,
        "target_ongoing_requests": CONNECTIONS * USERS,
        "upscale_delay_s": 10,
        "downscale_delay_s": 300,
    },
    # Far above what autoscaling aims at: a user's stream must find room where the user's socket is.
    max_ongoing_requests=CONNECTIONS * USERS * 8,
    # A replica that is to go takes no new users and keeps those it has for so long.
    graceful_shutdown_timeout_s=3600,
    graceful_shutdown_wait_loop_s=1,
    health_check_period_s=2,
    health_check_timeout_s=10,
)(serve.ingress(build)())

app = streamdiffusion.bind()
