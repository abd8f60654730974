"""Normalisations as Triton kernels, for tensors that are channels last in memory.

PyTorch's group normalisation changes the memory layout there and back. The arithmetic is float32, whatever
the tensors are. No atomics: the same input gives the same bits.
"""

# Triton's functions are written in its own language: no annotations, constants in capitals.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

HELD = 32768
"""Elements of one group of one picture that one program holds at a time; larger groups take three kernels."""
TILE_ROWS, TILE_CHANNELS = 64, 64
"""Pixels and channels that one program holds at a time otherwise."""
PROGRAMS = 1056
"""Programs that keep a large GPU busy; a picture's statistics are split into about so many parts."""
MOST_PARTS = 64


@triton.jit(do_not_specialize=["rows", "width", "shift_stride"])
def _normalise_group(
    x, shift, weight, bias, y, rows, width, shift_stride, eps,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
    SHIFTED: tl.constexpr, SILU: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """One group of one picture, read once; with TAPS a pixel is written where its neighbours look for it."""
    group, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = group * WIDTH + tl.arange(0, PADDED)
    inside = tl.arange(0, PADDED) < WIDTH
    row = tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & inside[None, :]
    place = picture * rows * (GROUPS * WIDTH) + row[:, None] * (GROUPS * WIDTH) + channel[None, :]
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if SHIFTED:
        moved = tl.load(shift + picture * shift_stride + channel, mask=inside, other=0.0).to(tl.float32)
        values += moved[None, :]
    count = (rows * WIDTH).to(tl.float32)
    mean = tl.sum(tl.sum(tl.where(mask, values, 0.0), 0), 0) / count
    away = tl.where(mask, values - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(tl.sum(away * away, 0), 0) / count + eps)
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) * scale
    made = away * factor[None, :] + tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SILU:
        made = made * tl.sigmoid(made)
    if TAPS:
        line, column = row // width, row % width
        for tap in tl.static_range(9):
            down, right = tap // 3 - 1, tap % 3 - 1
            # The pixel that has this one at the tap, and whether there is one for this one.
            there = (line - down >= 0) & (line - down < rows // width)
            there = there & (column - right >= 0) & (column - right < width)
            target = (picture * rows + row - down * width - right) * 9 + tap
            target = target[:, None] * (GROUPS * WIDTH) + channel[None, :]
            tl.store(y + target, made.to(y.dtype.element_ty), mask=mask & there[:, None])
            there = (line + down >= 0) & (line + down < rows // width)
            there = there & (column + right >= 0) & (column + right < width)
            target = ((picture * rows + row) * 9 + tap)[:, None] * (GROUPS * WIDTH) + channel[None, :]
            tl.store(y + target, tl.zeros_like(made).to(y.dtype.element_ty), mask=mask & ~there[:, None])
    else:
        tl.store(y + place, made.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows_per_part"])
def _statistics(
    x, parts, rows, rows_per_part,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of a part of a picture, for each of some channels."""
    part, picture = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    row = tl.arange(0, ROWS)
    first_row = part * rows_per_part
    count = tl.minimum(rows - first_row, rows_per_part)
    start = x + (picture * rows + first_row) * CHANNELS
    # Deviations from any one value of the channel: squares of values far from zero lose their digits.
    pivot = tl.load(start + channel, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, count, ROWS):
        mask = (first + row < count)[:, None] & inside[None, :]
        place = (first + row)[:, None] * CHANNELS + channel[None, :]
        values = tl.load(start + place, mask=mask, other=0.0).to(tl.float32) - pivot[None, :]
        values = tl.where(mask, values, 0.0)
        total += values
        squares += values * values
    away = tl.sum(total, 0) / count
    target = parts + ((picture * tl.num_programs(0) + part) * 2) * CHANNELS + channel
    tl.store(target, pivot + away, mask=inside)
    tl.store(target + CHANNELS, tl.sum(squares, 0) - away * away * count, mask=inside)


@triton.jit(do_not_specialize=["rows_per_part", "parts_per_picture", "shift_stride"])
def _combine(
    parts, shift, weight, bias, line, rows, rows_per_part, parts_per_picture, shift_stride, eps,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr,
    SHIFTED: tl.constexpr,
):  # fmt: skip
    """From one group's statistics (Chan, Golub, LeVeque 1983) to factor and offset of its channels."""
    group, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = group * WIDTH + tl.arange(0, PADDED)
    inside = tl.arange(0, PADDED) < WIDTH
    part = tl.arange(0, PARTS)
    mask = (part < parts_per_picture)[:, None] & inside[None, :]
    source = parts + ((picture * parts_per_picture + part[:, None]) * 2) * (GROUPS * WIDTH) + channel[None, :]
    counts = tl.minimum(tl.maximum(rows - part * rows_per_part, 0), rows_per_part).to(tl.float32)[:, None]
    means = tl.load(source, mask=mask, other=0.0)
    spread = tl.load(source + GROUPS * WIDTH, mask=mask, other=0.0)
    moved = tl.zeros((PADDED,), tl.float32)
    if SHIFTED:
        moved += tl.load(shift + picture * shift_stride + channel, mask=inside, other=0.0).to(tl.float32)
        means += moved[None, :]
    total = (rows * WIDTH).to(tl.float32)
    mean = tl.sum(tl.sum(tl.where(mask, means * counts, 0.0), 0), 0) / total
    away = means - mean
    spread = tl.where(mask, spread + away * away * counts, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(tl.sum(spread, 0), 0) / total + eps)
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) * scale
    offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) + (moved - mean) * factor
    target = line + picture * 2 * GROUPS * WIDTH + channel
    tl.store(target, factor, mask=inside)
    tl.store(target + GROUPS * WIDTH, offset, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _apply(
    x, line, y, rows,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Factor and offset of each channel, on some rows."""
    picture = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    factor = tl.load(line + picture * 2 * CHANNELS + channel, mask=inside, other=0.0)
    offset = tl.load(line + picture * 2 * CHANNELS + CHANNELS + channel, mask=inside, other=0.0)
    mask = (row < rows)[:, None] & inside[None, :]
    place = picture * rows * CHANNELS + row[:, None] * CHANNELS + channel[None, :]
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
    if SILU:
        values = values * tl.sigmoid(values)
    tl.store(y + place, values.to(y.dtype.element_ty), mask=mask)


def fits(x: Tensor, groups: int) -> bool:
    """Whether one program holds a group of a picture: (B, C, H, W)."""
    _, channels, height, width = x.shape
    return _held(height * width, channels // groups) <= HELD


def _held(rows: int, per_group: int) -> int:
    return int(triton.next_power_of_2(rows) * triton.next_power_of_2(per_group))


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool,
    shift: Tensor | None = None,
    taps: bool = False,
) -> Tensor:
    """Group normalisation of ``x + shift``, then SiLU if wanted.

    Args:
        x: (B, C, H, W), channels last in memory.
        groups: divides C.
        weight: (C,).
        bias: (C,).
        eps: added to the variance.
        silu: whether to apply x·sigmoid(x).
        shift: added to every pixel before, (B, C) or (1, C).
        taps: whether to return for each pixel what a 3×3 convolution reads around it; only where `fits`.

    Returns:
        As ``x``; with ``taps`` (B, H·W, 9·C), zeros beyond the picture.
    """
    batch, channels, height, width = x.shape
    rows, per_group = height * width, channels // groups
    moved = x if shift is None else shift
    stride = 0 if shift is None or len(shift) == 1 else shift.stride(0)
    group: dict[str, Any] = {
        "GROUPS": groups, "WIDTH": per_group, "PADDED": triton.next_power_of_2(per_group),
        "SHIFTED": shift is not None,
    }  # fmt: skip
    if fits(x, groups):
        y = x.new_empty(batch, rows, 9 * channels) if taps else torch.empty_like(x)
        _normalise_group[(groups, batch)](
            x, moved, weight, bias, y, rows, width, stride, eps,
            ROWS=triton.next_power_of_2(rows), SILU=silu, TAPS=taps,
            num_warps=max(1, min(16, _held(rows, per_group) // 1024)), **group,
        )  # fmt: skip
        return y
    y = torch.empty_like(x)
    tile: dict[str, Any] = {"CHANNELS": channels, "ROWS": TILE_ROWS, "BLOCK": TILE_CHANNELS}
    blocks, tiles = triton.cdiv(channels, TILE_CHANNELS), triton.cdiv(rows, TILE_ROWS)
    parts = max(1, min(MOST_PARTS, PROGRAMS // (batch * blocks), tiles))
    rows_per_part = triton.cdiv(rows, parts)
    parts = triton.cdiv(rows, rows_per_part)
    statistics = torch.empty(batch, parts, 2, channels, device=x.device, dtype=torch.float32)
    line = torch.empty(batch, 2, channels, device=x.device, dtype=torch.float32)
    _statistics[(parts, blocks, batch)](x, statistics, rows, rows_per_part, **tile)
    _combine[(groups, batch)](
        statistics, moved, weight, bias, line, rows, rows_per_part, parts, stride, eps,
        PARTS=MOST_PARTS, **group,
    )  # fmt: skip
    _apply[(tiles, blocks, batch)](x, line, y, rows, SILU=silu, **tile)
    return y


@triton.jit
def _add_layer_norm(
    x, delta, weight, bias, total, y, total_stride, eps,
    WIDTH: tl.constexpr, ADD: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    mask = column < WIDTH
    values = tl.load(x + row * WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(delta + row * WIDTH + column, mask=mask, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row * total_stride + column, rounded, mask=mask)
        values = rounded.to(tl.float32)
    mean = tl.sum(values) / WIDTH
    away = tl.where(mask, values - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(away * away) / WIDTH + eps)
    made = away * scale * tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    made += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + column, made.to(y.dtype.element_ty), mask=mask)


def add_layer_norm(
    x: Tensor,
    delta: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``x + delta`` and its layer normalisation; (B, N, C), contiguous.

    Args:
        x: what to add to.
        delta: what to add, as ``x``; None for nothing.
        weight: (C,).
        bias: (C,).
        eps: added to the variance.
        total: where the sum goes, the first C columns of a contiguous (B, N, any); None for a new tensor.
    """
    batch, tokens, width = x.shape
    if total is None:
        total = x if delta is None else torch.empty_like(x)
    y = torch.empty_like(x)
    _add_layer_norm[(batch * tokens,)](
        x, x if delta is None else delta, weight, bias, total, y, total.stride(1), eps,
        WIDTH=width, ADD=delta is not None, PADDED=triton.next_power_of_2(width),
        num_warps=4 if width > 512 else 2,
    )  # fmt: skip
    return total, y
