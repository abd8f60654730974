"""What the choice of batch sizes is worth: ``python -m benchmarks.scheduling``.

The real engine on a played device, which takes as long for a batch as the GPU of ``gpu.json`` does (sizes
that were not measured lie on the line between their neighbours) and knows nothing of pictures. Users send as
fast as they can; with the costs known to the scheduler, and unknown. Results:
``benchmarks/results/scheduling.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.core.engine import Engine
from app.core.factory import batch_sizes
from benchmarks import ours, played
from benchmarks.results import FOLDER, save
from benchmarks.streams import Load, pictures

VARIANT = "fused, graph"
USERS = (1, 2, 3, 4, 5, 7, 9, 11, 13, 15, 16)
STAGES = ("begin image", "step", "decode")
LAUNCH = 1.5e-3
"""Seconds before its end at which a batch lets the next one be launched."""


def costs_of(variant: Mapping[str, Any]) -> dict[int, float]:
    """Seconds of the device by batch size, for the sizes that a server has."""
    device = variant["stages_ms"]["device"]
    measured = sorted({int(name.rpartition(" ")[2]) for name in device})
    sums = [sum(device[f"{stage}, batch {size}"]["median"] for stage in STAGES) / 1e3 for size in measured]
    sizes = batch_sizes(measured[-1], torch.device("cuda"))
    return {size: float(np.interp(size, measured, sums)) for size in sizes}


async def measure(takes: Mapping[int, float], users: int, seconds: float, *, known: bool) -> dict[str, Any]:
    """So many users, each as fast as it can."""
    device = played.Device(takes, known=known, early=LAUNCH)
    engine = Engine(lambda _report: device, buckets=tuple(takes), stream_batch=True)
    load = Load(engine, [ours.plan("image", 1, f"user {n}") for n in range(users)], pictures(2, 64, 64))
    await engine.start(lambda events: load.deliver(events))
    found = await load.run(users, seconds)
    await engine.stop()
    return found


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    gpu = json.loads((FOLDER / "gpu.json").read_text(encoding="utf-8"))
    takes = costs_of(gpu["variants"][VARIANT])
    loads = {}
    for users in USERS:
        loads[users] = {
            name: asyncio.run(measure(takes, users, arguments.seconds, known=known))
            for name, known in (("padded", False), ("by cost", True))
        }
        print(users, {name: run["frames_per_second"] for name, run in loads[users].items()}, flush=True)
    print(save("scheduling", {"takes_seconds": takes, "loads": loads}, arguments.output))


if __name__ == "__main__":
    main()
