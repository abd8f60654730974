"""Tiles of tensors that the GPU itself gathers, by descriptors."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

HOPPER = (9, 0)


def gathers_tiles(tensor: Tensor) -> bool:
    """Whether the tensor's device does so. Older GPUs do not: there Triton loads number by number."""
    return not tensor.is_cuda or _capability(tensor.device) >= HOPPER


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
