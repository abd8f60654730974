"""Accelerations, one file each, found by the file's name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from app.accelerations.base import AccelerationError, BaseAcceleration


def choose_cuda_graph(name: str, wanted: bool, device: torch.device) -> bool:
    """Whether the tick is replayed as CUDA graphs: if it is wanted, and with ``auto`` wherever it can be.

    Raises:
        AccelerationError: if it is wanted and cannot work.
    """
    if wanted and device.type != "cuda":
        raise AccelerationError(f"model.use_cuda_graph needs an NVIDIA GPU, and the device is {device}")
    return wanted or (name == "auto" and device.type == "cuda")


def load_acceleration(name: str, device: torch.device, engine_dir: Path) -> BaseAcceleration:
    """The named acceleration.

    Raises:
        AccelerationError: if it cannot work on this device.
    """
    acceleration = _load(name)
    problems = acceleration.problems(device)
    if problems:
        raise AccelerationError(
            f"model.acceleration {name!r} cannot work here: {'; '.join(problems)} "
            "(auto takes what can, none works everywhere)"
        )
    return acceleration(engine_dir)


def _load(name: str) -> type[BaseAcceleration]:
    acceleration: type[BaseAcceleration] = import_module(f"app.accelerations.{name}").Acceleration
    return acceleration
