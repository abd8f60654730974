"""Convolutions of 3×3 pixels that cuDNN is slow at: from a few channels, and to a few channels.

Stride 1, one pixel of zeros around the picture, channels last in memory.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear, pad


@triton.jit
def _from_few(
    x, weight, bias, y, pixels, height, width,
    IN: tl.constexpr, OUT: tl.constexpr, K: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some pixels and output channels: the neighbourhoods as rows of a matrix, times the weights."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    column, line = pixel % width, pixel // width % height
    k = tl.arange(0, K)
    tap, channel = k // IN, k % IN
    down, right = tap // 3 - 1, tap % 3 - 1
    there = (line[:, None] + down[None, :] >= 0) & (line[:, None] + down[None, :] < height)
    there = there & (column[:, None] + right[None, :] >= 0) & (column[:, None] + right[None, :] < width)
    there = there & (pixel < pixels)[:, None] & (k < 9 * IN)[None, :]
    source = (pixel[:, None] + down[None, :] * width + right[None, :]).to(tl.int64) * IN + channel[None, :]
    around = tl.load(x + source, mask=there, other=0.0)
    out = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wanted = (out < OUT)[None, :]
    weights = tl.load(weight + k[:, None] * OUT + out[None, :], mask=wanted, other=0.0)
    made = tl.dot(around, weights, input_precision="ieee")
    made += tl.load(bias + out, mask=out < OUT, other=0.0).to(tl.float32)[None, :]
    target = y + pixel[:, None].to(tl.int64) * OUT + out[None, :]
    tl.store(target, made.to(y.dtype.element_ty), mask=(pixel < pixels)[:, None] & wanted)


def weights_from_few(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) → (K, O) as `conv_from_few` reads it, K a power of two."""
    flat = weight.detach().permute(2, 3, 1, 0).flatten(0, 2)
    return pad(flat, (0, 0, 0, max(16, triton.next_power_of_2(len(flat))) - len(flat))).contiguous()


def conv_from_few(x: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """A convolution of a few channels: pictures and latents.

    Args:
        x: (B, C, H, W).
        weights: of `weights_from_few`.
        bias: (O,).

    Returns:
        (B, O, H, W).
    """
    batch, channels, height, width = x.shape
    k, out = weights.shape
    y = torch.empty(
        batch, out, height, width, device=x.device, dtype=x.dtype, memory_format=torch.channels_last
    )
    pixels, tile, block = batch * height * width, 128, 64
    _from_few[(triton.cdiv(pixels, tile), triton.cdiv(out, block))](
        x, weights, bias, y, pixels, height, width,
        IN=channels, OUT=out, K=k, PIXELS=tile, BLOCK=block,
    )  # fmt: skip
    return y


@triton.jit
def _gather(
    parts, bias, y, pixels, height, width,
    OUT: tl.constexpr, STRIDE: tl.constexpr, PADDED: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Every pixel's sum of what its neighbours hold for it."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    column, line = pixel % width, pixel // width % height
    out = tl.arange(0, PADDED)
    wanted = (pixel < pixels)[:, None] & (out < OUT)[None, :]
    total = tl.zeros((PIXELS, PADDED), tl.float32)
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        there = (line + down >= 0) & (line + down < height) & (column + right >= 0) & (column + right < width)
        source = (pixel + down * width + right)[:, None].to(tl.int64) * STRIDE + tap * OUT + out[None, :]
        total += tl.load(parts + source, mask=wanted & there[:, None], other=0.0).to(tl.float32)
    total += tl.load(bias + out, mask=out < OUT, other=0.0).to(tl.float32)[None, :]
    tl.store(y + pixel[:, None].to(tl.int64) * OUT + out[None, :], total.to(y.dtype.element_ty), mask=wanted)


def weights_to_few(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) → (9 O and some zeros, C) as `conv_to_few` reads it."""
    flat = weight.detach().permute(2, 3, 0, 1).flatten(0, 2)
    return pad(flat, (0, 0, 0, -len(flat) % 8)).contiguous()


def conv_to_few(x: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """A convolution to a few channels: one matrix product gives each pixel's share in its neighbours'
    results, so that the large input is read once, and each neighbour adds up its own.

    Args:
        x: (B, C, H, W).
        weights: of `weights_to_few`.
        bias: (O,).

    Returns:
        (B, O, H, W).
    """
    batch, _, height, width = x.shape
    out = len(bias)
    parts = linear(x.permute(0, 2, 3, 1), weights)
    y = torch.empty(
        batch, out, height, width, device=x.device, dtype=x.dtype, memory_format=torch.channels_last
    )
    pixels, tile = batch * height * width, 256
    _gather[(triton.cdiv(pixels, tile),)](
        parts, bias, y, pixels, height, width,
        OUT=out, STRIDE=len(weights), PADDED=triton.next_power_of_2(out), PIXELS=tile,
    )  # fmt: skip
    return y
