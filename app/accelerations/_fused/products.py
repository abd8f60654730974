"""Matrix products with what follows them, as Triton kernels."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear
from triton.tools.tensor_descriptor import TensorDescriptor

from app.accelerations._fused import pointwise
from app.accelerations._fused.tiles import gathers_tiles

COLUMNS, DEPTH = 64, 64
"""Of one program, and of one turn of its loop."""
FEW_ROWS = 1024
"""So few are cut into smaller tiles, or they would leave most of a large GPU idle."""
TOGETHER = 8
"""Programs below each other that run at the same time and so share what they read."""


@triton.jit
def _geglu_product(
    x, weight, bias, y, rows, width, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """A tile of the values and the tile of their gates."""
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(width, COLUMNS)
    band = tl.program_id(0) // (TOGETHER * across) * TOGETHER
    inside = tl.program_id(0) % (TOGETHER * across)
    tall = tl.minimum(down - band, TOGETHER)
    row, column = (band + inside % tall) * ROWS, inside // tall * COLUMNS
    value = tl.zeros((ROWS, COLUMNS), tl.float32)
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, depth, DEPTH):
        part = x.load([row, start])
        value = tl.dot(part, weight.load([column, start]).T, value, input_precision="ieee")
        gate = tl.dot(part, weight.load([width + column, start]).T, gate, input_precision="ieee")
    place = column + tl.arange(0, COLUMNS)
    value += tl.load(bias + place, mask=place < width, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias + width + place, mask=place < width, other=0.0).to(tl.float32)[None, :]
    made = value * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)))
    y.store([row, column], made.to(y.dtype))


def geglu(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """Of a linear layer's 2 F results the first half times GELU of the second (arXiv:2002.05202); what lies
    between is not written to memory where the GPU gathers tiles.

    Args:
        x: (B, N, C), contiguous.
        weight: (2 F, C).
        bias: (2 F,).
        y: where it goes: (B, N, F), F columns of a contiguous tensor.
    """
    if not gathers_tiles(x):
        return pointwise.geglu(linear(x, weight, bias), y)
    flat, target = x.flatten(0, 1), y.flatten(0, 1)
    (rows, depth), width = flat.shape, y.shape[2]
    tall = 64 if rows <= FEW_ROWS else 128
    _geglu_product[(triton.cdiv(rows, tall) * triton.cdiv(width, COLUMNS),)](
        TensorDescriptor.from_tensor(flat, [tall, DEPTH]),
        TensorDescriptor.from_tensor(weight, [COLUMNS, DEPTH]),
        bias,
        TensorDescriptor.from_tensor(target, [tall, COLUMNS]),
        rows, width, depth,
        ROWS=tall, COLUMNS=COLUMNS, DEPTH=DEPTH, TOGETHER=TOGETHER,
        num_warps=4, num_stages=3 if x.element_size() == 2 else 1,
    )  # fmt: skip
    return y
