"""Accelerations, one file each, found by the file's name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from app.accelerations.base import AccelerationError, BaseAcceleration

AUTO = ("xformers", "none")
"""What ``auto`` tries, in this order; nothing in it takes a long build."""


def choose_acceleration(name: str, device: torch.device) -> str:
    """The name itself, or for ``auto`` the first acceleration that can work on this device."""
    if name != "auto":
        return name
    return next(candidate for candidate in AUTO if not _load(candidate).problems(device))


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
