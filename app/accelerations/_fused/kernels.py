"""Triton kernels for tensors that are channels last in memory.

PyTorch runs each of these operations as two to six kernels, and its group normalisation changes the memory
layout there and back. The arithmetic is float32, whatever the tensors are. No atomics: the same input gives
the same bits.
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

TILE = 4096
"""Elements that one program holds at a time."""
PROGRAMS = 264
"""Programs that fill a large GPU twice; statistics are split into about so many parts."""
MOST_PARTS = 128
"""Of one picture's statistics; one number for all batch sizes, since each would be another kernel."""


@triton.jit(do_not_specialize=["rows_per_part", "shift_stride"])
def _statistics(
    x, shift, parts, rows, rows_per_part, shift_stride,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
    SHIFTED: tl.constexpr,
):  # fmt: skip
    """Mean, sum of squared deviations and count of a part of a picture, for each group."""
    part, picture = tl.program_id(0), tl.program_id(1)
    group = tl.arange(0, GROUPS)
    channel = group[:, None] * WIDTH + tl.arange(0, PADDED)[None, :]
    inside = (tl.arange(0, PADDED) < WIDTH)[None, :]
    mean = tl.zeros((GROUPS,), tl.float32)
    spread = tl.zeros((GROUPS,), tl.float32)
    count = 0.0
    for start in range(0, rows_per_part, ROWS):
        row = part * rows_per_part + start + tl.arange(0, ROWS)
        here = (row < rows) & (start + tl.arange(0, ROWS) < rows_per_part)
        mask = here[:, None, None] & inside[None, :, :]
        offset = (picture.to(tl.int64) * rows + row.to(tl.int64)) * (GROUPS * WIDTH)
        values = tl.load(x + offset[:, None, None] + channel[None, :, :], mask=mask, other=0.0).to(tl.float32)
        if SHIFTED:
            moved = tl.load(shift + picture * shift_stride + channel, mask=inside, other=0.0).to(tl.float32)
            values += moved[None, :, :]
            values = tl.where(mask, values, 0.0)
        added = tl.sum(here.to(tl.float32)) * WIDTH
        total = count + added
        fresh = tl.sum(tl.sum(values, 2), 0) / tl.maximum(added, 1.0)
        deviation = tl.where(mask, values - fresh[None, :, None], 0.0)
        # Chan, Golub, LeVeque (1983): how means and sums of squares of two samples combine.
        delta = fresh - mean
        spread += tl.sum(tl.sum(deviation * deviation, 2), 0) + delta * delta * count * added / tl.maximum(
            total, 1.0
        )
        mean += delta * added / tl.maximum(total, 1.0)
        count = total
    target = parts + ((picture * tl.num_programs(0) + part) * 2) * GROUPS + group
    tl.store(target, mean)
    tl.store(target + GROUPS, spread)


