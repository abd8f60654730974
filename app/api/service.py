"""What the routes share: the parts of the service, and whether it is open."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.api.codec import Codec
from app.api.metrics import Metrics
from app.api.protocol import Planner
from app.config.schema import PipelineSettings, Settings
from app.core.engine import Engine
from app.core.messages import Mode
from app.core.session import Ending, Registry
from app.utils.signal import Signal
from app.utils.similarity import SimilarityFilter

DEFAULT_PIPELINE = PipelineSettings().name


@dataclass
class Service:
    """The parts of a running service."""

    settings: Settings
    engine: Engine
    planners: Mapping[Mode, Planner]
    metrics: Metrics = field(init=False)
    registry: Registry = field(init=False)
    codec: Codec = field(init=False)
    changed: Signal = field(init=False, default_factory=Signal)
    closing: bool = field(init=False, default=False)
    mode: Mode = field(init=False)
    """Of a connection that names none."""

    def __post_init__(self) -> None:
        pipeline, server = self.settings.pipeline, self.settings.server
        self.mode = _mode(pipeline, self.planners)
        self.registry = Registry(
            self.engine, limit=server.max_queue_size, observe=lambda event: self.metrics.observe(event)
        )
        self.codec = Codec(
            width=pipeline.width,
            height=pipeline.height,
            max_pixels=server.max_image_pixels,
            threads=self.settings.performance.codec_threads or min(8, len(os.sched_getaffinity(0))),
        )
        self.metrics = Metrics(self.registry, self.engine)

    @property
    def ready(self) -> bool:
        """Whether frames can be made now."""
        return self.engine.state == "ready" and not self.closing

    async def open(self) -> None:
        """Load and warm up the engine; connections that wait are let in. Raises what loading raised."""
        try:
            await self.engine.start(self.registry.deliver)
        finally:
            self.changed.ring()

    def fail(self) -> None:
        """The engine cannot go on: tell every user."""
        self.registry.end_all(Ending.FAILED)
        self.changed.ring()

    def begin_shutdown(self) -> None:
        """Tell the users and end the streams; nobody new is let in."""
        self.closing = True
        self.registry.end_all(Ending.SHUTDOWN)
        self.changed.ring()

    async def close(self, within: float) -> bool:
        """End the engine and the threads. Returns False if that takes longer than ``within`` seconds."""
        self.begin_shutdown()
        try:
            await asyncio.wait_for(asyncio.gather(self.codec.stop(), self.engine.stop()), within)
        except asyncio.TimeoutError:
            return False
        return True

    def similarity_filter(self) -> SimilarityFilter | None:
        """A filter for one session, if the configuration wants one."""
        performance = self.settings.performance
        if not performance.enable_similar_image_filter:
            return None
        return SimilarityFilter(
            performance.similar_image_filter_threshold, performance.similar_image_filter_max_skip_frame
        )


def _mode(pipeline: PipelineSettings, planners: Mapping[Mode, Planner]) -> Mode:
    """The configured mode; but who names a pipeline other than the default wants what it makes."""
    for mode, planner in planners.items():
        if type(planner).__module__ == f"app.pipelines.{pipeline.name}" and pipeline.name != DEFAULT_PIPELINE:
            return mode
    return pipeline.mode
