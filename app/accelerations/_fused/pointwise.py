"""What is computed element by element, as Triton kernels, for tensors that are channels last in memory.

PyTorch runs each of these as two to four kernels. The arithmetic is float32, whatever the tensors are.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Elements of one program."""


@triton.jit
def _add(
    x, bias, skip, elements,
    CHANNELS: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    column = tl.arange(0, BLOCK)
    place = first + column
    mask = place < elements
    channel = ((first % CHANNELS).to(tl.int32) + column) % CHANNELS
    values = tl.load(x + place, mask=mask).to(tl.float32) + tl.load(bias + channel).to(tl.float32)
    if SKIP:
        values += tl.load(skip + place, mask=mask).to(tl.float32)
    tl.store(x + place, values.to(x.dtype.element_ty), mask=mask)


def add_bias(x: Tensor, bias: Tensor, skip: Tensor | None = None) -> Tensor:
    """``x + bias + skip``, in the place of ``x``.

    Args:
        x: (B, C, H, W), channels last in memory; overwritten.
        bias: (C,).
        skip: as ``x``, in the same layout.
    """
    elements = x.numel()
    _add[(triton.cdiv(elements, BLOCK),)](
        x, bias, x if skip is None else skip, elements,
        CHANNELS=x.shape[1], SKIP=skip is not None, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return x


@triton.jit
def _geglu(
    x, y, rows, y_stride,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < WIDTH)[None, :]
    place = x + row[:, None] * (2 * WIDTH) + column[None, :]
    value = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(place + WIDTH, mask=mask, other=0.0).to(tl.float32)
    made = value * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)))
    tl.store(y + row[:, None] * y_stride + column[None, :], made.to(y.dtype.element_ty), mask=mask)


def geglu(x: Tensor, y: Tensor) -> Tensor:
    """The first half of (B, N, 2F) times GELU of the second (arXiv:2002.05202).

    Args:
        x: contiguous.
        y: where it goes: (B, N, F), F columns of a contiguous tensor.
    """
    batch, tokens, width = y.shape
    rows, tile, block = batch * tokens, 8, 256
    # The many go along the first axis: a grid has at most 65,535 programs along the others.
    _geglu[(triton.cdiv(rows, tile), triton.cdiv(width, block))](
        x, y, rows, y.stride(1), WIDTH=width, ROWS=tile, BLOCK=block
    )
    return y


@triton.jit
def _upsample(x, y, elements, width, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    place = (first % CHANNELS).to(tl.int32) + tl.arange(0, BLOCK)
    pixel, channel = (first // CHANNELS).to(tl.int32) + place // CHANNELS, place % CHANNELS
    mask = first + tl.arange(0, BLOCK) < elements
    values = tl.load(x + first + tl.arange(0, BLOCK), mask=mask)
    line, column = pixel // width, pixel % width  # the line is one of all pictures' lines
    corner = (line.to(tl.int64) * 4 * width + column * 2) * CHANNELS + channel
    for below in tl.static_range(2):
        for right in tl.static_range(2):
            tl.store(y + corner + (below * 2 * width + right) * CHANNELS, values, mask=mask)


def upsample(x: Tensor) -> Tensor:
    """Every pixel four times: (B, C, H, W) → (B, C, 2H, 2W), both channels last in memory."""
    batch, channels, height, width = x.shape
    y = torch.empty(
        batch, channels, 2 * height, 2 * width,
        device=x.device, dtype=x.dtype, memory_format=torch.channels_last,
    )  # fmt: skip
    elements = x.numel()
    _upsample[(triton.cdiv(elements, BLOCK),)](
        x, y, elements, width, CHANNELS=channels, BLOCK=BLOCK, num_warps=8
    )
    return y
