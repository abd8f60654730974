"""A played device under the real engine: what it does to a picture can be told by looking at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from app.core.engine import Engine
from app.core.messages import DeviceLostError, Image, Mode, Plan, Row

BUCKETS = (1, 2, 4, 8, 16)


class FakeParams(BaseModel):
    prompt: str = Field("", title="Prompt", json_schema_extra={"field": "textarea"})
    guidance_scale: float = Field(
        7.5, ge=1, le=20, title="Guidance Scale", json_schema_extra={"field": "range", "step": 0.1}
    )
    num_inference_steps: int = Field(
        1, ge=1, le=16, title="Steps", json_schema_extra={"field": "range", "step": 1}
    )
    seed: int = Field(42, ge=0, le=2**53 - 1, title="Seed", json_schema_extra={"field": "seed"})


@dataclass
class FakePlanner:
    mode: Mode
    Params: type[BaseModel] = FakeParams
    planned: int = 0

    def plan(self, params: Any) -> Plan:
        self.planned += 1
        steps = tuple(999 - 20 * step for step in range(params.num_inference_steps))
        return Plan(self.mode, params.prompt, None, params.seed, steps, params.guidance_scale, 1.0)


@dataclass
class FakeRunner:
    """Inverts pictures; in video mode paints one grey from the seed.

    The prompts "crash", "nan", "bad prompt" and "lost" do what they say. ``gate`` closed holds the forward
    pass; ``tick`` is how long one takes, in seconds; ``invert`` off passes pictures through.
    """

    size: tuple[int, int] = (64, 64)
    tick: float = 0.0
    invert: bool = True
    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)
    costs: Mapping[int, float] = field(default_factory=dict)
    reads_negative_prompts: bool = True

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def description(self) -> Mapping[str, str | int | bool]:
        return {"model": "fake", "device": "none", "acceleration": "none"}

    def encode(self, text: str) -> Any:
        if text == "bad prompt":
            raise ValueError("no such words")
        return text

    def launch(self, rows: tuple[Row, ...]) -> FakeBatch:
        prompts = {row.frame.plan.prompt for row in rows}
        if "crash" in prompts:
            raise RuntimeError("this row cannot be made")
        if "lost" in prompts:
            raise DeviceLostError("the device fell off the bus")
        self.batches.append(len(rows))
        return FakeBatch(self, rows, time.monotonic())

    def paint(self, row: Row) -> Image | None:
        frame = row.frame
        if frame.plan.prompt == "nan":
            return None
        if frame.image is None:
            height, width = self.size
            return np.full((height, width, 3), frame.plan.seed % 256, np.uint8)
        return 255 - frame.image if self.invert else frame.image


@dataclass
class FakeBatch:
    runner: FakeRunner
    rows: tuple[Row, ...]
    began: float

    @property
    def batch(self) -> int:
        return next(size for size in BUCKETS if size >= len(self.rows))

    def wait_turn(self) -> None:
        self.wait_forward()

    def wait_forward(self) -> None:
        assert self.runner.gate.wait(30), "nobody opened the gate"
        remaining = self.began + self.runner.tick - time.monotonic()
        if self.runner.tick and remaining > 0:
            time.sleep(remaining)

    def complete(self) -> bool:
        return self.runner.gate.is_set()

    def collect(self) -> list[Image | None]:
        self.wait_forward()
        return [self.runner.paint(row) for row in self.rows if row.finishes]


def create_engine(
    create_runner: Callable[[Callable[[str], None]], FakeRunner], *, watchdog_timeout: float = 30.0
) -> Engine:
    return Engine(create_runner, buckets=BUCKETS, stream_batch=False, watchdog_timeout=watchdog_timeout)
