"""The mathematics of a step: against diffusers' LCMScheduler, and against the paper's ring read literally."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from app.core import denoise
from app.core.denoise import Guidance, NoiseSchedule, Prediction
from tests import tiny

GUIDANCE: tuple[Guidance, ...] = ("none", "full", "self", "initialize")
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
SHAPE = (4, 8, 8)

Predict = Callable[[Tensor, int, Tensor], Tensor]
"""(x of one row, time step, embedding) → the model's output."""


SCALINGS = (10.0, 0.001)
"""Of time steps in the boundary scalings: the usual one, and one that leaves much of x in what is made."""


def lcm_scheduler(prediction: Prediction = "epsilon", scaling: float = 10.0) -> Any:
    return LCMScheduler(**tiny.BETAS, prediction_type=prediction, timestep_scaling=scaling)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def columns(*rows: tuple[denoise.Coefficients, float, float]) -> Tensor:
    return torch.tensor(denoise.table(rows), dtype=torch.float64)


# -- time steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(1, 51))
def test_whole_grid_is_that_of_the_lcm_scheduler(steps: int) -> None:
    scheduler = lcm_scheduler()
    scheduler.set_timesteps(steps)
    assert denoise.timesteps(1.0, steps) == tuple(scheduler.timesteps.tolist())


@pytest.mark.parametrize(
    ("strength", "steps", "expected"),
    [
        (1.0, 4, (999, 759, 499, 259)),
        (0.5, 1, (499,)),
        (0.5, 2, (499, 259)),
        (0.0, 1, (19,)),
        (0.0, 8, (19,)),
        (0.06, 16, (59, 39, 19)),
    ],
)
def test_time_steps(strength: float, steps: int, expected: tuple[int, ...]) -> None:
    assert denoise.timesteps(strength, steps) == expected


@given(st.floats(0, 1), st.integers(1, 60))
def test_time_steps_descend_on_the_grid_from_the_strength(strength: float, steps: int) -> None:
    grid = denoise.timestep_grid()
    found = denoise.timesteps(strength, steps)
    start = 50 - max(1, round(50 * strength))
    assert found[0] == grid[start] == 999 - 20 * start
    assert len(found) == min(steps, 50 - start)
    assert list(found) == sorted(set(found), reverse=True)
    assert set(found) <= set(grid)


def test_time_steps_follow_the_number_a_model_was_trained_with() -> None:
    assert denoise.timestep_grid(500)[:2] == (499, 489)
    assert len(denoise.timestep_grid(500)) == len(denoise.timestep_grid(1000)) == 50


# -- coefficients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_step_is_that_of_the_lcm_scheduler(prediction: Prediction, scaling: float) -> None:
    scheduler, schedule = lcm_scheduler(prediction, scaling), tiny.schedule(prediction, scaling)
    scheduler.set_timesteps(50)
    x, output = randn(1, *SHAPE, seed=1).float(), randn(1, *SHAPE, seed=2).float()
    grid = denoise.timestep_grid()
    for timestep, following in zip(grid, [*grid[1:], None], strict=True):
        generator = torch.Generator().manual_seed(3)
        theirs = scheduler.step(output, timestep, x, generator)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        c = columns((schedule.coefficients(timestep, following), 1.0, 1.0)).float()
        ours = denoise.advance(x, noise, noise, output, None, c, "none")
        scale = float(theirs.denoised.abs().max())
        torch.testing.assert_close(ours.denoised / scale, theirs.denoised / scale, atol=2e-6, rtol=0)
        torch.testing.assert_close(ours.x / scale, theirs.prev_sample / scale, atol=2e-6, rtol=0)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("timestep", denoise.timestep_grid())
def test_boundary_scalings_are_those_of_the_lcm_scheduler(timestep: int, scaling: float) -> None:
    scheduler = lcm_scheduler(scaling=scaling)
    c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
    # x0 = 0·x + 1·m before the scalings
    c = tiny.schedule("sample", scaling).coefficients(timestep, None)
    assert c.x0_x == pytest.approx(c_skip, rel=1e-12)
    assert c.x0_m == pytest.approx(c_out, rel=1e-12)


