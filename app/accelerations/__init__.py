"""Accelerations, one file each, found by the file's name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from app.accelerations.base import AccelerationError, BaseAcceleration


def load_acceleration(name: str, device: torch.device, engine_dir: Path) -> BaseAcceleration:
    """The named acceleration.

    Raises:
        AccelerationError: if it cannot work on this device.
    """
    acceleration: type[BaseAcceleration] = import_module(f"app.accelerations.{name}").Acceleration
    problems = acceleration.problems(device)
    if problems:
        raise AccelerationError(f"model.acceleration {name!r} cannot work here: {'; '.join(problems)}")
    return acceleration(engine_dir)
