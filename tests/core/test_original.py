"""Our rows against `streamdiffusion` 0.1.1, the implementation of the paper's authors, in float32.

It is pure Python and its numerics run on a CPU, but for events of CUDA in its ``__call__``; what that does
between them is what `Original` does here. Where it is at fault its state is put right first, and said so.
`scripts/install dev` installs it; without it these tests fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import streamdiffusion
import torch
from torch import Tensor

from app.core.denoise import Guidance, timestep_grid
from app.core.messages import FrameIn, Image, Plan, SessionKey
from app.core.runner import DiffusionRunner
from app.core.scheduler import Scheduler
from app.models.model import Model
from app.models.pixels import to_unit
from app.pipelines import img2img, txt2img
from tests import tiny

SEED = 2
STEPS = {1: [25], 2: [16, 32], 4: [0, 16, 32, 45]}
"""Places on the grid of 50 time steps; the last are those of the original's examples."""


class Original:
    """The authors' StreamDiffusion on weights of the same seed."""

    def __init__(self, places: list[int], guidance: Guidance, plan: Plan, vae: tiny.Vae = "tiny") -> None:
        self.stages = len(places)
        self.stream: Any = streamdiffusion.StreamDiffusion(
            tiny.pipeline(vae),
            places,
            torch_dtype=torch.float32,
            width=tiny.SIZE,
            height=tiny.SIZE,
            cfg_type=guidance,
        )
        self.stream.prepare(
            plan.prompt,
            plan.negative_prompt or "",
            num_inference_steps=50,
            guidance_scale=plan.guidance_scale,
            delta=plan.delta,
            generator=torch.Generator(),  # its default is one that all objects share
            seed=plan.seed,
        )

    @torch.no_grad()
    def __call__(self, image: Image | None) -> Tensor:
        """One call: a frame goes in, a frame comes out, which is another one with several stages."""
        if self.stages == 1:
            # The ring puts the first noise in at every call, but not for a ring of one stage, where the
            # residual noise begins as zero and goes on from frame to frame.
            self.stream.stock_noise = self.stream.init_noise.clone()
        if image is None:
            latents = self.stream.init_noise[:1].clone()
        else:
            latents = self.stream.encode_image(to_unit(torch.from_numpy(image)[None]))
        decoded: Tensor = self.stream.decode_image(self.stream.predict_x0_batch(latents))
        return decoded[0]

    def frames(self, images: Sequence[Image | None]) -> list[Tensor]:
        """The results of these frames: what falls out before the ring is full is garbage."""
        return [self(image) for image in [*images, *[images[-1]] * (self.stages - 1)]][self.stages - 1 :]


def ours(
    model: Model, guidance: Guidance, plan: Plan, images: Sequence[Image | None], stream_batch: bool = True
) -> list[Tensor]:
    """The results of the same frames by rows, as the engine schedules them: before their bytes."""
    decoded: list[Tensor] = []
    networks = model.networks()

    def decode(latents: Tensor) -> Tensor:
        decoded.extend(networks.decode(latents))
        return torch.stack(decoded[-len(latents) :])

    buckets = (1, 2, 3, 4)
    runner = DiffusionRunner(
        model,
        dataclasses.replace(networks, decode=decode),
        {"image": img2img.Pipeline(), "video": txt2img.Pipeline()},
        width=tiny.SIZE,
        height=tiny.SIZE,
        buckets=buckets,
        guidance=guidance,
        description={},
    )
    scheduler = Scheduler(
        buckets,
        stream_batch=stream_batch,
        embeddings=lambda frame: tuple(runner.encode(text) for text in frame.plan.texts),
        clock=lambda: 0.0,
    )
    scheduler.learn(dict.fromkeys(buckets, 1.0))
    waiting = [FrameIn(SessionKey("user", 1), n, plan, image, 0.0) for n, image in enumerate(images)]
    order: list[int] = []
    while waiting or scheduler.waiting or scheduler.in_flight:
        if waiting and not scheduler.waiting:
            scheduler.offer(waiting.pop(0))
        rows = scheduler.next_rows()
        pictures = runner.launch(rows).collect()
        order += [row.frame.number for row in rows if row.finishes]
        scheduler.advance(rows)
        assert all(picture is not None for picture in pictures)
    assert order == list(range(len(images)))
    return decoded


