"""A model's networks as ONNX files, with a batch size that stays open."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.accelerations.base import Shapes
from app.models.model import Model

OPSET = 18


@dataclass(frozen=True)
class Network:
    """One of a model's networks, as it is exported.

    Attributes:
        name: of the file.
        words: for people.
        part: the module that holds its weights.
        function: what it computes.
        inputs: examples by name, of batch size 2.
        batches: the batch sizes it will run with, ascending.
    """

    name: str
    words: str
    part: Any
    function: Callable[..., Tensor]
    inputs: dict[str, Tensor]
    batches: tuple[int, ...]


def networks(model: Model, shapes: Shapes) -> tuple[Network, Network, Network]:
    """The UNet, the VAE's encoder and its decoder."""
    latent = model.latent_shape(shapes.width, shapes.height)
    text = model.embed("").to(model.device)
    latents = torch.randn(2, *latent, device=model.device)
    images = torch.rand(2, 3, shapes.height, shapes.width, device=model.device) * 2 - 1
    # Two different ones, or the tracer could take them for a constant.
    timesteps = torch.tensor([999.0, 499.0], device=model.device)
    return (
        Network(
            "unet",
            "the UNet",
            model.unet,
            model.predict,
            {"latents": latents, "timesteps": timesteps, "embeddings": text.repeat(2, 1, 1)},
            shapes.unet_batches,
        ),
        Network(
            "encoder", "the VAE's encoder", model.vae, model.encode, {"images": images}, shapes.vae_batches
        ),
        Network(
            "decoder", "the VAE's decoder", model.vae, model.decode, {"latents": latents}, shapes.vae_batches
        ),
    )


class _Callable(nn.Module):
    """A function as a module, with the weights it uses."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.part, self._function = network.part, network.function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self._function(*tensors)


@torch.no_grad()
def export(network: Network, path: Path) -> None:
    """Write an ONNX file. Weights beyond two gigabytes go into files beside it."""
    with warnings.catch_warnings():
        # The tracer warns of every branch on a shape and of being the older exporter; the newer one gives
        # the same network, takes much longer, and needs another library.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Callable(network).eval(),
            tuple(network.inputs.values()),
            str(path),
            input_names=list(network.inputs),
            output_names=["output"],
            dynamic_axes={name: {0: "batch"} for name in (*network.inputs, "output")},
            opset_version=OPSET,
            dynamo=False,
        )
