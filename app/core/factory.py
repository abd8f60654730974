"""From the configuration to an engine: which model, which acceleration, which batch sizes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from app.accelerations import choose_cuda_graph, load_acceleration
from app.accelerations._cuda_graph import GraphExecutor
from app.accelerations.base import Shapes
from app.config.schema import Settings
from app.core.denoise import Guidance
from app.core.engine import Engine
from app.core.messages import Mode
from app.core.runner import DiffusionRunner, execute
from app.models.loader import load, resolve_device
from app.pipelines.base import BasePipeline

log = logging.getLogger(__name__)

Report = Callable[[str], None]

CUDA_BATCH, CPU_BATCH = 16, 4


def create_engine(settings: Settings, pipelines: Mapping[Mode, BasePipeline[Any]]) -> Engine:
    """An engine that loads the configured model when it starts.

    Raises:
        ModelLoadError: if the configured device is not there.
    """
    device = resolve_device(settings.model.device)
    buckets = batch_sizes(settings.performance.max_batch, device)
    stream_batch = settings.performance.stream_batch
    return Engine(
        lambda report: create_runner(settings, pipelines, buckets, report),
        buckets=buckets,
        stream_batch=device.type == "cuda" if stream_batch is None else stream_batch,
        prompt_cache_size=settings.pipeline.prompt_cache_size,
        # A CPU does not hang, it is slow.
        watchdog_timeout=settings.server.watchdog_timeout if device.type == "cuda" else None,
    )


def batch_sizes(largest: int | None, device: torch.device) -> tuple[int, ...]:
    """The batch sizes to run: on the CPU every one, since padding costs as much as a frame; on a GPU steps
    of about a third, since every size is compiled or captured.
    """
    if device.type != "cuda":
        return tuple(range(1, (largest or CPU_BATCH) + 1))
    largest = largest or CUDA_BATCH
    steps = (size for power in range(9) for size in (2**power, 3 * 2**power // 2) if size < largest)
    return (*sorted(set(steps)), largest)


def create_runner(
    settings: Settings, pipelines: Mapping[Mode, BasePipeline[Any]], buckets: tuple[int, ...], report: Report
) -> DiffusionRunner:
    """Load the model, accelerate it, warm it up. Takes seconds to minutes.

    Raises:
        ModelLoadError: if the model cannot be loaded.
        AccelerationError: if the acceleration cannot work here.
    """
    if settings.model.threads is not None:
        torch.set_num_threads(settings.model.threads)
    device = resolve_device(settings.model.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of this thread, for libraries that ask for the current one
    cuda_graph = choose_cuda_graph(settings.model.acceleration, settings.model.use_cuda_graph, device)
    acceleration = load_acceleration(settings.model.acceleration, device, settings.model.engine_dir)
    model = load(settings.model, settings.pipeline, report)
    guidance: Guidance = settings.pipeline.cfg_type or ("none" if model.distilled else "self")
    width, height = settings.pipeline.width, settings.pipeline.height
    shapes = Shapes(
        width=width,
        height=height,
        unet_batches=tuple(sorted({*buckets, *(2 * size for size in buckets if guidance == "full")})),
        vae_batches=buckets,
    )
    networks = acceleration.networks(model, shapes, report)
    runner = DiffusionRunner(
        model,
        networks,
        pipelines,
        width=width,
        height=height,
        buckets=buckets,
        guidance=guidance,
        description={
            "model": model.name,
            "device": _device_name(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "acceleration": acceleration.name,
            "cuda_graph": cuda_graph,
            "guidance": guidance,
            "distilled": model.distilled,
            "width": width,
            "height": height,
            "max_batch": buckets[-1],
        },
        execute=GraphExecutor(device) if cuda_graph else execute,
    )
    runner.warm_up(settings.pipeline.warmup, report)
    return runner


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
