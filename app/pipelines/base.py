"""What a pipeline is: how parameters become a plan, a picture becomes latents, and latents a picture.

A new pipeline is one file in this folder with a class named ``Pipeline``; ``pipeline.name`` in the
configuration selects it. It knows nothing of sessions, batches in flight or sockets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from app.core.denoise import timesteps
from app.core.messages import Mode, Plan
from app.models.networks import Networks
from app.models.pixels import to_pixels

MAX_STEPS = 16
MAX_SEED = 2**53 - 1  # the largest integer that every JSON parser keeps
"""Largest ``num_inference_steps`` and ``seed`` a client may ask for."""


def control(field: str, **more: Any) -> dict[str, Any]:
    """How a front end should draw a parameter: ``field`` is textarea, range, seed, checkbox or select."""
    return {"field": field, **more}


class BaseParams(BaseModel):
    """Parameters that every built-in pipeline takes; a client may change any of them on any frame."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str = Field(
        "", title="Prompt", description="What the picture should show.", json_schema_extra=control("textarea")
    )
    negative_prompt: str = Field(
        "",
        title="Negative Prompt",
        description="What it should not show. Takes effect with full and initialize guidance.",
        json_schema_extra=control("textarea"),
    )
    guidance_scale: float = Field(
        7.5,
        ge=1.0,
        le=20.0,
        title="Guidance Scale",
        description="How strictly the prompt is followed; 1 is no guidance. A model distilled for guidance 1 "
        "(SD-Turbo, LCM) would burn at the usual scales, so for it 7.5 acts as 1.2 and the rest in "
        "proportion. Without effect where the server's cfg_type is none, its default for such models.",
        json_schema_extra=control("range", step=0.1),
    )
    num_inference_steps: int = Field(
        1,
        ge=1,
        le=MAX_STEPS,
        title="Steps",
        description="Denoising steps: more take longer and look better.",
        json_schema_extra=control("range", step=1),
    )
    seed: int = Field(
        42,
        ge=0,
        le=MAX_SEED,
        title="Seed",
        description="Chooses the noise; the same seed gives the same picture.",
        json_schema_extra=control("seed"),
    )
    delta: float = Field(
        1.0,
        ge=0.0,
        le=2.0,
        title="Delta",
        description="How strongly the residual noise counts in self and initialize guidance.",
        json_schema_extra=control("range", step=0.05),
    )

    def plan(self, mode: Mode, strength: float) -> Plan:
        """The plan of a frame that starts from ``strength`` noise."""
        return Plan(
            mode=mode,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt if self.guidance_scale > 1.0 else None,
            seed=self.seed,
            timesteps=timesteps(strength, self.num_inference_steps),
            guidance_scale=self.guidance_scale,
            delta=self.delta,
        )


P = TypeVar("P", bound=BaseModel)


class BasePipeline(ABC, Generic[P]):
    """One way to make pictures. Every method works on a whole batch, except ``plan``."""

    mode: ClassVar[Mode]
    """``image``: the client sends a picture with every frame. ``video``: it sends none."""

    Params: type[P]
    """The pydantic model of the parameters; front ends build their controls from its schema. Every field
    needs a default."""

    @abstractmethod
    def plan(self, params: P) -> Plan:
        """How a frame with these parameters is made. Pure: no state, no device."""

    @abstractmethod
    def begin(self, networks: Networks, images: Tensor | None, noise: Tensor, levels: Tensor) -> Tensor:
        """The latents that denoising starts from, (B, C, h, w), float32.

        Args:
            networks: the model.
            images: (B, height, width, 3), uint8, RGB; None in video mode.
            noise: the first noise map of each row's seed, (B, C, h, w), float32.
            levels: signal and noise level of each row's first time step, (B, 2), float32.
        """

    def decode(self, networks: Networks, latents: Tensor) -> Tensor:
        """The pictures, (B, height, width, 3), uint8, RGB, of denoised latents, (B, C, h, w), float32."""
        return to_pixels(networks.decode(latents))
