"""The fastest acceleration that this machine and this model can have without a build of minutes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from app.accelerations import load_acceleration
from app.accelerations.base import AccelerationError, BaseAcceleration, Shapes
from app.models.model import Model
from app.models.networks import Networks

log = logging.getLogger(__name__)

FASTEST = {"cuda": "fused", "cpu": "onnx"}
"""By the figures of docs/performance.md, on a GPU with CUDA graphs. xformers is not: since 0.0.35 it calls
kernels that PyTorch has too, and PyTorch chooses among more."""
ANYWHERE = "none"


class Acceleration(BaseAcceleration):
    """The fastest, or what works anywhere. ``name`` says which when the networks are there."""

    @classmethod
    def problems(cls, device: torch.device) -> list[str]:  # noqa: ARG003
        """Something always works."""
        return []

    def networks(self, model: Model, shapes: Shapes, report: Callable[[str], None]) -> Networks:
        """Those of the fastest if it can execute the model; if not, the log says why."""
        try:
            return self._take(FASTEST[model.device.type], model, shapes, report)
        except AccelerationError as error:
            # On a GPU something can be done about it, and it costs several times the speed.
            log.log(logging.WARNING if model.device.type == "cuda" else logging.INFO, "%s", error)
            return self._take(ANYWHERE, model, shapes, report)

    def _take(self, name: str, model: Model, shapes: Shapes, report: Callable[[str], None]) -> Networks:
        self.name = name
        return load_acceleration(name, model.device, self.engine_dir).networks(model, shapes, report)
