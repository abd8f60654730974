"""The engine on SD-Turbo's architecture, built as the server builds it, with its start-up timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.accelerations import load_acceleration
from app.accelerations._cuda_graph import GraphExecutor
from app.accelerations.base import Shapes
from app.core.factory import batch_sizes
from app.core.messages import Mode, Plan
from app.core.runner import DiffusionRunner, Execute, execute
from app.pipelines import load_pipelines
from benchmarks import sd_turbo
from benchmarks.results import summary

SIZE = 512


def plan(mode: Mode, steps: int, prompt: str = "a portrait of a cat, oil on canvas") -> Plan:
    """The plan of a frame with the product's defaults."""
    pipeline = load_pipelines("img2img")[mode]
    return pipeline.plan(pipeline.Params(prompt=prompt, num_inference_steps=steps, guidance_scale=1.0))


class Stopwatch:
    """Times what a runner executes, by the first word of its key and its batch, with events on the device."""

    def __init__(self, inner: Execute) -> None:
        self._inner = inner
        self._events: dict[tuple[str, int], list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}

    def __call__(self, key: Any, function: Callable[..., Any], *tensors: Tensor) -> Any:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = self._inner(key, function, *tensors)
        end.record()
        name = f"{key[0]} {key[1]}" if key[0] == "begin" else key[0]
        self._events.setdefault((name, key[-1]), []).append((begin, end))
        return result

    def reset(self) -> None:
        """Forget what was measured."""
        self._events.clear()

    def figures(self) -> dict[str, Any]:
        """Milliseconds by stage and batch."""
        torch.cuda.synchronize()
        return {
            f"{name}, batch {batch}": summary([begin.elapsed_time(end) for begin, end in pairs])
            for (name, batch), pairs in self._events.items()
        }


@dataclass
class Ours:
    """A warm runner and what it took to get there."""

    runner: DiffusionRunner
    buckets: tuple[int, ...]
    stopwatch: Stopwatch | None
    seconds: dict[str, float] = field(default_factory=dict)


def build(
    acceleration: str,
    *,
    graph: bool,
    buckets: tuple[int, ...] | None = None,
    timed: bool = False,
) -> Ours:
    """Model, acceleration and warm runner."""
    seconds = {}
    since = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal since
        seconds[name] = round(time.perf_counter() - since, 3)
        since = time.perf_counter()

    device = torch.device("cuda")
    model = sd_turbo.model(device, torch.float16)
    lap("weights")
    buckets = buckets or batch_sizes(None, device)
    networks = load_acceleration(acceleration, device, Path("engines")).networks(
        model, Shapes(SIZE, SIZE, buckets, buckets), _unheard
    )
    lap("acceleration")
    run: Execute = GraphExecutor(device) if graph else execute
    stopwatch = Stopwatch(run) if timed else None
    runner = DiffusionRunner(
        model,
        networks,
        load_pipelines("img2img"),
        width=SIZE,
        height=SIZE,
        buckets=buckets,
        guidance="none",
        description={},
        execute=stopwatch or run,
    )
    runner.warm_up(10, _unheard)
    lap("warm-up")
    if stopwatch:
        stopwatch.reset()
    return Ours(runner, buckets, stopwatch, seconds)


def _unheard(_words: str) -> None:
    """Nobody reads the progress."""
