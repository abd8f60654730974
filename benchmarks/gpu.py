"""Speed on a GPU, against the peers, in one run: ``python -m benchmarks.gpu``.

Every variant runs in a process of its own, so that none leaves settings or memory to the next. Results:
``benchmarks/results/gpu.json``, which ``python -m benchmarks.report`` turns into tables. What the file has of
other variants stays there, if the same kind of GPU and the same libraries measured it; each says on which
machine, and when.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from app.core.engine import Engine
from app.core.messages import FrameIn, Row, Runner, SessionKey
from benchmarks import ours, peers, sd_turbo
from benchmarks.results import FOLDER, alike, machine, require_gpu, save, summary
from benchmarks.streams import Load, pictures

Figures = dict[str, Any]

STEPS = (1, 2, 4)
STREAMS = (1, 2, 4, 8, 16, 32)
PEER_STREAMS = (1, 4, 16)
BUCKETS = (1, 2, 4, 8, 16)
MODES = ("image", "video")
PROMPT = "a portrait of a cat, oil on canvas"


# -- peers --------------------------------------------------------------------------------------------


def measure_peer(kind: str, flavour: str, steps: tuple[int, ...], seconds: float) -> Iterator[Figures]:
    """One peer: one stream in every mode, and many streams one after the other. Yields what it has so far:
    a peer that compiles may take longer than one likes to wait.
    """
    device = torch.device("cuda")
    model = sd_turbo.model(device, torch.float16)
    images = pictures(8, peers.SIZE, peers.SIZE)
    found: Figures = {"one_stream": {}, "streams": {}}
    started_at = time.perf_counter()

    def so_far() -> Figures:
        found["seconds"] = {"all": round(time.perf_counter() - started_at, 2)}
        found["memory_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        return found

    for mode in MODES:
        for count in steps:
            peer = _peer(kind, flavour, model, PROMPT, mode, count)
            found["one_stream"][f"{mode}, {count}"] = _time_peer(peer, mode, images, seconds)
            yield so_far()
        for streams in PEER_STREAMS if mode == "image" else ():
            objects = [_peer(kind, flavour, model, f"{PROMPT} {n}", mode, 1) for n in range(streams)]
            found["streams"][streams] = _serve_in_turn(objects, images, seconds)
            yield so_far()


def _peer(kind: str, flavour: str, model: Any, prompt: str, mode: str, steps: int) -> peers.Peer:
    if kind == "original":
        return peers.Original(model, prompt, mode, steps, xformers=flavour == "xformers")
    return peers.Diffusers(model, prompt, mode, steps, compiled=flavour)


def _time_peer(peer: peers.Peer, mode: str, images: list[Any], seconds: float) -> Figures:
    source = images if mode == "image" else [None]
    for number in range(8):
        peer.frame(source[number % len(source)])
    through = _repeat(lambda number: peer.frame(source[number % len(source)]), seconds)
    tensors = [None if image is None else _tensor(image) for image in source]

    def on_device(number: int) -> None:
        peer.on_device(tensors[number % len(tensors)])
        torch.cuda.synchronize()

    for number in range(4):
        on_device(number)
    return {"ms": summary(through), "on_device_ms": summary(_repeat(on_device, seconds))}


def _tensor(image: Any) -> torch.Tensor:
    return torch.from_numpy(image).cuda().permute(2, 0, 1)[None].half() / 127.5 - 1.0


def _repeat(call: Callable[[int], Any], seconds: float) -> list[float]:
    """Milliseconds of each call."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 5:
        started_at = time.perf_counter()
        call(len(found))
        found.append(1e3 * (time.perf_counter() - started_at))
    return found


def _serve_in_turn(objects: list[peers.Peer], images: list[Any], seconds: float) -> Figures:
    """Streams that each offer their next frame when the last is taken, served in turn: a frame waits for
    its turn, then is made.
    """
    offered = [time.perf_counter()] * len(objects)
    ages: list[float] = []
    started_at = time.perf_counter()
    while time.perf_counter() - started_at < seconds or len(ages) < 2 * len(objects):
        number = len(ages) % len(objects)
        since, offered[number] = offered[number], time.perf_counter()
        objects[number].frame(images[len(ages) % len(images)])
        ages.append(1e3 * (time.perf_counter() - since))
    elapsed = time.perf_counter() - started_at
    return {"frames_per_second": round(len(ages) / elapsed, 2), "age_ms": summary(ages)}


