"""The mathematics of one denoising step for a batch of rows, each at a time step of its own.

The step is StreamDiffusion's (arXiv:2312.12491, section 3): a latent consistency step (arXiv:2310.04378,
equations 9 and 10) with residual classifier-free guidance. Written per row it is affine in the latents, so
everything that depends on the time step alone is a table of coefficients, computed once in float64, and
the device does nothing but multiply and add.

Free functions of tensors; it knows neither sessions nor slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]
Guidance = Literal["none", "full", "self", "initialize"]

SIGMA_DATA = 0.5  # as in diffusers' LCMScheduler
ORIGINAL_STEPS = 50  # the grid that latent consistency models are distilled on


def timestep_grid(train_steps: int = 1000) -> tuple[int, ...]:
    """The time steps of the consistency grid, descending: 999, 979, … 19 for 1000 training steps."""
    stride = train_steps // ORIGINAL_STEPS
    return tuple(range(train_steps - 1, -1, -stride))[:ORIGINAL_STEPS]


def timesteps(strength: float, steps: int, train_steps: int = 1000) -> tuple[int, ...]:
    """The time steps of one frame, descending.

    Args:
        strength: in [0, 1]: at which share of the grid the frame starts; 1 is pure noise.
        steps: at least 1; no more steps are made than the grid has left.
        train_steps: how many time steps the model was trained with.
    """
    grid = timestep_grid(train_steps)
    left = max(1, round(len(grid) * strength))
    steps = min(steps, left)
    return tuple(grid[len(grid) - left + k * left // steps] for k in range(steps))


def effective_guidance(scale: float, distilled: bool) -> float:
    """What ``guidance_scale`` means to a model.

    A model distilled for guidance 1 (SD-Turbo, LCM) burns the picture at the scale of 7.5 that is usual
    elsewhere. For it the range is compressed so that 1 still means none and 7.5 means 1.2, the scale
    StreamDiffusion uses by default; other models get what was asked for.
    """
    return 1.0 + (scale - 1.0) * (0.2 / 6.5) if distilled else scale


class Coefficients(NamedTuple):
    """One row of the table; all floats. With x the row's latents, m what the model predicts, n' the noise
    of the next stage and s the row's residual noise.

    ===============  ==================================================
    denoised         ``x0_x * x + x0_m * m``
    noise of m       ``eps_x * x + eps_m * m``
    m of a noise e   ``m_x * x + m_eps * e``
    next x           ``next_x0 * denoised + next_noise * n'``
    next s           ``n' + res_s * s + res_eps * (noise of guided m)``
    ===============  ==================================================
    """

    x0_x: float
    x0_m: float
    eps_x: float
    eps_m: float
    m_x: float
    m_eps: float
    next_x0: float
    next_noise: float
    res_s: float
    res_eps: float
    begin_image: float
    begin_noise: float


@dataclass(frozen=True)
class NoiseSchedule:
    """What a model was trained with: cumulative products of alpha by time step, and what it predicts.

    ``timestep_scaling`` is that of the boundary scalings of latent consistency models, named and preset as in
    diffusers' LCMScheduler.
    """

    alphas_cumprod: tuple[float, ...]
    prediction: Prediction
    timestep_scaling: float = 10.0

    def __hash__(self) -> int:
        # The key of a cache that is asked twice per row and tick: a thousand numbers would take longer to
        # hash than everything else that the host does.
        return hash((self.prediction, self.alphas_cumprod[-1]))

    @property
    def train_steps(self) -> int:
        """How many time steps the model was trained with."""
        return len(self.alphas_cumprod)

    def coefficients(self, timestep: int, following: int | None) -> Coefficients:
        """The coefficients of a step from one time step to the following, or to the picture if None."""
        return _coefficients(self, timestep, following)


@lru_cache(maxsize=4096)
def _coefficients(schedule: NoiseSchedule, timestep: int, following: int | None) -> Coefficients:
    signal, noise = _levels(schedule, timestep)
    next_signal, next_noise = (1.0, 0.0) if following is None else _levels(schedule, following)
    scaled = timestep * schedule.timestep_scaling
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / math.hypot(scaled, SIGMA_DATA)
    if schedule.prediction == "epsilon":
        x0_x, x0_m, eps_x, eps_m, m_x, m_eps = 1 / signal, -noise / signal, 0.0, 1.0, 0.0, 1.0
    elif schedule.prediction == "v_prediction":
        x0_x, x0_m, eps_x, eps_m, m_x, m_eps = signal, -noise, noise, signal, -noise / signal, 1 / signal
    else:
        # Such a model's clean latents are those after the scalings, which may leave much of x in them; the
        # noise that guidance works on follows from them.
        x0_x, x0_m, c_skip, c_out = c_skip, c_out, 0.0, 1.0
        eps_x, eps_m = (1 - signal * x0_x) / noise, -signal * x0_m / noise
        m_x, m_eps = (1 / signal - x0_x) / x0_m, -noise / (signal * x0_m)
    # The residual is only carried to a following stage.
    carry = 0.0 if following is None else next_signal / next_noise
    return Coefficients(
        x0_x=c_out * x0_x + c_skip,
        x0_m=c_out * x0_m,
        eps_x=eps_x,
        eps_m=eps_m,
        m_x=m_x,
        m_eps=m_eps,
        next_x0=next_signal,
        next_noise=next_noise,
        res_s=carry * (c_out * noise / signal + c_skip * noise),
        res_eps=-carry * c_out * noise / signal,
        begin_image=signal,
        begin_noise=noise,
    )


def _levels(schedule: NoiseSchedule, timestep: int) -> tuple[float, float]:
    """Signal and noise level, sqrt(abar) and sqrt(1 - abar); neither is let become zero, since a schedule
    with zero terminal signal has no finite epsilon there.
    """
    alpha = min(max(schedule.alphas_cumprod[timestep], 1e-8), 1 - 1e-8)
    return math.sqrt(alpha), math.sqrt(1.0 - alpha)


class Step(NamedTuple):
    """What a batch of rows becomes; each of shape (B, C, h, w), float32."""

    denoised: Tensor
    x: Tensor
    residual: Tensor


COLUMNS = len(Coefficients._fields) + 2
"""Columns of the table on the device: the coefficients, guidance scale and delta."""


def table(rows: Sequence[tuple[Coefficients, float, float]]) -> list[list[float]]:
    """The table of (coefficients, guidance scale, delta) per row."""
    return [[*coefficients, scale, delta] for coefficients, scale, delta in rows]


def _columns(table: Tensor) -> tuple[Coefficients, Tensor, Tensor]:
    """The table's columns, each (B, 1, 1, 1): the coefficients, by name, guidance scale and delta."""
    *coefficients, scale, delta = table[:, :, None, None, None].unbind(1)
    return Coefficients(*coefficients), scale, delta  # type: ignore[arg-type] # the same names, for tensors


