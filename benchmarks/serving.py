"""The serving layer alone: a played device under the real engine and server.

    python -m benchmarks.serving [--seconds 3] [--rounds 3] [--users 1 4 16 64] [--name serving]

The server runs in a process of its own on one core, the front ends on another. Reported are frames a
second, the age of a result when the front end has it, and the server's CPU time for a frame beside the
time of the codec's decode + encode for the same picture on the same core in the same run. The last part
gives the device a tick of 20 ms and each of 16 users a camera of 20 fps.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.front_end import Record, User, Viewer
from benchmarks.results import save, summary

SIZE = 512
QUALITY = 85
SERVER_CORE, CLIENT_CORE = 0, 1


def picture(kilobytes: int, subsampling: str, quality: int, seed: int, size: int = SIZE) -> bytes:
    """A square JPEG of about the weight wanted: waves with as much noise as it takes."""
    import cv2
    import simplejpeg

    random = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(random.normal(0, 1, (size, size, 3)).astype(np.float32), (0, 0), 0.7)
    x, y = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    waves = np.stack([np.sin(x / 40 + seed), np.sin(y / 30 + seed), np.sin((x + y) / 60)], -1) * 60 + 127
    low, high = 0.0, 200.0
    for _ in range(20):
        middle = (low + high) / 2
        image = (waves + grain * middle).clip(0, 255).astype(np.uint8)
        data: bytes = simplejpeg.encode_jpeg(image, quality, "RGB", subsampling)
        low, high = (middle, high) if len(data) < kilobytes * 1000 else (low, middle)
    return data


def codec_cost(pictures: Sequence[bytes], seconds: float = 1.5) -> float:
    """CPU milliseconds that decoding and encoding one picture takes, on this thread."""
    import simplejpeg

    count, began = 0, time.thread_time()
    while (spent := time.thread_time() - began) < seconds:
        image = simplejpeg.decode_jpeg(pictures[count % len(pictures)], "RGB")
        simplejpeg.encode_jpeg(image, QUALITY, "RGB", "420")
        count += 1
    return spent / count * 1000


def serve(port: int, tick: float, kinds: Mapping[str, Sequence[bytes]], pipe: Connection) -> None:
    """The server's process: the codec's cost first, then the server until it is killed."""
    os.sched_setaffinity(0, {SERVER_CORE})
    from app import main
    from app.config.schema import Settings
    from benchmarks import played

    pipe.send({kind: codec_cost(pictures) for kind, pictures in kinds.items()})
    settings = Settings.model_validate(
        {
            "pipeline": {"width": SIZE, "height": SIZE},
            "performance": {"jpeg_quality": QUALITY},
            "server": {"host": "127.0.0.1", "port": port, "log_level": "warning"},
        }
    )
    main.serve(played.application(settings, tick), settings)


class Server:
    """A server's process, from the outside.

    Args:
        target: what it runs, with a port, ``arguments`` and a pipe that it sends one thing through.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.port = 18000 + os.getpid() % 1000
        self._process = context.Process(target=target, args=(self.port, *arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()  # or the pipe would outlive a process that dies
        try:
            self.told: dict[str, float] = ours.recv()
            while not self._ready():
                if not self._process.is_alive():
                    raise EOFError
                time.sleep(0.1)
        except EOFError:
            raise RuntimeError("the server's process died; what it said stands above") from None
        assert self._process.pid is not None
        self._watched = psutil.Process(self._process.pid)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def cpu(self) -> float:
        """CPU seconds so far, user and system."""
        times = self._watched.cpu_times()
        return times.user + times.system

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.join()


async def load(
    server: Server,
    pictures: list[bytes],
    *,
    users: int,
    seconds: float,
    watch: bool = False,
    fps: float | None = None,
) -> dict[str, Any]:
    """Let users stream for a while, the first second not counted. Results come by the socket, which tells
    their age, or with ``watch`` by the image stream.
    """
    loop = asyncio.get_running_loop()
    host = f"127.0.0.1:{server.port}"
    records = [Record() for _ in range(users)]
    shown: deque[float] = deque()
    protocols: list[User | Viewer] = []
    for number, record in enumerate(records):
        name = f"user-{number}"

        def user(name: str = name, record: Record = record) -> User:
            return User(host, name, pictures, record, fps, "stream" if watch else "ws")

        def viewer(name: str = name) -> Viewer:
            return Viewer(host, name, shown)

        factories: tuple[Callable[[], User | Viewer], ...] = (user, viewer) if watch else (user,)
        for factory in factories:
            _, protocol = await loop.create_connection(factory, "127.0.0.1", server.port)
            protocols.append(protocol)
    await asyncio.sleep(1)
    began, cpu = time.monotonic(), server.cpu
    asked = await ask_queue(server, seconds)
    ended, cpu = time.monotonic(), server.cpu - cpu
    for protocol in protocols:
        protocol.close()
    await asyncio.sleep(0.2)
    if watch:
        count = sum(began <= when < ended for when in shown)
    else:
        found = sorted(
            (when, age * 1000)
            for record in records
            for when, age in zip(record.times, record.ages, strict=True)
            if began <= when < ended
        )
        count = len(found)
    figures: dict[str, Any] = {
        "users": users,
        "frames_per_second": round(count / (ended - began), 1),
        "cpu_ms_per_frame": round(cpu / count * 1000, 3),
        "queue_ms": percentiles(asked),
    }
    if not watch:
        ages = [age for _, age in found]
        figures["age_ms"] = percentiles(ages)
        figures["age_p50_ms_by_quarter"] = [
            round(float(np.median(part)), 2) for part in np.array_split(ages, 4)
        ]
    if fps is not None:
        figures["frames_per_user"] = summary(
            [sum(began <= when < ended for when in record.times) / (ended - began) for record in records]
        )
    return figures


def on_server_core(pictures: Sequence[bytes]) -> float:
    """The codec's cost once more, after the server is gone: a shared machine is not the same all the time."""
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        return codec_cost(pictures)
    finally:
        os.sched_setaffinity(0, {CLIENT_CORE})


async def ask_queue(server: Server, seconds: float) -> list[float]:
    """Milliseconds that `/api/queue` takes, asked five times a second on one connection."""
    answers = []
    async with httpx.AsyncClient() as http:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            began = time.monotonic()
            await http.get(f"http://127.0.0.1:{server.port}/api/queue")
            answers.append((time.monotonic() - began) * 1000)
            await asyncio.sleep(0.2)
    return answers


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    return {f"p{level}": round(float(np.percentile(values, level)), 2) for level in (50, 95, 99)}


def beside_codec(kind: str, pictures: list[bytes], users: int, seconds: float, watch: bool) -> dict[str, Any]:
    """One server under load, and the codec's cost on its core just before and after."""
    server = Server(serve, 0.0, {kind: pictures})
    try:
        run = asyncio.run(load(server, pictures, users=users, seconds=seconds, watch=watch))
    finally:
        server.stop()
    codec = (server.told[kind] + on_server_core(pictures)) / 2
    run |= {
        "picture": kind,
        "results_by": "stream" if watch else "socket",
        "codec_ms_per_frame": round(codec, 3),
        "ratio": round(run["cpu_ms_per_frame"] / codec, 3),
    }
    print(run, flush=True)
    return run


def typical(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median ratio; with the least and the most of all."""
    ordered = sorted(runs, key=lambda run: run["ratio"])
    middle = ordered[len(ordered) // 2]
    return middle | {"ratio_range": [ordered[0]["ratio"], ordered[-1]["ratio"]], "runs": len(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--name", default="serving", help="of the file in benchmarks/results")
    arguments = parser.parse_args()
    kinds = {
        "50 kB 4:2:0": [picture(50, "420", 85, seed) for seed in range(4)],
        "250 kB 4:4:4": [picture(250, "444", 98, seed) for seed in range(4)],
    }
    os.sched_setaffinity(0, {CLIENT_CORE})
    figures: dict[str, Any] = {"load_before": os.getloadavg()[0]}
    cases = list(itertools.product((False, True), kinds, arguments.users))
    # A shared machine is not the same all the time: the rounds are apart, so that a bad minute spoils one.
    rounds = [
        [beside_codec(kind, kinds[kind], users, arguments.seconds, watch) for watch, kind, users in cases]
        for _ in range(arguments.rounds)
    ]
    figures["pass_through"] = [typical(runs) for runs in zip(*rounds, strict=True)]
    figures["ratio"] = summary([run["ratio"] for run in figures["pass_through"]])
    kind = "50 kB 4:2:0"
    server = Server(serve, 0.02, {kind: kinds[kind]})
    try:
        figures["tick_20_ms"] = asyncio.run(
            load(server, kinds[kind], users=16, seconds=8 * arguments.seconds, fps=20)
        )
    finally:
        server.stop()
    print(figures["tick_20_ms"])
    print(save(arguments.name, figures))


if __name__ == "__main__":
    main()
