"""Runs a serialised engine on PyTorch's tensors and PyTorch's current stream.

Written against the documented interface of TensorRT 10 (``set_input_shape``, ``set_tensor_address``,
``execute_async_v3``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from app.accelerations._tensorrt.build import logger_of
from app.accelerations.base import AccelerationError


class Engine:
    """An engine on a device, called like the function it was built from.

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
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise AccelerationError(f"TensorRT has no memory for the engine: {self._logger.last}")
        kinds = {
            trt.DataType.FLOAT: torch.float32,
            trt.DataType.HALF: torch.float16,
            trt.DataType.BF16: torch.bfloat16,
        }
        self._dtypes = {name: kinds[self._engine.get_tensor_dtype(name)] for name in (*inputs, "output")}

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Tensors of any batch size that the engine was built for → a new tensor."""
        for name, tensor in zip(self._inputs, tensors, strict=True):
            # What is freed when this returns is reused on the same stream, after the engine ran.
            tensor = tensor.to(self._dtypes[name]).contiguous()
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise RuntimeError(f"the engine was not built for {name} of shape {tuple(tensor.shape)}")
            self._context.set_tensor_address(name, tensor.data_ptr())
        shape = tuple(self._context.get_tensor_shape("output"))
        output = torch.empty(shape, dtype=self._dtypes["output"], device=self._device)
        self._context.set_tensor_address("output", output.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise RuntimeError(f"TensorRT could not run: {self._logger.last}")
        return output
