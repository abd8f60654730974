"""Functions of tensors as CUDA graphs: one host call replays all the kernels of a function.

An eager frame launches about a thousand kernels, which takes the host longer than the device; a graph
launches them together. It does not know what the functions compute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

log = logging.getLogger(__name__)

PLAIN_CALLS = 2
"""So often a function runs plainly before it is captured: kernels are chosen, tuned and compiled then,
which must not happen during a capture."""


@dataclass(frozen=True)
class _Lane:
    """Where the functions of one stream are captured. Graphs of different lanes may run at the same time, so
    neither their memory nor their capturing stream, which owns the workspace of cuBLAS, is shared.
    """

    stream: torch.cuda.Stream
    pool: Any


@dataclass
class _Captured:
    """A graph and the memory it reads from and writes to."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: list[Any]
    nest: TreeSpec


class GraphExecutor:
    """Calls functions of tensors; from the third call with the same key on it replays a graph.

    A key stands for one function and one set of shapes. A function must do the same for the same key: no
    branches on values, no waiting for the device, and everything that it touches beside its arguments
    must stay where it is. Calls belong to one thread, and those with one key to one stream; the graphs of a
    stream share their memory.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lanes: dict[torch.cuda.Stream, _Lane] = {}
        self._calls: dict[Hashable, int] = {}
        self._captured: dict[Hashable, _Captured] = {}

    def __call__(self, key: Hashable, function: Callable[..., Any], *tensors: Tensor) -> Any:
        """What ``function(*tensors)`` returns, a tensor or a nest of them that is the caller's own."""
        captured = self._captured.get(key)
        if captured is None:
            calls = self._calls[key] = self._calls.get(key, 0) + 1
            if calls <= PLAIN_CALLS:
                return function(*tensors)
            captured = self._captured[key] = self._capture(key, function, tensors)
        for static, given in zip(captured.inputs, tensors, strict=True):
            static.copy_(given, non_blocking=True)
        captured.graph.replay()
        # The next replay of any graph of this stream may overwrite what this one wrote.
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in captured.outputs]
        return tree_unflatten(leaves, captured.nest)

    def _capture(self, key: Hashable, function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> _Captured:
        """Record the kernels of a call; none of them runs."""
        inputs = tuple(torch.empty_like(tensor) for tensor in tensors)
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        lane = self._lanes.get(current)
        if lane is None:  # PyTorch hands out 32 streams in turn, so none is made in vain
            lane = _Lane(torch.cuda.Stream(self._device), torch.cuda.graph_pool_handle())
            self._lanes[current] = lane
        # Thread-local: meanwhile another thread may embed a prompt, which allocates.
        recording = torch.cuda.graph(
            graph, pool=lane.pool, stream=lane.stream, capture_error_mode="thread_local"
        )
        try:
            with recording:
                outputs = function(*inputs)
        except BaseException:
            # The pool counts as being recorded to for ever; the stream's workspace goes with the graph.
            del self._lanes[current]
            raise
        log.debug("captured %s", key)
        return _Captured(graph, inputs, *tree_flatten(outputs))
