"""Memory-efficient attention by xformers; the rest is plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from app.accelerations.base import AccelerationError, BaseAcceleration, Shapes
from app.accelerations.none import prepare
from app.models.model import Model
from app.models.networks import Networks


class Acceleration(BaseAcceleration):
    """The model with its attention replaced, in the UNet and, where it has any, in the VAE."""

    @classmethod
    def problems(cls, device: torch.device) -> list[str]:
        """Kernels exist for CUDA alone."""
        if device.type != "cuda":
            return [f"xformers needs an NVIDIA GPU, and the device is {device}"]
        try:
            import_module("xformers.ops")
        except (ImportError, OSError) as error:
            return [f"xformers does not load ({error}); run: pip install -r requirements-xformers.txt"]
        return []

    def networks(self, model: Model, shapes: Shapes, report: Callable[[str], None]) -> Networks:
        """Replace the attention; nothing is compiled. diffusers tries it once, on the GPU."""
        prepare(model)
        try:
            model.unet.enable_xformers_memory_efficient_attention()
            model.vae.enable_xformers_memory_efficient_attention()
        except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise AccelerationError(
                f"model.acceleration 'xformers' cannot work here: {reason}; use none, which has "
                "PyTorch's own memory-efficient attention"
            ) from error
        return model.networks()
