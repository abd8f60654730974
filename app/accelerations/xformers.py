"""Memory-efficient attention by xformers in the UNet; the rest is plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, XFormersAttnProcessor

from app.accelerations.base import AccelerationError, BaseAcceleration, Shapes
from app.accelerations.none import prepare
from app.models.model import Model
from app.models.networks import Networks


class Acceleration(BaseAcceleration):
    """The model with its UNet's attention replaced. The VAE keeps PyTorch's: a tiny one has none, and the one
    head of a full one is wider than flash attention takes.
    """

    @classmethod
    def problems(cls, device: torch.device) -> list[str]:
        """Kernels exist for CUDA alone."""
        if device.type != "cuda":
            return [f"xformers needs an NVIDIA GPU, and the device is {device}"]
        try:
            load_library()
        except (ImportError, OSError) as error:
            return [f"xformers does not load ({error}); run: pip install -r requirements-xformers.txt"]
        return []

    def networks(self, model: Model, shapes: Shapes, report: Callable[[str], None]) -> Networks:
        """Replace the attention, and try it for each width of its heads; nothing is compiled."""
        prepare(model)
        attentions: list[Any] = [module for module in model.unet.modules() if isinstance(module, Attention)]
        for width in {attention.inner_dim // attention.heads for attention in attentions}:
            _try(width, model)
        for attention in attentions:
            # Not by diffusers' switch, which tries it in float32: for that the newest GPUs have no kernel.
            attention.set_processor(XFormersAttnProcessor())
        return model.networks()


def load_library() -> Any:
    """`xformers.ops`. Its attention calls kernels that PyTorch has, and none of its own since 0.0.35; but it
    refuses to where its own ones do not load. Those are built for CUDA 12, and PyPI's PyTorch for CUDA 13.
    """
    ops = import_module("xformers.ops")
    common: Any = import_module("xformers.ops.fmha.common")
    common._built_with_cuda = torch.version.cuda is not None  # noqa: SLF001 - there is no other way
    return ops


def _try(width: int, model: Model) -> None:
    """Raise AccelerationError if there is no kernel for heads of this width, in the model's precision."""
    some = torch.zeros(1, 8, width, device=model.device, dtype=model.dtype)
    try:
        load_library().memory_efficient_attention(some, some, some)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise AccelerationError(
            f"model.acceleration 'xformers' cannot work here: {reason}; use none, which has "
            "PyTorch's own memory-efficient attention"
        ) from error
