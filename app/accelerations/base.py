"""What an acceleration is: another way to execute a model's three networks.

A new acceleration is one file in this folder with a class named ``Acceleration``; ``model.acceleration`` in
the configuration selects it by the file's name. Optional libraries are imported inside, never at import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from app.core.messages import StartError
from app.models.model import Model
from app.models.networks import Networks


class AccelerationError(StartError):
    """An acceleration cannot work here; the message says why and what would help."""


@dataclass(frozen=True)
class Shapes:
    """What the networks will be called with.

    Attributes:
        width: of a picture, pixels.
        height: likewise.
        unet_batches: the UNet's batch sizes, ascending; full guidance doubles them.
        vae_batches: the VAE's batch sizes, ascending.
    """

    width: int
    height: int
    unet_batches: tuple[int, ...]
    vae_batches: tuple[int, ...]


class BaseAcceleration(ABC):
    """Executes a model faster.

    Args:
        engine_dir: where compiled engines may be kept.

    Attributes:
        name: what is really in use.
    """

    def __init__(self, engine_dir: Path) -> None:
        self.engine_dir = engine_dir
        self.name = type(self).__module__.rpartition(".")[2]

    @classmethod
    @abstractmethod
    def problems(cls, device: torch.device) -> list[str]:
        """Why it cannot work on this device, a sentence each; empty if it can. Loads no model."""

    @abstractmethod
    def networks(self, model: Model, shapes: Shapes, report: Callable[[str], None]) -> Networks:
        """The accelerated networks; may take minutes and says in ``report`` what it does.

        Raises:
            AccelerationError: if it cannot be done.
        """
