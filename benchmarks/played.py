"""A model that does nothing but take its time: what the server and the engine cost shows best without one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from app.config.schema import Settings
from app.core.engine import Engine
from app.core.messages import Image, Mode, Plan, Row

BUCKETS = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Batch:
    """Rows that are done at a certain time; ``early`` seconds before, the next batch may be launched."""

    rows: tuple[Row, ...]
    batch: int
    done_at: float
    early: float

    def wait_turn(self) -> None:
        """A little before it is done."""
        _sleep_until(self.done_at - self.early)

    def wait_forward(self) -> None:
        """When it is done."""
        _sleep_until(self.done_at)

    def complete(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.done_at

    def collect(self) -> list[Image | None]:
        """The pictures as they came."""
        self.wait_forward()
        return [row.frame.image for row in self.rows if row.finishes]


class Device:
    """A runner that gives every picture back.

    Args:
        takes: the seconds of a batch by its size; one is made after the other.
        known: whether the scheduler is told.
        early: seconds before a batch's end at which the next one may be launched.
    """

    reads_negative_prompts = False
    description: Mapping[str, str | int | bool] = {"model": "played"}

    def __init__(self, takes: Mapping[int, float], *, known: bool = False, early: float = 0.0) -> None:
        self._takes = takes
        self.costs = takes if known else {}
        self._early = early
        self._free_at = 0.0

    def encode(self, text: str) -> str:
        """The text itself."""
        return text

    def launch(self, rows: tuple[Row, ...]) -> Batch:
        """Behind what was launched before."""
        size = next(size for size in self._takes if size >= len(rows))
        self._free_at = max(time.monotonic(), self._free_at) + self._takes[size]
        return Batch(rows, size, self._free_at, self._early)


class Params(BaseModel):
    """What a frame may have."""

    prompt: str = ""


class Planner:
    """One step for every frame."""

    Params = Params

    def __init__(self, mode: Mode) -> None:
        self._mode = mode

    def plan(self, params: Any) -> Plan:
        """With nothing but the prompt."""
        return Plan(self._mode, params.prompt, None, 0, (499,), 1.0, 1.0)


def application(settings: Settings, tick: float = 0.0) -> FastAPI:
    """The whole server on a device that takes ``tick`` seconds for any batch."""
    from app import main

    engine = Engine(lambda _report: Device(dict.fromkeys(BUCKETS, tick)), buckets=BUCKETS, stream_batch=False)
    planners: dict[Mode, Any] = {"image": Planner("image"), "video": Planner("video")}
    return main.create_app(settings, build=lambda _settings: (engine, planners))


def _sleep_until(when: float) -> None:
    if (remaining := when - time.monotonic()) > 0:
        time.sleep(remaining)
