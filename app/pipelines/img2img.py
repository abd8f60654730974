"""Image mode: the client's picture, transformed by its prompt."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from app.core.messages import Mode, Plan
from app.models.networks import Networks
from app.models.pixels import to_unit
from app.pipelines.base import BaseParams, BasePipeline, control


class ImageParams(BaseParams):
    """Parameters of image mode."""

    strength: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        title="Strength",
        description="How far the picture may go from the input: 0 keeps it, 1 follows the prompt alone.",
        json_schema_extra=control("range", step=0.02),
    )


class Pipeline(BasePipeline[ImageParams]):
    """SDEdit (arXiv:2108.01073): the input's latents with noise up to ``strength``, then denoised."""

    mode: ClassVar[Mode] = "image"
    Params = ImageParams

    def plan(self, params: ImageParams) -> Plan:
        """As much of the grid as ``strength`` says."""
        return params.plan(self.mode, params.strength)

    def begin(self, networks: Networks, images: Tensor | None, noise: Tensor, levels: Tensor) -> Tensor:
        """The pictures' latents, noised."""
        assert images is not None
        latents = networks.encode(to_unit(images)).float()
        signal, sigma = levels[:, :, None, None, None].unbind(1)
        return signal * latents + sigma * noise
