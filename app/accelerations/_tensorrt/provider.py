"""Which TensorRT there is: NVIDIA's for all its GPUs, or TensorRT for RTX with nearly the same interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

Capability = tuple[int, int]
"""Compute capability of a GPU."""


@dataclass(frozen=True)
class Provider:
    """A Python module with TensorRT's interface, and the GPUs it runs on."""

    module: str
    runs_on: Callable[[Capability], bool]
    which: str
    remedy: str

    def load(self) -> Any:
        """The module. Raises ImportError or OSError."""
        return import_module(self.module)


# The support matrix of TensorRT 10 and 11; that of TensorRT for RTX 1.x.
PROVIDERS = (
    Provider(
        "tensorrt",
        lambda capability: capability >= (7, 5),
        "GPUs of compute capability 7.5 and newer",
        "pip install tensorrt",
    ),
    Provider(
        "tensorrt_rtx",
        lambda capability: capability in {(7, 5), (8, 6), (8, 9)} or capability >= (12, 0),
        "RTX cards: compute capability 7.5, 8.6, 8.9 and 12.x",
        "pip install -r requirements-tensorrt.txt",
    ),
)


def find(device: torch.device) -> tuple[Any, list[str]]:
    """The first provider that loads and runs on a CUDA device, or None; and why the others cannot."""
    capability = torch.cuda.get_device_capability(device)
    problems = []
    for provider in PROVIDERS:
        if not provider.runs_on(capability):
            found = ".".join(map(str, capability))
            problems.append(f"{provider.module} runs on {provider.which}, and this GPU has {found}")
            continue
        try:
            return provider.load(), problems
        except (ImportError, OSError) as error:
            problems.append(f"{provider.module} does not load ({error}); run: {provider.remedy}")
    return None, problems
