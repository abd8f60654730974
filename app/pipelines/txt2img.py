"""Video mode: pictures from the prompt alone."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from app.core.messages import Mode, Plan
from app.models.networks import Networks
from app.pipelines.base import BaseParams, BasePipeline


class Pipeline(BasePipeline[BaseParams]):
    """Denoises the seed's noise: one seed gives a steady picture that changes as the prompt does."""

    mode: ClassVar[Mode] = "video"
    Params = BaseParams

    def plan(self, params: BaseParams) -> Plan:
        """The whole grid, from pure noise."""
        return params.plan(self.mode, strength=1.0)

    def begin(self, networks: Networks, images: Tensor | None, noise: Tensor, levels: Tensor) -> Tensor:
        """The noise itself."""
        return noise
