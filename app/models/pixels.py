"""Between pictures as bytes and pictures as tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in [-1, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pixels(images: Tensor) -> Tensor:
    """(B, 3, H, W) about in [-1, 1] → (B, H, W, 3) uint8, contiguous."""
    scaled = (images.float() + 1.0) * 127.5
    return scaled.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