@pytest.mark.parametrize("timestep", [999, 499, 19])
def test_rows_begin_with_the_noise_that_the_scheduler_adds(timestep: int) -> None:
    latents, noise = randn(1, *SHAPE, seed=1), randn(1, *SHAPE, seed=2)
    theirs = lcm_scheduler().add_noise(latents, noise, torch.tensor([timestep]))
    c = tiny.schedule().coefficients(timestep, None)
    torch.testing.assert_close(
        c.begin_image * latents + c.begin_noise * noise, theirs.double(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("timestep", [999, 759, 499, 19])
def test_conversions_between_noise_and_output_are_inverse(
    prediction: Prediction, timestep: int, scaling: float
) -> None:
    c = tiny.schedule(prediction, scaling).coefficients(timestep, None)
    x, output = 0.7, -1.3
    noise = c.eps_x * x + c.eps_m * output
    assert c.m_x * x + c.m_eps * noise == pytest.approx(output, rel=1e-9)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("timestep", [999, 499, 19])
def test_the_noise_of_a_clean_prediction_is_what_the_result_leaves(timestep: int, scaling: float) -> None:
    """x = signal·denoised + level·noise, also where the result keeps much of x."""
    schedule = tiny.schedule("sample", scaling)
    c = schedule.coefficients(timestep, None)
    signal = math.sqrt(schedule.alphas_cumprod[timestep])
    x, output = 0.7, -1.3
    denoised, noise = c.x0_x * x + c.x0_m * output, c.eps_x * x + c.eps_m * output
    assert signal * denoised + math.sqrt(1 - signal**2) * noise == pytest.approx(x, rel=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_schedule_without_terminal_signal_stays_finite(prediction: Prediction) -> None:
    schedule = NoiseSchedule((1.0, *np.linspace(0.999, 0.0, 999)), prediction)
    assert schedule.train_steps == 1000
    for timestep in (999, 19):
        for following in (None, 0, 499):
            assert all(math.isfinite(value) for value in schedule.coefficients(timestep, following))


# -- the paper's ring ---------------------------------------------------------------------------------


@dataclass
class Ring:
    """The stream batch of StreamDiffusion (sections 3.1 and 3.2) for a model that predicts noise.

    ``x`` and ``stock`` hold a frame at every stage: a call takes a new frame in at stage 0, moves all of
    them on by one stage and lets the last one out.
    """

    predict: Predict
    timesteps: tuple[int, ...]
    noise: Tensor  # (T, C, h, w)
    prompt: Tensor
    negative: Tensor
    guidance: Guidance
    scale: float
    delta: float
    x: list[Tensor] = field(default_factory=list)
    stock: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stages = len(self.timesteps)
        self.alpha = [math.sqrt(abar) for abar in self.levels()]
        self.beta = [math.sqrt(1 - abar) for abar in self.levels()]
        self.x = [torch.zeros(SHAPE, dtype=torch.float64)] * (self.stages - 1)
        self.stock = [torch.zeros(SHAPE, dtype=torch.float64)] * self.stages

    def levels(self) -> list[float]:
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        return [float(np.cumprod(1 - betas)[t]) for t in self.timesteps]

    def consistency(self, stage: int, z: Tensor, noise: Tensor) -> Tensor:
        """f(z) = c_skip·z + c_out·(z − β·noise)/α of latent consistency models."""
        t = 10 * self.timesteps[stage]
        c_skip, c_out = 0.25 / (t * t + 0.25), t / math.sqrt(t * t + 0.25)
        return c_skip * z + c_out * (z - self.beta[stage] * noise) / self.alpha[stage]

    def guided(self, stage: int, x: Tensor, stock: Tensor) -> Tensor:
        """Equation 4: the noise that guidance leads to."""
        t, conditional = self.timesteps[stage], self.predict(x, self.timesteps[stage], self.prompt)
        if self.guidance == "none":
            return conditional
        unconditional = self.delta * stock
        if self.guidance == "full":
            unconditional = self.predict(x, t, self.negative)
        return unconditional + self.scale * (conditional - unconditional)

    def __call__(self, latents: Tensor | None) -> Tensor:
        first = self.noise[0] if latents is None else self.alpha[0] * latents + self.beta[0] * self.noise[0]
        x = [first, *self.x]
        stock = [self.noise[0], *self.stock[:-1]]
        if self.guidance == "initialize":
            stock[0] = self.predict(x[0], self.timesteps[0], self.negative)
        guided = [self.guided(k, x[k], stock[k]) for k in range(self.stages)]
        denoised = [self.consistency(k, x[k], guided[k]) for k in range(self.stages)]
        self.x = [
            self.alpha[k + 1] * denoised[k] + self.beta[k + 1] * self.noise[k + 1]
            for k in range(self.stages - 1)
        ]
        # The residual noise takes the same step as the latents that it stands for.
        self.stock = [
            self.noise[k + 1]
            + self.alpha[k + 1] / self.beta[k + 1] * self.consistency(k, self.beta[k] * stock[k], guided[k])
            for k in range(self.stages - 1)
        ] + [torch.zeros_like(first)]
        return denoised[-1]


@dataclass
class Frame:
    """A row of the batch: what `advance` is given and what it left."""

    stream: Ring
    x: Tensor
    residual: Tensor
    stage: int = 0
    denoised: Tensor | None = None


def begin(schedule: NoiseSchedule, stream: Ring, latents: Tensor | None) -> Frame:
    c = schedule.coefficients(stream.timesteps[0], None)
    noise = stream.noise[0]
    return Frame(stream, noise if latents is None else c.begin_image * latents + c.begin_noise * noise, noise)


def tick(schedule: NoiseSchedule, frames: list[Frame], predict: Predict, guidance: Guidance) -> None:
    """One step of all these frames in one batch."""
    lines, following, prompted, negative = [], [], [], []
    for frame in frames:
        stream, stage = frame.stream, frame.stage
        last = stage == stream.stages - 1
        c = schedule.coefficients(stream.timesteps[stage], None if last else stream.timesteps[stage + 1])
        lines.append((c, stream.scale, stream.delta))
        following.append(stream.noise[stage if last else stage + 1])
        prompted.append(predict(frame.x, stream.timesteps[stage], stream.prompt))
        negative.append(predict(frame.x, stream.timesteps[stage], stream.negative))
        if guidance == "initialize" and stage == 0:
            batch = frame.x[None], negative[-1][None], columns(lines[-1])
            frame.residual = denoise.initial_residual(*batch)[0]
    step = denoise.advance(
        torch.stack([frame.x for frame in frames]),
        torch.stack([frame.residual for frame in frames]),
        torch.stack(following),
        torch.stack(prompted),
        torch.stack(negative) if guidance == "full" else None,
        columns(*lines),
        guidance,
    )
    for frame, denoised, x, residual in zip(frames, *step, strict=True):
        frame.denoised, frame.x, frame.residual = denoised, x, residual
        frame.stage += 1


@pytest.fixture(scope="module")
def predict() -> Predict:
    """A small model in float64 that is not linear in anything it is given."""
    channels, hidden = SHAPE[0], 16
    inwards, outwards = randn(hidden, channels, seed=1) / 2, randn(channels, hidden, seed=2) / 4
    of_time, of_text = randn(hidden, seed=3), randn(hidden, 5 * tiny.WIDTH, seed=4) / 12

    def call(x: Tensor, timestep: int, embedding: Tensor) -> Tensor:
        condition = torch.cos(of_time * timestep / 200) + of_text @ embedding.flatten()
        h = torch.tanh(torch.einsum("hc,cyx->hyx", inwards, x) + condition[:, None, None])
        return torch.einsum("ch,hyx->cyx", outwards, h + h.roll(1, 1) * h.roll(1, 2))

    return call


def ring(
    predict: Predict, timesteps: tuple[int, ...], guidance: Guidance, seed: int, scale: float, delta: float
) -> Ring:
    return Ring(
        predict,
        timesteps,
        randn(len(timesteps), *SHAPE, seed=seed),
        randn(5, tiny.WIDTH, seed=seed + 1000),
        randn(5, tiny.WIDTH, seed=seed + 2000),
        guidance,
        scale,
        delta,
    )


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("video", [False, True], ids=["image", "video"])
def test_rows_are_the_papers_ring(predict: Predict, guidance: Guidance, video: bool) -> None:
    """One stream, a frame in at every call: the frames in flight together make one batch."""
    schedule = tiny.schedule()
    stream = ring(predict, denoise.timesteps(1.0, 4), guidance, seed=5, scale=1.6, delta=0.9)
    inputs = [None if video else randn(*SHAPE, seed=40 + n) for n in range(5)]
    theirs = [stream(latents) for latents in [*inputs, *[inputs[-1]] * 3]][3:]  # garbage until it is full
    frames: list[Frame] = []
    ours: list[Tensor] = []
    for latents in [*inputs, *[None] * 3]:
        if len(ours) + len(frames) < len(inputs):
            frames.append(begin(schedule, stream, latents))
        tick(schedule, frames, predict, guidance)
        ours += [f.denoised for f in frames if f.stage == stream.stages and f.denoised is not None]
        frames = [f for f in frames if f.stage < stream.stages]
    assert len(ours) == len(theirs) == len(inputs)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("seed", range(3))
def test_random_schedules_share_a_batch(predict: Predict, guidance: Guidance, seed: int) -> None:
    """Streams with schedules, scales and lengths of their own, in batches composed at random."""
    chance = random.Random(seed)
    schedule = tiny.schedule()
    streams = [
        ring(
            predict,
            tuple(sorted(chance.sample(range(1, 1000), chance.randint(1, 5)), reverse=True)),
            guidance,
            seed=100 * seed + n,
            scale=chance.uniform(1.0, 3.0),
            delta=chance.uniform(0.0, 1.5),
        )
        for n in range(4)
    ]
    inputs = [None if chance.random() < 0.3 else randn(*SHAPE, seed=seed + n) for n in range(len(streams))]
    theirs = [
        [stream(latents) for _ in range(stream.stages)][-1]
        for stream, latents in zip(streams, inputs, strict=True)
    ]
    frames = [begin(schedule, stream, latents) for stream, latents in zip(streams, inputs, strict=True)]
    while going := [frame for frame in frames if frame.stage < frame.stream.stages]:
        tick(schedule, chance.sample(going, chance.randint(1, len(going))), predict, guidance)
    for frame, expected in zip(frames, theirs, strict=True):
        scale = float(expected.abs().max())
        assert frame.denoised is not None
        torch.testing.assert_close(frame.denoised / scale, expected / scale, atol=1e-12, rtol=0)


def by_the_paper(stream: Ring, latents: Tensor | None, schedule: NoiseSchedule) -> Tensor:
    """One frame by the formulas of section 3.2: no residual noise is carried from step to step; it is what at
    each step leads from the latents to a picture that stays the same, the frame's own ("self-negative") or
    what the first step makes of the negative prompt ("onetime-negative").
    """
    c = schedule.coefficients(stream.timesteps[0], None)
    x = stream.noise[0] if latents is None else c.begin_image * latents + c.begin_noise * stream.noise[0]
    negative = stream.noise[0]
    if stream.guidance == "initialize":
        negative = stream.predict(x, stream.timesteps[0], stream.negative)
    picture = (x - stream.beta[0] * negative) / stream.alpha[0]
    for stage, t in enumerate(stream.timesteps):
        conditional = stream.predict(x, t, stream.prompt)
        virtual = stream.delta * (x - stream.alpha[stage] * picture) / stream.beta[stage]
        denoised = stream.consistency(stage, x, virtual + stream.scale * (conditional - virtual))
        if stage + 1 < stream.stages:
            x = stream.alpha[stage + 1] * denoised + stream.beta[stage + 1] * stream.noise[stage + 1]
    return denoised


@pytest.mark.parametrize("guidance", ["self", "initialize"])
@pytest.mark.parametrize("video", [False, True], ids=["image", "video"])
@pytest.mark.parametrize("steps", [(499,), (499, 259), (999, 759, 499, 259), (699, 619, 299, 139, 19)])
def test_residual_guidance_is_the_papers(
    predict: Predict, guidance: Guidance, video: bool, steps: tuple[int, ...]
) -> None:
    schedule = tiny.schedule()
    stream = ring(predict, steps, guidance, seed=11, scale=1.8, delta=0.7)
    latents = None if video else randn(*SHAPE, seed=12)
    expected = by_the_paper(stream, latents, schedule)
    frame = begin(schedule, stream, latents)
    for _ in steps:
        tick(schedule, [frame], predict, guidance)
    assert frame.denoised is not None
    # The boundary scalings leave a little of x in what is made: c_skip is 7e-6 at 19, less before.
    torch.testing.assert_close(frame.denoised, expected, atol=1e-5, rtol=1e-5)


# -- what a model predicts ----------------------------------------------------------------------------


def in_other_words(predict: Predict, schedule: NoiseSchedule) -> Predict:
    """A model of noise as one that predicts what the schedule says."""

    def call(x: Tensor, timestep: int, embedding: Tensor) -> Tensor:
        abar = schedule.alphas_cumprod[timestep]
        alpha, beta = math.sqrt(abar), math.sqrt(1 - abar)
        noise = predict(x, timestep, embedding)
        x0 = (x - beta * noise) / alpha
        return alpha * noise - beta * x0 if schedule.prediction == "v_prediction" else x0

    return call


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_predictions_differ_in_words_only(
    predict: Predict, guidance: Guidance, prediction: Prediction
) -> None:
    schedule = tiny.schedule(prediction)
    stream = ring(predict, (979, 619, 299, 19), guidance, seed=7, scale=2.5, delta=0.8)
    latents = randn(*SHAPE, seed=8)
    expected = [stream(latents) for _ in range(4)][-1]
    frame = begin(schedule, stream, latents)
    for _ in range(4):
        tick(schedule, [frame], in_other_words(predict, schedule), guidance)
    assert frame.denoised is not None
    # The noise of a clean prediction is what the boundary scalings leave: c_skip is 7e-6 at 19.
    tolerance = 1e-5 if prediction == "sample" else 1e-10
    torch.testing.assert_close(frame.denoised, expected, atol=tolerance, rtol=tolerance)


# -- guidance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", ["full", "self", "initialize"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_scale_of_one_is_the_prediction_itself(guidance: Guidance, prediction: Prediction) -> None:
    c = columns((tiny.schedule(prediction).coefficients(999, 499), 1.0, 0.7)).float()
    x, residual, noise, output, negative = randn(5, 1, *SHAPE, seed=9).float()
    without = denoise.advance(x, residual, noise, output, None, c, "none")
    paired = negative if guidance == "full" else None
    guided = denoise.advance(x, residual, noise, output, paired, c, guidance)
    assert torch.equal(guided.denoised, without.denoised)
    assert torch.equal(guided.x, without.x)


def test_each_row_has_a_scale_of_its_own() -> None:
    c = tiny.schedule().coefficients(499, None)
    x, residual, noise, output, negative = randn(5, 2, *SHAPE, seed=9)
    both = denoise.advance(
        x, residual, noise, output, negative, columns((c, 1.0, 1.0), (c, 3.0, 1.0)), "full"
    )
    for row, scale in enumerate((1.0, 3.0)):
        one = slice(row, row + 1)
        alone = denoise.advance(
            x[one], residual[one], noise[one], output[one], negative[one],
            columns((c, scale, 1.0)), "full",
        )  # fmt: skip
        assert torch.equal(both.denoised[one], alone.denoised)


def test_padding_stays_zero() -> None:
    """A line of zeros in the table writes zeros, whatever the model predicts."""
    x, residual, noise, output, negative = randn(5, 1, *SHAPE, seed=9)
    step = denoise.advance(
        x, residual, noise, output, negative, torch.zeros(1, denoise.COLUMNS, dtype=torch.float64), "full"
    )
    assert not step.denoised.any()
    assert not step.x.any()


@pytest.mark.parametrize(
    ("scale", "distilled", "expected"),
    [
        (7.5, True, 1.2),
        (1.0, True, 1.0),
        (20.0, True, 1.0 + 19 * 0.2 / 6.5),
        (7.5, False, 7.5),
        (1.0, False, 1.0),
    ],
)
def test_what_a_guidance_scale_means(scale: float, distilled: bool, expected: float) -> None:
    assert denoise.effective_guidance(scale, distilled) == pytest.approx(expected, abs=1e-12)


# -- noise --------------------------------------------------------------------------------------------


def test_a_noise_map_depends_on_seed_and_stage_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    maps = denoise.seed_noise(42, 4, SHAPE)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert maps.shape == (4, *SHAPE)
    assert maps.dtype == torch.float32
    assert torch.equal(denoise.seed_noise(42, 2, SHAPE), maps[:2])
    assert not torch.equal(maps[0], maps[1])
    assert not torch.equal(denoise.seed_noise(43, 1, SHAPE)[0], maps[0])


def test_noise_maps_are_those_of_the_original() -> None:
    """It draws the maps of all stages at once."""
    at_once = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2))
    assert torch.equal(denoise.seed_noise(2, 4, SHAPE), at_once)


def test_the_largest_seed_works() -> None:
    assert denoise.seed_noise(2**53 - 1, 1, SHAPE).isfinite().all()
