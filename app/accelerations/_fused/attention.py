"""Attention of few pictures as a Triton kernel.

The libraries' kernels take 128 queries at a time, so that the 160 programs of a lone picture's largest
attention are two rounds on a GPU of 132 multiprocessors, the second one nearly empty; this one takes 64. For
the 77 keys of a prompt it has nothing to prepare.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from triton.tools.tensor_descriptor import TensorDescriptor

from app.accelerations._fused.tiles import gathers_tiles

WIDTH = 64
"""Channels of a head that the kernel is written for."""
QUERIES, KEYS = 64, 128
"""Of one program, and of one turn of its loop at most."""
FEW_PROGRAMS = 700
"""The libraries' kernels are faster where there are more of 64 queries each."""


@triton.jit
def _attend(
    query, key, value, y, keys, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Some queries of one head of one picture (FlashAttention-2, arXiv:2307.08691), base 2 exponentials."""
    first, column, picture = tl.program_id(0) * QUERIES, tl.program_id(1) * WIDTH, tl.program_id(2)
    q = query.load([picture, first, column]).reshape(QUERIES, WIDTH)
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    made = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in range(0, keys, KEYS):
        k = key.load([picture, start, column]).reshape(KEYS, WIDTH)
        scores = tl.dot(q, k.T, input_precision="ieee") * scale
        if not WHOLE:
            scores = tl.where((start + tl.arange(0, KEYS) < keys)[None, :], scores, float("-inf"))
        above = tl.maximum(most, tl.max(scores, 1))
        shares = tl.exp2(scores - above[:, None])
        fade = tl.exp2(most - above)
        total = total * fade + tl.sum(shares, 1)
        v = value.load([picture, start, column]).reshape(KEYS, WIDTH)
        made = tl.dot(shares.to(v.dtype), v, made * fade[:, None], input_precision="ieee")
        most = above
    made = made / total[:, None]
    y.store([picture, first, column], made.to(q.dtype).reshape(1, QUERIES, WIDTH))


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Scaled dot product attention of all heads.

    Args:
        query: (B, N, C), C for all heads; a slice of a wider tensor is read where it is, as are the others.
        key: (B, M, C).
        value: as ``key``.
        heads: divides C.

    Returns:
        (B, N, C), contiguous.
    """
    batch, tokens, channels = query.shape
    programs = triton.cdiv(tokens, QUERIES) * heads * batch
    if not _fits(query, heads) or programs > FEW_PROGRAMS:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    y = query.new_empty(batch, tokens, channels)
    keys = key.shape[1]
    turn = max(16, min(KEYS, triton.next_power_of_2(keys)))
    _attend[(triton.cdiv(tokens, QUERIES), heads, batch)](
        _described(query, QUERIES), _described(key, turn), _described(value, turn), _described(y, QUERIES),
        keys, math.log2(math.e) / math.sqrt(WIDTH),
        QUERIES=QUERIES, KEYS=turn, WIDTH=WIDTH, WHOLE=keys % turn == 0, num_warps=4, num_stages=2,
    )  # fmt: skip
    return y


def _fits(query: Tensor, heads: int) -> bool:
    return query.shape[2] == heads * WIDTH and query.element_size() == 2 and gathers_tiles(query)


def _described(tensor: Tensor, rows: int) -> Any:
    return TensorDescriptor.from_tensor(tensor, [1, rows, WIDTH])
