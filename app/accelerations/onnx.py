"""ONNX Runtime on the CPU: its graph optimisations and convolutions take about three quarters of PyTorch's
time for a small model, and its threads give way where others need the cores.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from app.accelerations._onnx_export import Network, export, networks
from app.accelerations.base import AccelerationError, BaseAcceleration, Shapes
from app.models.model import Model
from app.models.networks import Networks

LIBRARIES = ("onnx", "onnxruntime")
LARGE = 2**31
"""Bytes of a UNet from which ONNX keeps weights in files beside it, which would stay on the disk in use."""
ERRORS = 3
"""ONNX Runtime's log level."""


class Acceleration(BaseAcceleration):
    """UNet and VAE exported when the server starts, and run by ONNX Runtime in float32."""

    @classmethod
    def problems(cls, device: torch.device) -> list[str]:
        """It runs on the CPU, with two libraries."""
        if device.type != "cpu":
            return [f"ONNX Runtime is used on the CPU, and the device is {device}"]
        missing = [name for name in LIBRARIES if find_spec(name) is None]
        if missing:
            return [f"{' and '.join(missing)} not installed; run: pip install -r requirements-onnx.txt"]
        return []

    def networks(self, model: Model, shapes: Shapes, report: Callable[[str], None]) -> Networks:
        """Export and load, in seconds."""
        if sum(parameter.nbytes for parameter in model.unet.parameters()) > LARGE:
            raise AccelerationError("'onnx' is for small models, and this UNet has more than 2 GiB")
        if model.dtype != torch.float32:
            name = str(model.dtype).removeprefix("torch.")
            raise AccelerationError(f"'onnx' computes in float32 on a CPU, and model.dtype is {name}")
        try:
            with TemporaryDirectory() as folder:
                unet, encode, decode = (
                    _load(network, Path(folder) / f"{network.name}.onnx", report)
                    for network in networks(model, shapes)
                )
        except Exception as error:  # exporter, runtime and disk raise what they like
            reason = str(error).strip().partition("\n")[0]
            raise AccelerationError(f"'onnx' cannot execute this model here ({reason})") from error
        return Networks(unet, encode, decode)


def _load(network: Network, path: Path, report: Callable[[str], None]) -> Callable[..., Tensor]:
    report(f"exporting {network.words} to ONNX")
    export(network, path)
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = ERRORS
    # Threads that wait for work would keep the cores from pictures and sockets.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = list(network.inputs)

    def run(*tensors: Tensor) -> Tensor:
        inputs = (tensor.to(torch.float32).contiguous().numpy() for tensor in tensors)
        (made,) = session.run(None, dict(zip(names, inputs, strict=True)))
        return torch.from_numpy(made)

    return run
