"""Plain PyTorch with what costs nothing: fused attention, channels last, TF32."""

from __future__ import annotations

from collections.abc import Callable

import torch

from app.accelerations.base import BaseAcceleration, Shapes
from app.models.model import Model
from app.models.networks import Networks


class Acceleration(BaseAcceleration):
    """The model as it is; diffusers already calls PyTorch's scaled dot product attention."""

    @classmethod
    def problems(cls, device: torch.device) -> list[str]:  # noqa: ARG003
        """It works everywhere."""
        return []

    def networks(self, model: Model, shapes: Shapes, report: Callable[[str], None]) -> Networks:
        """Set memory format and matrix precision; execution stays PyTorch's."""
        prepare(model)
        return model.networks()


def prepare(model: Model) -> None:
    """Bring a model into the form that PyTorch's kernels like best."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    model.unet.to(memory_format=torch.channels_last)
    model.vae.to(memory_format=torch.channels_last)
