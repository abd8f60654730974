"""Between host and device: pictures cross the bus once each way, as uint8, beside the computation; and what
else of a batch runs beside the forward passes.

Two classes with one face, for CUDA and for a device that is the host itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from app.core.messages import Image


class Download(Protocol):
    """Tensors on their way to the host."""

    def complete(self) -> bool:
        """Whether they are there."""

    def wait(self) -> list[Tensor]:
        """Block until they are, and return them."""


class Mark(Protocol):
    """A point in the computation."""

    def complete(self) -> bool:
        """Whether the device has passed it."""

    def wait(self) -> None:
        """Block until it has."""

    def seconds_since(self, earlier: Mark) -> float:
        """What the device took from there to here, both passed."""


class Transfer(Protocol):
    """Moves tensors; everything is ordered with the computation on the current stream."""

    def ahead(self) -> AbstractContextManager[None]:
        """What a forward pass needs, made while the one before may still run; after leaving, the computation
        goes on when it is made.
        """

    def behind(self, *tensors: Tensor) -> AbstractContextManager[None]:
        """What is made of a forward pass, here of these tensors, while the next one may run already."""

    def upload_images(self, images: Sequence[Image], batch: int) -> Tensor:
        """Pictures as (batch, H, W, 3), uint8, on the device; what is beyond them is padding."""

    def upload(self, values: Tensor) -> Tensor:
        """A small tensor of the host on the device."""

    def download(self, tensors: Sequence[Tensor]) -> Download:
        """Begin to bring results to the host."""

    def mark(self) -> Mark:
        """This point in the computation."""

    def aside(self) -> AbstractContextManager[object]:
        """Compute here beside the batches instead of between them, on another thread; what is made must be
        brought to the host before leaving.
        """


class Present:
    """A download of what is on the host already."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)

    def complete(self) -> bool:
        """Always."""
        return True

    def wait(self) -> list[Tensor]:
        """The tensors themselves."""
        return self._tensors


class Passed:
    """A point in a computation that is done when it is called."""

    def complete(self) -> bool:
        """Always."""
        return True

    def wait(self) -> None:
        """Nothing to wait for."""

    def seconds_since(self, _earlier: Mark) -> float:
        """Nothing is left to be done later."""
        return 0.0


class HostTransfer:
    """For the CPU, where computing is synchronous and nothing moves."""

    def ahead(self) -> AbstractContextManager[None]:
        """One after the other."""
        return nullcontext()

    def behind(self, *_tensors: Tensor) -> AbstractContextManager[None]:
        """One after the other."""
        return nullcontext()

    def upload_images(self, images: Sequence[Image], batch: int) -> Tensor:
        """One copy into a batch."""
        return torch.from_numpy(np.stack([*images, *[images[0]] * (batch - len(images))]))

    def upload(self, values: Tensor) -> Tensor:
        """Nothing to do."""
        return values

    def download(self, tensors: Sequence[Tensor]) -> Download:
        """Nothing to wait for."""
        return Present(tensors)

    def mark(self) -> Mark:
        """Nothing to wait for."""
        return Passed()

    def aside(self) -> AbstractContextManager[object]:
        """Nothing to do: every thread computes for itself."""
        return nullcontext()


class CudaMark:
    """An event on the computing stream."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = torch.cuda.Event(blocking=True, enable_timing=True)
        self._event.record(stream)

    def complete(self) -> bool:
        """Asks the device without waiting."""
        return bool(self._event.query())

    def wait(self) -> None:
        """Sleeps until the event."""
        self._event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        """By the device's own clock."""
        assert isinstance(earlier, CudaMark)
        return 1e-3 * float(earlier._event.elapsed_time(self._event))  # noqa: SLF001 - of the same class


class CudaDownload:
    """Tensors behind an event."""

    def __init__(self, event: torch.cuda.Event, tensors: Sequence[Tensor]) -> None:
        self._event = event
        self._tensors = list(tensors)

    def complete(self) -> bool:
        """Asks the device without waiting."""
        return bool(self._event.query())

    def wait(self) -> list[Tensor]:
        """Sleeps until the event."""
        self._event.synchronize()
        return self._tensors


class CudaTransfer:
    """Through pinned memory, on a stream for each direction; what goes ahead of and behind the forward passes
    has a stream of its own too. The forward passes are on the stream that is current when this is made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._computing = torch.cuda.current_stream(device)
        self._up = torch.cuda.Stream(device)
        self._down = torch.cuda.Stream(device)
        self._ahead = torch.cuda.Stream(device)
        self._behind = torch.cuda.Stream(device)
        self._aside = torch.cuda.Stream(device)
        self._before = self._computing.record_event()  # all that precedes the newest forward pass
        torch.cuda.synchronize(device)  # weights and tables are there: the other streams do not ask

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """On its own stream, beside the newest forward pass alone: two batches touch different slots
        (`SLOTS_PER_ROW`), three may not.
        """
        self._ahead.wait_event(self._before)
        with torch.cuda.stream(self._ahead):
            yield
        self._before = self._computing.record_event()
        self._computing.wait_stream(self._ahead)

    @contextmanager
    def behind(self, *tensors: Tensor) -> Iterator[None]:
        """On its own stream, from here on."""
        self._behind.wait_stream(self._computing)
        with torch.cuda.stream(self._behind):
            yield
        for tensor in tensors:
            tensor.record_stream(self._behind)

    def upload_images(self, images: Sequence[Image], batch: int) -> Tensor:
        """Stage in pinned memory, copy on the upload stream while the device still computes."""
        staged = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=True)
        for row, image in zip(staged.numpy(), images, strict=True):
            np.copyto(row, image)
        with torch.cuda.stream(self._up):
            target = torch.empty((batch, *images[0].shape), dtype=torch.uint8, device=self._device)
            target[: len(images)].copy_(staged, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._up)
        target.record_stream(current)
        return target

    def upload(self, values: Tensor) -> Tensor:
        """On the current stream: too small to be worth another."""
        uploaded = values.pin_memory().to(self._device, non_blocking=True)
        uploaded.record_stream(self._computing)
        return uploaded

    def download(self, tensors: Sequence[Tensor]) -> Download:
        """On the download stream, so that the next batch does not wait for the bus."""
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            on_host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for source, target in zip(tensors, on_host, strict=True):
                target.copy_(source, non_blocking=True)
                source.record_stream(self._down)
            event = torch.cuda.Event(blocking=True)
            event.record(self._down)
        return CudaDownload(event, on_host)

    def mark(self) -> Mark:
        """An event on the computing stream."""
        return CudaMark(self._computing)

    def aside(self) -> AbstractContextManager[object]:
        """A stream of its own; entering it also makes its device the thread's current one."""
        return torch.cuda.stream(self._aside)