def initial_residual(x: Tensor, negative: Tensor, columns: Tensor) -> Tensor:
    """What the residual noise of rows with "initialize" guidance begins as; arguments as of ``advance``."""
    c, _, _ = _columns(columns)
    return c.eps_x * x + c.eps_m * negative


def advance(
    x: Tensor,
    residual: Tensor,
    following_noise: Tensor,
    prediction: Tensor,
    negative: Tensor | None,
    columns: Tensor,
    guidance: Guidance,
) -> Step:
    """One step of every row.

    Args:
        x: latents, (B, C, h, w), float32.
        residual: the residual noise s of each row, as ``x``.
        following_noise: the noise of each row's next stage, as ``x``.
        prediction: the model's output for the prompts, as ``x``.
        negative: the model's output for the negative prompts, as ``x``; None unless guidance is "full".
        columns: the table, (B, COLUMNS), float32.
        guidance: one of the paper's four kinds (section 3.2).

    Residual guidance takes for the negative prediction the noise that leads from x to a picture which stays
    the same at all steps of a frame: (x - signal * picture) / noise level. The picture is the frame's own
    for "self", whose residual begins as the noise it was given, and for "initialize" what the first step
    makes of the negative prompt, whose residual begins as the noise predicted for that. The steps need no
    negative pass: the residual makes the same affine step as x, so it stays the noise that leads to the same
    picture, but for the share of x that the boundary scalings keep, 1e-5 of it with the usual ones. The
    original carries it the same way, in a ring.
    """
    c, scale, delta = _columns(columns)
    if guidance == "none":
        denoised = c.x0_x * x + c.x0_m * prediction
        return Step(denoised, c.next_x0 * denoised + c.next_noise * following_noise, residual)

    if guidance == "full":
        assert negative is not None
        unconditional = negative
    else:
        unconditional = c.m_x * x + c.m_eps * (delta * residual)
    # Written so that a scale of 1 is exactly the prediction itself.
    guided = prediction + (scale - 1.0) * (prediction - unconditional)
    denoised = c.x0_x * x + c.x0_m * guided
    if guidance != "full":
        noise = c.eps_x * x + c.eps_m * guided
        residual = following_noise + c.res_s * residual + c.res_eps * noise
    return Step(denoised, c.next_x0 * denoised + c.next_noise * following_noise, residual)


def seed_noise(seed: int, stages: int, shape: tuple[int, ...]) -> Tensor:
    """The noise maps of a seed: (stages, *shape), float32, on the CPU. Drawn stage by stage from the CPU's
    generator, so that a map depends neither on the device nor on how many stages follow.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(shape, generator=generator) for _ in range(stages)])
