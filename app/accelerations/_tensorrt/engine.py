"""Runs a serialised engine on PyTorch's tensors and PyTorch's current stream.

Written against the documented interface of TensorRT 10 (``set_input_shape``, ``set_tensor_address``,
``set_device_memory``, ``execute_async_v3``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from app.accelerations._tensorrt.build import logger_of
from app.accelerations.base import AccelerationError


class Engine:
    """An engine on a device, called like the function it was built from; all calls belong to one stream.

    Args:
        trt: the library.
        plan: the serialised engine.
        inputs: the names of its inputs in the order of the arguments; the output's is ``output``.
        device: where its tensors are.

    Raises:
        AccelerationError: if the library does not take the engine.
    """

    def __init__(self, trt: Any, plan: bytes, inputs: tuple[str, ...], device: torch.device) -> None:
        self._inputs, self._device = inputs, device
        self._logger = logger_of(trt)
        self._runtime = trt.Runtime(self._logger)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise AccelerationError(f"TensorRT does not take the engine: {self._logger.last}")
        # What its layers pass on: enough for any batch size, and by default every context has so much.
        size = max(1, self._engine.device_memory_size_v2)
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._unallocated = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._contexts: dict[tuple[tuple[int, ...], ...], Any] = {}
        kinds = {
            trt.DataType.FLOAT: torch.float32,
            trt.DataType.HALF: torch.float16,
            trt.DataType.BF16: torch.bfloat16,
        }
        self._dtypes = {name: kinds[self._engine.get_tensor_dtype(name)] for name in (*inputs, "output")}

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Tensors of any batch size that the engine was built for → a new tensor."""
        # Kept until the engine is launched: what is freed earlier, the output below could be given.
        given = [
            tensor.to(self._dtypes[name]).contiguous()
            for name, tensor in zip(self._inputs, tensors, strict=True)
        ]
        context = self._context(tuple(tuple(tensor.shape) for tensor in given))
        for name, tensor in zip(self._inputs, given, strict=True):
            context.set_tensor_address(name, tensor.data_ptr())
        shape = tuple(context.get_tensor_shape("output"))
        output = torch.empty(shape, dtype=self._dtypes["output"], device=self._device)
        context.set_tensor_address("output", output.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise RuntimeError(f"TensorRT could not run: {self._logger.last}")
        return output

    def _context(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """The context for inputs of these shapes. Each set of shapes has its own, since a CUDA graph holds
        on to the context that it was captured with.
        """
        context = self._contexts.get(shapes)
        if context is not None:
            return context
        context = self._engine.create_execution_context(self._unallocated)
        if context is None:
            raise RuntimeError(f"TensorRT has no memory for another batch size: {self._logger.last}")
        context.set_device_memory(self._memory.data_ptr(), len(self._memory))
        for name, shape in zip(self._inputs, shapes, strict=True):
            if not context.set_input_shape(name, shape):
                raise RuntimeError(f"the engine was not built for {name} of shape {shape}")
        self._contexts[shapes] = context
        return context
