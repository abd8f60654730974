"""TensorRT: the UNet and the VAE as engines that NVIDIA's compiler builds for this very GPU.

The first start builds for minutes; engines are kept in ``engine_dir`` and built anew when anything changes
that they depend on. Prompts and parameters are inputs and change nothing.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from app.accelerations._onnx_export import OPSET, Network, export, networks
from app.accelerations._tensorrt import cache, provider
from app.accelerations._tensorrt.build import build
from app.accelerations._tensorrt.engine import Engine
from app.accelerations.base import AccelerationError, BaseAcceleration, Shapes
from app.models.model import Model
from app.models.networks import Networks

log = logging.getLogger(__name__)

Report = Callable[[str], None]


class Acceleration(BaseAcceleration):
    """Engines with an open batch size, from 1 to the largest."""

    @classmethod
    def problems(cls, device: torch.device) -> list[str]:
        """It needs an NVIDIA GPU, ONNX, and one of two libraries that runs on this GPU."""
        if device.type != "cuda":
            return [f"TensorRT needs an NVIDIA GPU, and the device is {device}"]
        if find_spec("onnx") is None:
            return ["onnx is not installed; run: pip install -r requirements-tensorrt.txt"]
        library, problems = provider.find(device)
        return [] if library is not None else problems

    def networks(self, model: Model, shapes: Shapes, report: Report) -> Networks:
        """Load the engines, building those that are not there."""
        library, problems = provider.find(model.device)
        if library is None:
            raise AccelerationError("; ".join(problems))
        try:
            unet, encode, decode = (
                self._engine(library, network, _facts(library, model, network, shapes), model.device, report)
                for network in networks(model, shapes)
            )
        except OSError as error:
            raise AccelerationError(f"model.engine_dir cannot keep engines: {error}") from error
        model.unet.to("meta")  # its weights are in the engine; two copies may not fit
        return Networks(unet, encode, decode)

    def _engine(
        self, trt: Any, network: Network, facts: dict[str, Any], device: torch.device, report: Report
    ) -> Engine:
        """The engine of a network; a cached one that the library refuses is built anew."""
        key, inputs = cache.key_of(facts), tuple(network.inputs)
        path = cache.path_of(self.engine_dir, network.name, key)
        plan = cache.read(path, key)
        if plan is not None:
            try:
                return Engine(trt, plan, inputs, device)
            except AccelerationError as error:
                log.warning("%s cannot be used and will be built anew: %s", path, error)
        return Engine(trt, make(trt, network, path, key, report), inputs, device)


def make(trt: Any, network: Network, path: Path, key: str, report: Report) -> bytes:
    """Export, build and keep an engine.

    Raises:
        AccelerationError: if TensorRT cannot build it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as folder:
        report(f"exporting {network.words} to ONNX")
        onnx = Path(folder) / f"{network.name}.onnx"
        export(network, onnx)
        report(f"TensorRT builds {network.words}; this takes minutes, once")
        plan = build(trt, network, onnx, report)
    cache.write(path, key, plan)
    return plan


def _facts(trt: Any, model: Model, network: Network, shapes: Shapes) -> dict[str, Any]:
    """Everything that an engine depends on."""
    return {
        "network": network.name,
        "weights": cache.fingerprint(network.part),
        "width": shapes.width,
        "height": shapes.height,
        "batches": list(network.batches),
        "text": list(network.inputs["embeddings"].shape[1:]) if "embeddings" in network.inputs else None,
        "dtype": str(model.dtype),
        "opset": OPSET,
        "torch": torch.__version__,
        "library": f"{trt.__name__} {trt.__version__}",
        "gpu": _gpu(model.device),
    }


def _gpu(device: torch.device) -> str:
    """Architecture and name: an engine is tuned for both."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor} {torch.cuda.get_device_name(device)}"