# -- ours ---------------------------------------------------------------------------------------------


def measure_ours(
    acceleration: str, graph: bool, steps: tuple[int, ...], streams: tuple[int, ...], seconds: float
) -> Figures:
    """One acceleration: one stream in every mode, many streams, and where the time goes."""
    built = ours.build(acceleration, graph=graph, timed=True, buckets=BUCKETS)
    gc.collect()
    gc.freeze()  # as the server does: a collection takes a third of a second
    torch.cuda.reset_peak_memory_stats()
    found: Figures = {"seconds": built.seconds, "tick_seconds": dict(built.runner.costs)}
    found |= asyncio.run(_serve(built, steps, streams, seconds))
    found["stages_ms"] = _stages(built, BUCKETS)
    found["memory_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    found["process_memory_gib"] = round(psutil.Process().memory_info().rss / 2**30, 2)
    return found


async def _serve(
    built: ours.Ours, steps: tuple[int, ...], streams: tuple[int, ...], seconds: float
) -> Figures:

    def runner(report: Callable[[str], None]) -> Runner:
        built.runner.warm_up(1, report)  # cuDNN tunes for each thread anew
        return built.runner

    engine = Engine(runner, buckets=built.buckets, stream_batch=True)
    images = pictures(8, ours.SIZE, ours.SIZE)
    load = Load(engine, [], images)
    await engine.start(lambda events: load.deliver(events))
    found: Figures = {"one_stream": {}, "lone_frame": {}, "streams": {}}
    for mode in MODES:
        for count in steps:
            plans = [ours.plan(mode, count)]  # type: ignore[arg-type]
            load = Load(engine, plans, images)
            found["one_stream"][f"{mode}, {count}"] = await load.run(1, seconds)
            load = Load(engine, plans, images, one_at_a_time=True)
            found["lone_frame"][f"{mode}, {count}"] = await load.run(1, seconds / 2)
    if streams:
        plans = [ours.plan("image", 1, f"{PROMPT} {number}") for number in range(32)]
        load = Load(engine, plans, images)
        await load.run(32, 1.0)  # embeds the prompts
        for count in streams:
            load = Load(engine, plans, images)
            found["streams"][count] = await load.run(count, 1.5 * seconds)
        load = Load(engine, plans, images, rate=20.0)
        found["streams_at_20_fps"] = {16: await load.run(16, 3 * seconds)}
        load = Load(engine, plans[:4], images)
        found["prompt_change_ms"] = await _change_prompts(load)
    await engine.stop()
    return found


async def _change_prompts(load: Load) -> Figures:
    """From a stream's first frame with a new prompt to its picture, three other streams running."""
    plans = list(load.plans)
    load.plans = plans
    serving = asyncio.create_task(load.run(4, 3.0, settle=0.2))
    await asyncio.sleep(0.5)
    found: list[float] = []
    while not serving.done():
        number = len(found)
        text = f"another prompt, number {number}"
        plans[0] = replace(plans[0], prompt=text)
        changed_at = time.monotonic()
        try:
            first = await asyncio.wait_for(load.first_with(text), timeout=3.0)
        except asyncio.TimeoutError:
            break  # the streams have ended meanwhile
        found.append(1e3 * (first.finished_at - changed_at))
        await asyncio.sleep(0.1)
    figures = await serving
    return {"change": summary(found), "tick_ms": figures["tick_ms"]}


def _stages(built: ours.Ours, batches: tuple[int, ...]) -> Figures:
    """Device time of each stage, and host time of a launch, by batch size."""
    assert built.stopwatch is not None
    image = pictures(1, ours.SIZE, ours.SIZE)[0]
    plan = ours.plan("image", 1)
    embeddings = tuple(built.runner.encode(text) for text in plan.texts)
    built.stopwatch.reset()
    host: Figures = {}
    for batch in batches:
        frames = [FrameIn(SessionKey("", 0), n, plan, image, 0.0) for n in range(batch)]
        rows = tuple(Row(slot, frame, 0.0, embeddings) for slot, frame in enumerate(frames))
        launches, ticks = [], []
        for _ in range(30):
            started_at = time.perf_counter()
            launched = built.runner.launch(rows)
            launches.append(1e3 * (time.perf_counter() - started_at))
            launched.collect()
            ticks.append(1e3 * (time.perf_counter() - started_at))
        host[str(batch)] = {"launch": summary(launches), "tick": summary(ticks)}
    return {"device": built.stopwatch.figures(), "host": host}


# -- the command --------------------------------------------------------------------------------------


def isolated(
    function: Callable[..., Figures | Iterator[Figures]], *arguments: Any, limit: float | None = None
) -> Figures:
    """Run in a process that has the GPU to itself; an error is a figure too. After `limit` seconds it is
    ended, and what it has yielded until then is the result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    end = None if limit is None else time.monotonic() + limit
    figures: Figures = {}
    try:
        while receiver.poll(None if end is None else max(0.0, end - time.monotonic())):
            figures = receiver.recv()
        process.kill()
        figures["error"] = f"ended after {limit:.0f} s"
    except EOFError:
        pass
    process.join()
    if process.exitcode != 0:
        figures.setdefault("error", "the process died")
    return figures


def _send(
    sender: Any, function: Callable[..., Figures | Iterator[Figures]], arguments: tuple[Any, ...]
) -> None:
    figures: Figures = {}
    try:
        made = function(*arguments)
        for figures in made if isinstance(made, Iterator) else (made,):
            sender.send(figures)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises belongs into the table
        sender.send(figures | {"error": f"{type(error).__name__}: {error}"[:2000]})
    sender.close()


def _measured_before(path: Path) -> Figures:
    """The variants in a file that this kind of GPU and these libraries measured."""
    if not path.is_file():
        return {}
    before: Figures = json.loads(path.read_text(encoding="utf-8"))
    here = machine()
    return {
        name: figures
        for name, figures in before["variants"].items()
        if alike(figures.get("machine", {}), here, "gpu", "cudnn")
    }


def main() -> None:
    """Measure what was asked for, one variant after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--only", nargs="+", help="names of variants, in the order to run; else all")
    parser.add_argument(
        "--limit", type=float, help="seconds after which a variant is ended, its figures kept"
    )
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    require_gpu()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    seconds = arguments.seconds
    variants: dict[str, tuple[Any, ...]] = {
        "original": (measure_peer, "original", "", STEPS, seconds),
        "original, xformers": (measure_peer, "original", "xformers", STEPS, seconds),
        "diffusers": (measure_peer, "diffusers", "", STEPS, seconds),
        "diffusers, reduce-overhead": (measure_peer, "diffusers", "reduce-overhead", STEPS, seconds),
        "diffusers, max-autotune": (measure_peer, "diffusers", "max-autotune", STEPS, seconds),
        "none": (measure_ours, "none", False, STEPS, (), seconds),
        "xformers": (measure_ours, "xformers", False, STEPS, (), seconds),
        "compile": (measure_ours, "compile", False, STEPS, (), seconds),
        "none, graph": (measure_ours, "none", True, STEPS, STREAMS, seconds),
        "xformers, graph": (measure_ours, "xformers", True, STEPS, (), seconds),
        "compile, graph": (measure_ours, "compile", True, STEPS, STREAMS, seconds),
        "fused, graph": (measure_ours, "fused", True, STEPS, STREAMS, seconds),
    }
    names = arguments.only or list(variants)
    if unknown := [name for name in names if name not in variants]:
        parser.error(f"there is no {', no '.join(unknown)}; there are: {'; '.join(variants)}")
    found = _measured_before(arguments.output / "gpu.json")
    for name in names:
        function, *rest = variants[name]
        started_at = time.perf_counter()
        found[name] = isolated(function, *rest, limit=arguments.limit)
        found[name] |= {"machine": machine(), "wall_seconds": round(time.perf_counter() - started_at, 1)}
        print(name, found[name]["wall_seconds"], found[name].get("error", ""), flush=True)
        ordered = {key: found[key] for key in variants if key in found}
        path = save("gpu", {"variants": ordered}, arguments.output)  # each time: what is measured is measured
    print(path)


if __name__ == "__main__":
    main()
