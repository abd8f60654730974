"""torch.compile: the UNet and the VAE as fused kernels, written by PyTorch's own compiler."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from app.accelerations._triton import triton_problems
from app.accelerations.base import BaseAcceleration, Shapes
from app.accelerations.none import prepare
from app.models.model import Model
from app.models.networks import Networks
from app.models.pixels import to_unit

OLDEST_CAPABILITY = (7, 0)
"""Of the GPUs that Triton compiles for."""


class Acceleration(BaseAcceleration):
    """Every network is compiled twice, for one picture and for any number: an engine that has ten batch
    sizes would otherwise start for minutes. What was compiled is kept below ``engine_dir``.
    """

    @classmethod
    def problems(cls, device: torch.device) -> list[str]:
        """It needs Triton on a GPU, and a C or C++ compiler everywhere."""
        if device.type == "cuda":
            return triton_problems(device, OLDEST_CAPABILITY)
        if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang") is None:
            return ["torch.compile needs a C++ compiler; run: apt install g++"]
        return []

    def networks(self, model: Model, shapes: Shapes, report: Callable[[str], None]) -> Networks:
        """Compile; half a minute to two minutes the first time, seconds with a cache."""
        # Read by the compiler when it starts; what the operator has set comes first.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.engine_dir.absolute() / "inductor"))
        prepare(model)
        plain = model.networks()
        networks = Networks(
            unet=_compiled(plain.unet),
            encode=_compiled(plain.encode),
            decode=_compiled(plain.decode),
        )
        _run_all(networks, model, shapes, report)
        return networks


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled = torch.compile(function, fullgraph=True, dynamic=False)

    def call(*tensors: Tensor) -> Tensor:
        # One layout in memory, so that no caller's views make the compiler start again.
        tensors = tuple(_packed(tensor) for tensor in tensors)
        if len(tensors[0]) > 1:
            for tensor in tensors:
                torch._dynamo.mark_dynamic(tensor, 0)  # noqa: SLF001 - documented, but not re-exported
        result: Tensor = compiled(*tensors)
        return result

    return call


def _packed(tensor: Tensor) -> Tensor:
    """Pictures channels last, everything else contiguous."""
    if tensor.ndim == 1:
        # A column of a table counts as contiguous when it has one element, whatever its stride is.
        return tensor.clone(memory_format=torch.contiguous_format)
    pictures = tensor.ndim == 4 and tensor.shape[1] == 3
    return tensor.contiguous(memory_format=torch.channels_last if pictures else torch.contiguous_format)


@torch.inference_mode()
def _run_all(networks: Networks, model: Model, shapes: Shapes, report: Callable[[str], None]) -> None:
    """Call each network as the runner will, which compiles it."""
    latent = model.latent_shape(shapes.width, shapes.height)
    text = model.embed("").to(model.device)
    largest = max(shapes.unet_batches[-1], shapes.vae_batches[-1])
    for batch in (1, 2) if largest > 1 else (1,):
        count = "one picture" if batch == 1 else "several pictures"
        latents = torch.zeros(batch, *latent, device=model.device)
        pixels = torch.zeros(batch, shapes.height, shapes.width, 3, dtype=torch.uint8, device=model.device)
        report(f"compiling the UNet for {count}; this takes a minute when it is not cached")
        networks.unet(latents, torch.zeros(batch, device=model.device), text.expand(batch, -1, -1))
        report(f"compiling the VAE for {count}")
        networks.encode(to_unit(pixels))
        networks.decode(latents)
