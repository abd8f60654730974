"""Every acceleration on a GPU, at SD-Turbo's size, against plain PyTorch in float32.

`pytest -m gpu tests/gpu`. Weights are random; two small models of the same weights stand beside each other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPConfig

from app.accelerations import _load, load_acceleration
from app.accelerations._cuda_graph import GraphExecutor
from app.accelerations.base import Shapes
from app.config.schema import available_accelerations
from app.core.denoise import Guidance
from app.core.messages import SLOTS_PER_ROW, FrameIn, Image, Plan, Row, SessionKey
from app.core.runner import Batch, DiffusionRunner, execute
from app.models.model import Model
from app.models.networks import Networks
from app.models.safety import SafetyChecker
from app.pipelines import load_pipelines
from benchmarks import sd_turbo
from benchmarks.streams import pictures

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

SIZE = 256
BUCKETS = (1, 2, 4)
SMALL: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "attention_head_dim": (2, 4, 8, 8)}
SMALLEST: dict[str, Any] = {
    "block_out_channels": (64, 64, 64, 64),
    "layers_per_block": 1,
    "attention_head_dim": (1, 1, 1, 1),
}
LATENT_ERROR = 1e-2
"""Relative, of what a network returns in half precision."""
PSNR = 35.0
"""Decibels, of finished pictures."""


@pytest.fixture(scope="session")
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def reference(device: torch.device) -> Model:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return sd_turbo.model(device, torch.float32, **SMALL)


@pytest.fixture(params=[name for name in available_accelerations() if name != "auto"])
def accelerated(
    request: Any, device: torch.device, reference: Model, tmp_path: Path
) -> tuple[Model, Networks]:
    problems = _load(request.param).problems(device)
    if problems:
        pytest.skip("; ".join(problems))
    model = half(reference)
    acceleration = load_acceleration(request.param, device, tmp_path)
    return model, acceleration.networks(model, Shapes(SIZE, SIZE, BUCKETS, BUCKETS), lambda _words: None)


def half(reference: Model) -> Model:
    model = sd_turbo.model(reference.device, torch.float16, **SMALL)
    for mine, theirs in ((model.unet, reference.unet), (model.vae, reference.vae)):
        mine.load_state_dict(theirs.state_dict())
    model.text_encoder.load_state_dict(reference.text_encoder.state_dict())
    return model


def runner(
    model: Model, networks: Networks, *, graph: bool, size: int = SIZE, guidance: Guidance = "none"
) -> DiffusionRunner:
    made = DiffusionRunner(
        model,
        networks,
        load_pipelines("img2img"),
        width=size,
        height=size,
        buckets=BUCKETS,
        guidance=guidance,
        description={},
        execute=GraphExecutor(model.device) if graph else execute,
    )
    made.warm_up(1, lambda _words: None)
    return made


def plan(steps: int, prompt: str = "a cat", seed: int = 1, guidance_scale: float = 1.0) -> Plan:
    pipeline = load_pipelines("img2img")["image"]
    params = pipeline.Params(
        prompt=prompt,
        negative_prompt="a dog",
        num_inference_steps=steps,
        seed=seed,
        guidance_scale=guidance_scale,
    )
    return pipeline.plan(params)


def begun(using: DiffusionRunner, plans: list[Plan], images: list[Image]) -> tuple[Row, ...]:
    return tuple(
        Row(
            slot,
            FrameIn(SessionKey("user", slot), 0, plan, image, 0.0),
            0.0,
            tuple(using.encode(text) for text in plan.texts),
        )
        for slot, (plan, image) in enumerate(zip(plans, images, strict=True))
    )


def make(using: DiffusionRunner, plans: list[Plan], images: list[Image]) -> list[Image]:
    """Frames that go through all their steps in one batch."""
    rows = begun(using, plans, images)
    for _ in plans[0].timesteps:
        made = using.launch(rows).collect()
        rows = tuple(row.advanced() for row in rows)
    assert all(image is not None for image in made)
    return [image.copy() for image in made if image is not None]


def relative(made: Tensor, expected: Tensor) -> float:
    return float((made.float() - expected).norm() / expected.norm())


def psnr(made: Image, expected: Image) -> float:
    error = np.mean((made.astype(float) - expected.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


@pytest.mark.parametrize("batch", BUCKETS)
def test_networks_are_close_to_float32(
    accelerated: tuple[Model, Networks], reference: Model, batch: int
) -> None:
    _, networks = accelerated
    device = reference.device
    generator = torch.Generator(device).manual_seed(batch)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    latents, text = normal(batch, 4, SIZE // 8, SIZE // 8), normal(batch, 77, 1024)
    images, timesteps = (
        normal(batch, 3, SIZE, SIZE).clamp(-1, 1),
        torch.linspace(19, 999, batch, device=device).round(),
    )
    with torch.inference_mode():
        assert (
            relative(
                networks.unet(latents, timesteps, text.half()), reference.predict(latents, timesteps, text)
            )
            < LATENT_ERROR
        )
        assert relative(networks.encode(images), reference.encode(images)) < LATENT_ERROR
        assert relative(networks.decode(latents), reference.decode(latents)) < LATENT_ERROR


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
def test_pictures_are_close_to_float32_and_do_not_see_their_neighbours(
    accelerated: tuple[Model, Networks], reference: Model, graph: bool
) -> None:
    model, networks = accelerated
    exact, fast = runner(reference, reference.networks(), graph=False), runner(model, networks, graph=graph)
    images = pictures(8, SIZE, SIZE)
    for steps in (1, 2, 4):
        for batch in BUCKETS:
            plans = [plan(steps, f"a cat {n}", seed=n) for n in range(batch)]
            made = make(fast, plans, images[:batch])
            expected = make(exact, plans, images[:batch])
            assert min(psnr(a, b) for a, b in zip(made, expected, strict=True)) > PSNR
            others = [plans[0], *(plan(steps, "a dog", seed=99) for _ in plans[1:])]
            again = make(fast, others, [images[0], *images[-batch:-1]][:batch])
            assert np.array_equal(again[0], made[0])


@pytest.mark.parametrize("guidance", ["full", "self", "initialize"])
def test_guided_pictures_within_graphs_are_close_to_float32(
    device: torch.device, reference: Model, tmp_path: Path, guidance: Guidance
) -> None:
    """Rows begin one by one, beside rows that go on."""
    model = half(reference)
    networks = load_acceleration("fused", device, tmp_path).networks(
        model, Shapes(SIZE, SIZE, BUCKETS, BUCKETS), lambda _words: None
    )
    exact = runner(reference, reference.networks(), graph=False, guidance=guidance)
    fast = runner(model, networks, graph=True, guidance=guidance)
    images = pictures(4, SIZE, SIZE)
    plans = [plan(2 + n % 3, f"a cat {n}", seed=n, guidance_scale=7.5) for n in range(4)]

    def joined_one_by_one(using: DiffusionRunner) -> list[Image]:
        waiting = list(begun(using, plans, images))
        running: list[Row] = []
        made: dict[int, Image] = {}
        while waiting or running:
            running += waiting[:1]
            del waiting[:1]
            done = [row.slot for row in running if row.finishes]
            for slot, image in zip(done, using.launch(tuple(running)).collect(), strict=True):
                assert image is not None
                made[slot] = image
            running = [row.advanced() for row in running if not row.finishes]
        return [made[n] for n in range(len(plans))]

    expected = joined_one_by_one(exact)
    for _ in range(2):  # captured, then replayed
        made = joined_one_by_one(fast)
        assert min(psnr(a, b) for a, b in zip(made, expected, strict=True)) > PSNR


def test_batches_that_overlap_make_the_same_pictures(device: torch.device, reference: Model) -> None:
    """Encoding, forward passes and decoding of two batches at a time: whatever they shared would show."""
    model = half(reference)
    networks = load_acceleration("fused", device, Path()).networks(
        model, Shapes(SIZE, SIZE, BUCKETS, BUCKETS), lambda _words: None
    )
    using = runner(model, networks, graph=True)
    images = pictures(4, SIZE, SIZE)
    plans = [plan(1, f"a cat {n}", seed=n) for n in range(4)]
    embeddings = [tuple(using.encode(text) for text in one.texts) for one in plans]

    def rows(number: int, batch: int) -> tuple[Row, ...]:
        """The batches of a number are all alike; their slots alternate."""
        return tuple(
            Row(
                number % SLOTS_PER_ROW * BUCKETS[-1] + n,
                FrameIn(SessionKey("user", n), number, plans[(kind + n) % 4], images[n], 0.0),
                0.0,
                embeddings[(kind + n) % 4],
            )
            for kind in [number // SLOTS_PER_ROW % 4]
            for n in range(batch)
        )

    def matches(batch: int, number: int, made: list[Image | None]) -> bool:
        alone = expected[batch, number // SLOTS_PER_ROW % 4]
        pairs = zip(made, alone, strict=True)
        return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)

    expected = {
        (batch, kind): using.launch(rows(kind * SLOTS_PER_ROW, batch)).collect()
        for batch in BUCKETS
        for kind in range(4)
    }
    before = None
    for number in range(3000):
        batch = BUCKETS[number * number % 7 % 3]
        launched = using.launch(rows(number, batch))
        if before is not None:
            assert matches(before[0], number - 1, before[1].collect())
        before = batch, launched


def test_memory_does_not_grow(device: torch.device, tmp_path: Path) -> None:
    """100,000 ticks of all batch sizes, with prompts and seeds that come and go; of the smallest pictures and
    model, since it takes minutes all the same.
    """
    size = 64
    model = sd_turbo.model(device, torch.float16, **SMALLEST)
    networks = load_acceleration("fused", device, tmp_path).networks(
        model, Shapes(size, size, BUCKETS, BUCKETS), lambda _words: None
    )
    using = runner(model, networks, graph=True, size=size)
    images = pictures(4, size, size)
    embeddings = [tuple(using.encode(f"a cat {n}") for _ in range(1)) for n in range(50)]
    plans = [plan(1 + n % 2, f"a cat {n}", seed=n) for n in range(50)]
    used: list[tuple[int, int]] = []
    before: Batch | None = None
    for tick in range(100_000):
        which, first = tick % 50, tick % SLOTS_PER_ROW * BUCKETS[-1]
        rows = tuple(
            Row(first + n, FrameIn(SessionKey("user", n), tick, plans[which], images[n], 0.0), 0.0, found)
            for n, found in enumerate([embeddings[which]] * (1 + tick % 4))
        )
        launched = using.launch(rows)
        if before is not None:
            before.collect()
        before = launched
        if tick in (5_000, 99_999):
            used.append((torch.cuda.memory_reserved(), psutil.Process().memory_info().rss))
    assert used[1][0] <= used[0][0]
    assert used[1][1] <= used[0][1] + 20 * 2**20


def test_a_function_that_raises_while_it_is_captured_can_be_called_again(device: torch.device) -> None:
    call: Callable[..., Any] = GraphExecutor(device)
    x = torch.ones(3, device=device)
    assert call("key", lambda t: t + 1, x).tolist() == [2, 2, 2]
    assert call("key", lambda t: t + 1, x).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError):
        call("key", lambda t: t + float(t.sum()), x)  # waits for the device, which a capture must not
    torch.cuda.synchronize()
    assert call("key", lambda t: {"double": 2 * t}, x + 1)["double"].tolist() == [4, 4, 4]
    kept = call("key", lambda t: t, x)["double"]
    call("key", lambda t: t, 5 * x)
    assert kept.tolist() == [2, 2, 2]  # a result is the caller's own


def test_pictures_are_checked_within_a_graph(device: torch.device) -> None:
    torch.manual_seed(0)
    vision = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    network: Any = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=64))
    checker = SafetyChecker(network.to(device, torch.float16).eval())
    images = torch.from_numpy(np.stack(pictures(4, SIZE, SIZE))).to(device)
    graph = GraphExecutor(device)
    with torch.inference_mode():
        for threshold, unsafe in 3 * ((-2.0, True), (2.0, False)):  # a graph reads weights when it runs
            network.concept_embeds_weights.data.fill_(threshold)
            assert graph("check", checker.unsafe, images).tolist() == 4 * [unsafe]
