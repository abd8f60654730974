"""Memory of the devices and of the host: read it, log it, give it back.

torch is imported when a function is called: the configuration and the dependency check do without it.
Nothing here fails on a machine without a GPU; there is just nothing to report.
"""

import gc
import logging
from dataclasses import dataclass

import psutil

log = logging.getLogger(__name__)

_GIB = 2**30


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one CUDA device in bytes.

    `free` is what the driver has left, for all processes; `allocated` is held by this process's tensors, and
    `reserved` by its caching allocator (which contains `allocated`).
    """

    index: int
    name: str
    total: int
    free: int
    allocated: int
    reserved: int


@dataclass(frozen=True)
class HostMemory:
    """Memory of the machine and of this process in bytes; `resident` is the process's share of RAM."""

    total: int
    available: int
    resident: int


def host_memory() -> HostMemory:
    """Read the memory of the machine and of this process."""
    machine = psutil.virtual_memory()
    return HostMemory(machine.total, machine.available, psutil.Process().memory_info().rss)


def device_memory(*, in_use: bool = False) -> list[DeviceMemory]:
    """Read the memory of every CUDA device that this process can see; empty where there is none.

    Args:
        in_use: only of those that this process computes on. Asking about another one opens it, which takes
            seconds, and half a gigabyte of its memory.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    memory = []
    for index in range(torch.cuda.device_count()):
        if in_use and not torch.cuda.memory_reserved(index):
            continue
        free, total = torch.cuda.mem_get_info(index)
        memory.append(
            DeviceMemory(
                index=index,
                name=torch.cuda.get_device_name(index),
                total=total,
                free=free,
                allocated=torch.cuda.memory_allocated(index),
                reserved=torch.cuda.memory_reserved(index),
            )
        )
    return memory


class PerformanceOptimizer:
    """Upkeep of GPU memory, by hand; the engine does it by itself when memory runs out."""

    @staticmethod
    def cleanup_gpu_memory() -> None:
        """Return unused cached memory to the driver, so that other processes can have it.

        Tensors in use stay. Freeing waits for the device, so this does not belong into a running tick.
        """
        import torch

        gc.collect()
        if not torch.cuda.is_available():
            log.debug("no CUDA device: no GPU memory to clean up")
            return
        before = torch.cuda.memory_reserved()
        torch.cuda.empty_cache()
        log.info("cleaned up GPU memory", extra={"freed_gib": _gib(before - torch.cuda.memory_reserved())})

    @staticmethod
    def log_gpu_memory_info() -> None:
        """Log one line for each CUDA device, in GiB, or one that says there is none."""
        devices = device_memory()
        if not devices:
            log.info("no CUDA device: no GPU memory in use")
        for device in devices:
            log.info(
                "GPU memory of cuda:%d",
                device.index,
                extra={
                    "device_name": device.name,
                    "total_gib": _gib(device.total),
                    "free_gib": _gib(device.free),
                    "allocated_gib": _gib(device.allocated),
                    "reserved_gib": _gib(device.reserved),
                },
            )


def _gib(size: int) -> float:
    return round(size / _GIB, 2)
