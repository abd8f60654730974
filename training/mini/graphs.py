"""What makes a training step quick on a GPU: half precision copies of the modules, and CUDA graphs."""

import copy
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

log = logging.getLogger("training.mini")
_Module = TypeVar("_Module", bound=nn.Module)


def precision(device: torch.device) -> torch.dtype:
    """What is computed in: bfloat16 on a GPU, float32 on a CPU, whose half precision gradients are slow."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def quick(module: _Module, layout: torch.memory_format) -> _Module:
    """A copy in evaluation mode, in the device's precision, its convolutions in the given layout."""
    twin = copy.deepcopy(module).to(precision(next(module.parameters()).device)).eval()
    for p in twin.parameters():
        p.grad = None
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=layout)
    return twin


class Twin:
    """Copies of modules that compute, in the device's precision, while the float32 originals learn: those of
    their parameters that require gradients.

    Without autocast, which would run every normalisation in float32 and so move twice the bytes.

    Attributes:
        modules: the copies, in evaluation mode (nothing here behaves otherwise when training).
        layout: that of their convolutions.
        dtype: what they compute in.
    """

    def __init__(self, originals: list[nn.Module], layout: torch.memory_format) -> None:
        self.layout = layout
        self.parameters = [p for module in originals for p in module.parameters() if p.requires_grad]
        self.dtype = precision(self.parameters[0].device)
        self.modules = [quick(module, layout) for module in originals]
        self.copies: list[Tensor] = [
            p for module in self.modules for p in module.parameters() if p.requires_grad
        ]
        for p in self.parameters:
            p.grad = torch.zeros_like(p)

    @torch.no_grad()
    def take(self) -> None:
        """Bring the copies up to date."""
        torch._foreach_copy_(self.copies, [p.detach() for p in self.parameters])

    def give(self, loss: Tensor, keep: bool = False) -> None:
        """Write the gradients of a loss of the copies to the originals; `keep` what a further loss needs."""
        gradients = torch.autograd.grad(loss, self.copies, allow_unused=True, retain_graph=keep)
        kept, new = [], []
        for p, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                assert p.grad is not None
                kept.append(p.grad)
                new.append(gradient)
        with torch.no_grad():
            torch._foreach_copy_(kept, new)


class Graph:
    """A function of tensors of fixed shapes, replayed as one CUDA graph: its many launches then cost the host
    nothing.

    The function must neither read a figure back nor draw random numbers. Its results live in buffers that the
    next call overwrites. `graphs` False calls the function itself.

    Raises:
        RuntimeError: the first replay gives something else than the function.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], graphs: bool) -> None:
        self.function = function
        self.graphs = graphs
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not self.graphs:
            return self.function(*inputs)
        if self.graph is None:
            self._capture(inputs)
        assert self.graph is not None
        for kept, new in zip(self.inputs, inputs, strict=True):
            kept.copy_(new)
        self.graph.replay()
        return self.outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(x.detach().clone() for x in inputs)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up in the first calls
            for _ in range(3):
                expected = self.function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.outputs = self.function(*self.inputs)
        graph.replay()
        for found, wanted in zip(self.outputs, expected, strict=True):
            difference = ((found - wanted).abs().max() / wanted.abs().max()).item()
            if not difference < 0.05:
                raise RuntimeError(f"the graph's results differ from the function's by {difference:.3g}")
        self.graph = graph
        log.info("captured a graph; %.1f GiB in use at most", torch.cuda.max_memory_allocated() / 2**30)
