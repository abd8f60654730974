"""The tiny VAE's 3×3 convolutions of few pictures as a Triton kernel, ReLU and skip included.

Implicit matrix products, whose tiles the GPU's tensor memory accelerator gathers with zeros beyond the edge.
A tile is a part of one line, so that it lies in shared memory as the tensor cores read it.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from app.accelerations._fused.tiles import gathers_tiles

CHANNELS = 64
"""Channels that the kernel is written for, those of TAESD."""
FEW_PIXELS = 65536
"""Of all pictures; cuDNN is faster where there are more."""


@triton.jit
def _lines(
    x, weight, bias, skip, y,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, SKIPS: tl.constexpr,
):  # fmt: skip
    """Some neighbouring pixels of one line, all channels."""
    column, line, picture = tl.program_id(0) * PIXELS, tl.program_id(1), tl.program_id(2)
    made = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for tap in range(9):
        around = x.load([picture, line + tap // 3 - 1, column + tap % 3 - 1, 0]).reshape(PIXELS, CHANNELS)
        weights = weight.load([0, tap * CHANNELS])
        made = tl.dot(around, weights.T, made, input_precision="ieee")
    made += tl.load(bias + tl.arange(0, CHANNELS)).to(tl.float32)[None, :]
    if SKIPS:
        made += skip.load([picture, line, column, 0]).reshape(PIXELS, CHANNELS).to(tl.float32)
    made = tl.maximum(made, 0.0)
    y.store([picture, line, column, 0], made.to(y.dtype).reshape(1, 1, PIXELS, CHANNELS))


def suits(x: Tensor) -> bool:
    """Whether the kernel takes such an input and is the faster one."""
    batch, channels, height, width = x.shape
    few = channels == CHANNELS and batch * height * width <= FEW_PIXELS
    return few and x.element_size() == 2 and gathers_tiles(x)


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None) -> Tensor:
    """ReLU of the convolution, stride 1 and a pixel of zeros around, and ``skip``.

    Args:
        x: (B, 64, H, W), channels last.
        weight: (64, 64, 3, 3), channels last.
        bias: (64,).
        skip: as ``x``.

    Returns:
        (B, 64, H, W), channels last.
    """
    batch, channels, height, width = x.shape
    y = torch.empty_like(x, memory_format=torch.channels_last)
    tile = 64 if width <= 64 or batch * height * width <= 8192 else 128
    _lines[(triton.cdiv(width, tile), height, batch)](
        _described(x, tile),
        TensorDescriptor.from_tensor(weight.permute(0, 2, 3, 1).flatten(1), [channels, channels]),
        bias, _described(x if skip is None else skip, tile), _described(y, tile),
        CHANNELS=channels, PIXELS=tile, SKIPS=skip is not None, num_warps=4, num_stages=3,
    )  # fmt: skip
    return y


def _described(x: Tensor, pixels: int) -> Any:
    return TensorDescriptor.from_tensor(x.permute(0, 2, 3, 1), [1, 1, pixels, x.shape[1]])