def pictures(count: int) -> list[Image]:
    """Pictures with flat parts, edges and noise, each unlike the others."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        picture = rng.integers(0, 256, (tiny.SIZE, tiny.SIZE, 3), np.uint8)
        picture[: tiny.SIZE // 2] = rng.integers(0, 256, 3)
        found.append(np.ascontiguousarray(picture))
    return found


def plan(steps: int, video: bool, scale: float = 1.6, **more: Any) -> Plan:
    grid = timestep_grid()
    return dataclasses.replace(
        Plan(
            mode="video" if video else "image",
            prompt="a red cat",
            negative_prompt="blurry",
            seed=SEED,
            timesteps=tuple(grid[place] for place in STEPS[steps]),
            guidance_scale=scale,
            delta=0.8,
        ),
        **more,
    )


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for mine, expected in zip(ours, theirs, strict=True):
        assert float(expected.std()) > 0.05, "too flat a picture to compare"
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("video", [False, True], ids=["img2img", "txt2img"])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("guidance", ["none", "self", "initialize", "full"])
def test_frames_are_those_of_the_original(guidance: Guidance, steps: int, video: bool) -> None:
    images: list[Image] | list[None] = [None] * 3 if video else pictures(3)
    model, wanted = tiny.model(), plan(steps, video)
    theirs = Original(STEPS[steps], guidance, wanted).frames(images)
    assert_same(ours(model, guidance, wanted, images), theirs)


@pytest.mark.parametrize("guidance", ["self", "initialize"])
def test_one_after_the_other_is_the_same(guidance: Guidance) -> None:
    """The original's frames need a full ring; ours may as well run alone, each step after the last."""
    images, model, wanted = pictures(2), tiny.model(), plan(4, video=False)
    theirs = Original(STEPS[4], guidance, wanted).frames(images)
    assert_same(ours(model, guidance, wanted, images, stream_batch=False), theirs)


@pytest.mark.parametrize("kind", ["tiny4", "kl"])
def test_other_autoencoders(kind: tiny.Vae) -> None:
    """From noise: the original draws a full VAE's latents at random where ours takes their mode."""
    model, wanted = tiny.model(kind), plan(2, video=True)
    theirs = Original(STEPS[2], "self", wanted, kind).frames([None])
    assert_same(ours(model, "self", wanted, [None]), theirs)


def test_delta_and_scale_count_as_in_the_original() -> None:
    image, model = pictures(1), tiny.model()
    found = []
    for scale, delta in ((1.2, 1.0), (2.5, 0.3)):
        wanted = plan(4, video=False, scale=scale, delta=delta)
        theirs = Original(STEPS[4], "self", wanted).frames(image)
        found += ours(model, "self", wanted, image)
        assert_same(found[-1:], theirs)
    assert (found[0] - found[1]).abs().max() > 0.01


def test_text_to_image_from_its_own_noise() -> None:
    """Its public ``txt2img``, which takes the noise from the global generator."""
    model, wanted = tiny.model(), plan(1, video=True)
    original = Original(STEPS[1], "none", wanted)
    torch.manual_seed(SEED)
    theirs = original.stream.txt2img()
    assert_same(ours(model, "none", wanted, [None]), list(theirs))


def test_sd_turbo() -> None:
    """Its public ``txt2img_sd_turbo``: one step from t = 999, without the boundary scalings."""
    model, wanted = tiny.model(), plan(1, video=True, timesteps=(999,))
    original = Original([0], "none", wanted)
    torch.manual_seed(SEED)
    with torch.no_grad():
        theirs = original.stream.txt2img_sd_turbo()
    assert_same(ours(model, "none", wanted, [None]), list(theirs))