@triton.jit(do_not_specialize=["rows_per_part", "parts_per_picture", "shift_stride"])
def _normalise(
    x, shift, parts, weight, bias, y, rows, rows_per_part, parts_per_picture, shift_stride, eps,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
    PARTS: tl.constexpr, SHIFTED: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Combine the parts' statistics and apply them to some rows."""
    picture = tl.program_id(1)
    group = tl.arange(0, GROUPS)
    part = tl.arange(0, PARTS)
    source = parts + ((picture * parts_per_picture + part[:, None]) * 2) * GROUPS + group[None, :]
    present = (part < parts_per_picture)[:, None]
    count = (
        tl.minimum(tl.maximum(rows - part * rows_per_part, 0), rows_per_part).to(tl.float32)[:, None] * WIDTH
    )
    count = tl.where(present, count, 0.0)
    means = tl.load(source, mask=present, other=0.0)
    total = rows.to(tl.float32) * WIDTH
    mean = tl.sum(means * count, 0) / total
    away = means - mean[None, :]
    spread = tl.sum(tl.load(source + GROUPS, mask=present, other=0.0) + away * away * count, 0)
    scale = 1.0 / tl.sqrt(spread / total + eps)

    channel = group[:, None] * WIDTH + tl.arange(0, PADDED)[None, :]
    inside = (tl.arange(0, PADDED) < WIDTH)[None, :]
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) * scale[:, None]
    offset_of = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) - mean[:, None] * factor
    if SHIFTED:
        offset_of += factor * tl.load(shift + picture * shift_stride + channel, mask=inside, other=0.0).to(
            tl.float32
        )
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None, None] & inside[None, :, :]
    place = ((picture.to(tl.int64) * rows + row.to(tl.int64)) * (GROUPS * WIDTH))[:, None, None] + channel[
        None, :, :
    ]
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    values = values * factor[None, :, :] + offset_of[None, :, :]
    if SILU:
        values = values * tl.sigmoid(values)
    tl.store(y + place, values.to(y.dtype.element_ty), mask=mask)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool,
    shift: Tensor | None = None,
) -> Tensor:
    """Group normalisation of ``x + shift``, then SiLU if wanted.

    Args:
        x: (B, C, H, W), channels last in memory.
        groups: a power of two that divides C.
        weight: (C,).
        bias: (C,).
        eps: added to the variance.
        silu: whether to apply x·sigmoid(x).
        shift: added to every pixel before, (B, C) or (1, C).

    Returns:
        As ``x``.
    """
    batch, channels, height, width = x.shape
    rows, per_group = height * width, channels // groups
    y = torch.empty_like(x)
    padded = triton.next_power_of_2(per_group)
    tile_rows = max(1, TILE // (groups * padded))
    parts = max(1, min(MOST_PARTS, PROGRAMS // batch, triton.cdiv(rows, tile_rows)))
    rows_per_part = triton.cdiv(rows, parts)
    parts = triton.cdiv(rows, rows_per_part)
    statistics = torch.empty(batch, parts, 2, groups, device=x.device, dtype=torch.float32)
    moved = x if shift is None else shift
    stride = 0 if shift is None or len(shift) == 1 else shift.stride(0)
    constants: dict[str, Any] = {
        "GROUPS": groups, "WIDTH": per_group, "PADDED": padded, "ROWS": tile_rows,
        "SHIFTED": shift is not None,
    }  # fmt: skip
    _statistics[(parts, batch)](x, moved, statistics, rows, rows_per_part, stride, **constants)
    _normalise[(triton.cdiv(rows, tile_rows), batch)](
        x, moved, statistics, weight, bias, y, rows, rows_per_part, parts, stride, eps,
        PARTS=MOST_PARTS, SILU=silu, **constants,
    )  # fmt: skip
    return y


@triton.jit
def _add(
    x, bias, skip, y, elements, channels,
    BIAS: tl.constexpr, SKIP: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < elements
    values = tl.load(x + place, mask=mask).to(tl.float32)
    if BIAS:
        values += tl.load(bias + place % channels, mask=mask).to(tl.float32)
    if SKIP:
        values += tl.load(skip + place, mask=mask).to(tl.float32)
    if RELU:
        values = tl.maximum(values, 0.0)
    tl.store(y + place, values.to(y.dtype.element_ty), mask=mask)


def add_bias(x: Tensor, bias: Tensor | None, skip: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``x + bias + skip``, then ReLU if wanted; in the place of ``x``.

    Args:
        x: (B, C, H, W), channels last in memory; overwritten.
        bias: (C,).
        skip: as ``x``, in the same layout.
        relu: whether to cut off below zero.
    """
    elements, block = x.numel(), 2048
    _add[(triton.cdiv(elements, block),)](
        x, x if bias is None else bias, x if skip is None else skip, x, elements, x.shape[1],
        BIAS=bias is not None, SKIP=skip is not None, RELU=relu, BLOCK=block,
    )  # fmt: skip
    return x


@triton.jit
def _geglu(x, y, width, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    value = tl.load(x + row * 2 * width + column, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + column, mask=mask, other=0.0).to(tl.float32)
    made = value * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)))
    tl.store(y + row * width + column, made.to(y.dtype.element_ty), mask=mask)


def geglu(x: Tensor) -> Tensor:
    """(B, N, 2F) → (B, N, F): the first half times GELU of the second (arXiv:2002.05202)."""
    batch, tokens, doubled = x.shape
    y = torch.empty(batch, tokens, doubled // 2, device=x.device, dtype=x.dtype)
    block = 1024
    _geglu[(triton.cdiv(doubled // 2, block), batch * tokens)](x, y, doubled // 2, BLOCK=block)
    return y


@triton.jit
def _add_layer_norm(x, delta, weight, bias, total, y, width, eps, ADD: tl.constexpr, PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    mask = column < width
    values = tl.load(x + row * width + column, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(delta + row * width + column, mask=mask, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row * width + column, rounded, mask=mask)
        values = rounded.to(tl.float32)
    mean = tl.sum(values) / width
    away = tl.where(mask, values - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(away * away) / width + eps)
    made = away * scale * tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    made += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * width + column, made.to(y.dtype.element_ty), mask=mask)


def add_layer_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``x + delta`` and its layer normalisation; all (B, N, C), contiguous."""
    batch, tokens, width = x.shape
    total = x if delta is None else torch.empty_like(x)
    y = torch.empty_like(x)
    _add_layer_norm[(batch * tokens,)](
        x, x if delta is None else delta, weight, bias, total, y, width, eps,
        ADD=delta is not None, PADDED=triton.next_power_of_2(width), num_warps=4 if width > 512 else 2,
    )  # fmt: skip
    return total, y
