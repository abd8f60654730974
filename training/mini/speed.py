"""Where the time of a training step goes: `python -m training.mini.speed`, best on the GPU that will train.

Prints milliseconds of every part, the rows per second of whole steps, and the costliest kernels.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from training.mini.batch import assemble
from training.mini.drawing import Pool
from training.mini.settings import COMPILE_ONLY, SMALL, Settings
from training.mini.sources import draw_sources
from training.mini.train import Run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _time(name: str, device: torch.device, function: Callable[[], object], repeats: int) -> None:
    """Print milliseconds a call, of the host alone (until all is queued) and in all."""
    function()
    _wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    queued = time.perf_counter()
    _wait(device)
    scale = 1000 / repeats
    done = time.perf_counter()
    host, both = (queued - begin) * scale, (done - begin) * scale
    print(f"{name:24} host {host:7.2f} ms, all {both:7.2f} ms", flush=True)


def measure(settings: Settings, device: torch.device, repeats: int) -> None:
    """Time the parts of a step of the first shape."""
    run, shape = Run(settings, device, Path("unused"), None), settings.shapes[0]
    parts = run.parts
    parts.vae.eval().requires_grad_(False)
    begin = time.perf_counter()
    pool = Pool(run, shape)
    _wait(device)
    print(f"pool of {shape.pool}: {time.perf_counter() - begin:.1f} s", flush=True)
    group, size = settings.group, (shape.height, shape.width)
    with torch.no_grad():
        _time(f"{group} photographs", device, lambda: draw_sources(group, *size, device), 2)
        _time(f"{group} scenes", device, lambda: run.drawer.scenes(group, shape), repeats)
        _time(f"{group} repainted", device, lambda: run.drawer.pictures(group, shape), repeats)
        _time("refresh", device, pool.refresh, repeats)
    batch = assemble(pool, None, settings, run.b, run.grid)
    carry = batch.carry(batch.target)
    _time("assemble", device, lambda: assemble(pool, carry, settings, run.b, run.grid), repeats)

    parameters = [*parts.unet.train().parameters(), *parts.text.train().parameters()]
    optimiser = run.optimiser(parameters, 1e-4, 0.01)
    predict, loss_of = run.compiled(run.predict), run.compiled(run.loss)

    def step() -> None:
        with run.autocast:
            context = parts.text(batch.tokens)[0]
        predicted = predict(batch.x.contiguous(memory_format=run.layout), batch.t, context)
        loss = loss_of(predicted, batch.target, *run.window(predicted, batch, shape))[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    begin = time.perf_counter()
    step()
    _wait(device)
    print(f"first step: {time.perf_counter() - begin:.1f} s", flush=True)
    with torch.no_grad(), run.autocast:
        context = parts.text(batch.tokens)[0]
        _time("text encoder, forward", device, lambda: parts.text(batch.tokens), repeats)
    x = batch.x.contiguous(memory_format=run.layout)
    _time("UNet, forward", device, lambda: predict(x, batch.t, context), repeats)
    predicted = predict(x, batch.t, context).detach()
    _time("loss, forward", device, lambda: loss_of(
        predicted, batch.target, *run.window(predicted, batch, shape)), repeats)  # fmt: skip
    _time("whole step, no drawing", device, step, repeats)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            step()
        _wait(device)
    if device.type == "cuda":
        print(f"memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=order, row_limit=28, max_name_column_width=70))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the parts of a training step.")
    parser.add_argument("--small", action="store_true", help="settings of a test")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    settings = SMALL if arguments.small else replace(COMPILE_ONLY, seed=1)
    measure(settings, device, 3 if arguments.small else 20)


if __name__ == "__main__":
    main()
