"""A runner of a tiny model, and frames through it, without engine or threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from app.core.denoise import Guidance
from app.core.messages import FrameIn, Image, Mode, Row, SessionKey
from app.core.runner import DiffusionRunner, Execute, execute
from app.models.model import Model
from app.models.networks import Networks
from app.pipelines import img2img, txt2img
from app.pipelines.base import BasePipeline
from tests import tiny

PIPELINES: Mapping[Mode, BasePipeline[Any]] = {"image": img2img.Pipeline(), "video": txt2img.Pipeline()}


def create_runner(
    model: Model | None = None,
    *,
    networks: Networks | None = None,
    pipelines: Mapping[Mode, BasePipeline[Any]] = PIPELINES,
    buckets: tuple[int, ...] = (1, 2, 4),
    guidance: Guidance = "none",
    size: tuple[int, int] = (tiny.SIZE, tiny.SIZE),
    execute: Execute = execute,
) -> DiffusionRunner:
    model = model or tiny.model()
    return DiffusionRunner(
        model,
        networks or model.networks(),
        pipelines,
        width=size[0],
        height=size[1],
        buckets=buckets,
        guidance=guidance,
        description={},
        execute=execute,
    )


def picture(seed: int, size: tuple[int, int] = (tiny.SIZE, tiny.SIZE)) -> Image:
    """Noise over two flat colours."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    found[: size[1] // 2] = rng.integers(0, 256, 3)
    return found


def frame(
    mode: Mode = "image", *, number: int = 0, user: str = "a", image: Image | None = None, **parameters: Any
) -> FrameIn:
    """A frame with these parameters; ``timesteps`` replaces what the pipeline plans."""
    timesteps = parameters.pop("timesteps", None)
    pipeline = PIPELINES[mode]
    plan = pipeline.plan(pipeline.Params(**parameters))
    if timesteps is not None:
        plan = dataclasses.replace(plan, timesteps=timesteps)
    if image is None and mode == "image":
        image = picture(number)
    return FrameIn(SessionKey(user, 1), number, plan, image, received_at=0.0)


def row(runner: DiffusionRunner, frame: FrameIn, slot: int) -> Row:
    return Row(slot, frame, 0.0, tuple(runner.encode(text) for text in frame.plan.texts))


def run_alone(runner: DiffusionRunner, frame: FrameIn, slot: int = 0) -> Image | None:
    """All steps of one frame, with nobody else in the batch."""
    current = row(runner, frame, slot)
    while not current.finishes:
        runner.launch((current,))
        current = current.advanced()
    (image,) = runner.launch((current,)).collect()
    return image


def run_together(
    runner: DiffusionRunner, frames: Iterable[FrameIn], delays: Iterable[int] | None = None
) -> list[Image | None]:
    """The frames side by side, each in the slot of its place, beginning ``delays`` ticks late."""
    frames = list(frames)
    starts = list(delays) if delays is not None else [0] * len(frames)
    rows: dict[int, Row] = {}
    found: dict[int, Image | None] = {}
    tick = 0
    while len(found) < len(frames):
        for place, one in enumerate(frames):
            if starts[place] == tick:
                rows[place] = row(runner, one, place)
        if rows:
            images = runner.launch(tuple(rows.values())).collect()
            finished = [place for place, current in rows.items() if current.finishes]
            found |= dict(zip(finished, images, strict=True))
            rows = {place: current.advanced() for place, current in rows.items() if not current.finishes}
        tick += 1
    return [found[place] for place in range(len(frames))]
