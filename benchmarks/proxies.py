"""What a proxy adds to the way of a frame: `python -m benchmarks.proxies [--without-ray]`.

The server has a model that gives every picture back. One user is connected directly, two through HAProxy as
it is shipped (one of them by TLS), and one through Ray Serve, and they take turns, frame by frame, so that
whatever else the machine does befalls all alike. A frame's time goes from sending its 60 kB to having the
result, of 60 kB too. Writes benchmarks/results/proxies.json. Needs haproxy, openssl, and ray. Without ray,
what the file has of it stays there, with its date, if such a machine and the same libraries measured it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect

from app.config.schema import Settings
from benchmarks import played
from benchmarks.results import FOLDER, alike, machine, save
from tests.deploy.servers import Process, Proxy, free_port
from tests.deploy.users import picture

SIDE = 256
JPEG = picture(SIDE, noise=28)
FRAMES, DISCARDED = 1000, 50


async def compare(urls: dict[str, str], certificate: Path, frames: int = FRAMES) -> dict[str, list[float]]:
    """Milliseconds of each frame, for each way. ``certificate`` is to be trusted."""
    times: dict[str, list[float]] = {name: [] for name in urls}
    async with AsyncExitStack() as stack:
        sockets: dict[str, ClientConnection] = {}
        for name, url in urls.items():
            uri = f"{url.replace('http', 'ws', 1)}/api/ws/latency-{len(sockets)}?output=ws"
            trust = ssl.create_default_context(cafile=certificate) if uri.startswith("wss") else None
            sockets[name] = await stack.enter_async_context(
                connect(uri, ssl=trust, compression=None, ping_interval=None)
            )
        asked = dict.fromkeys(urls, False)
        # In a new order every round: what follows the slowest way finds the caches cold.
        order = random.Random(0)
        rounds = range(frames + DISCARDED)
        turns = [(number, name) for number in rounds for name in order.sample(list(urls), len(urls))]
        for number, name in turns:
            while not asked[name]:
                asked[name] = await _credit(sockets[name])
            await sockets[name].send('{"status": "next_frame"}')
            await sockets[name].send('{"prompt": "watercolor", "seed": 1}')
            began = time.perf_counter()
            await sockets[name].send(JPEG)
            asked[name] = False
            while isinstance(message := await sockets[name].recv(), str):
                asked[name] |= json.loads(message)["status"] == "send_frame"
            if number >= DISCARDED:
                times[name].append((time.perf_counter() - began) * 1000)
    return times


async def _credit(socket: ClientConnection) -> bool:
    message = await socket.recv()
    return isinstance(message, str) and bool(json.loads(message)["status"] == "send_frame")


def figures(times: dict[str, list[float]], direct: str = "direct") -> dict[str, Any]:
    """p50 and p95 of every way, and what the ways through a proxy have more than the direct one."""
    percentiles = {name: np.percentile(values, (50, 95)) for name, values in times.items()}
    rows = {
        name: {
            "p50_ms": round(float(p50), 2),
            "p95_ms": round(float(p95), 2),
            "added_p50_ms": round(float(p50 - percentiles[direct][0]), 2),
            "added_p95_ms": round(float(p95 - percentiles[direct][1]), 2),
        }
        for name, (p50, p95) in percentiles.items()
    }
    return {"frames": len(times[direct]), "jpeg_bytes": len(JPEG), "ways": rows}


def ray_before(path: Path) -> dict[str, Any]:
    """Ray's way in a file that such a machine and these libraries measured, if it has one."""
    if not path.is_file():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    if "ray" not in before["ways"] or not alike(before["machine"], machine(), "cpu", "cores"):
        return {}
    return {"ray": {"date": before["machine"]["date"], **before["ways"]["ray"]}}


def pass_through(port: int = 0) -> FastAPI:
    """The application with a model that gives every picture back, so that the way there and back shows."""
    return played.application(settings(port))


def settings(port: int) -> Settings:
    return Settings.model_validate(
        {
            "pipeline": {"width": SIDE, "height": SIDE},
            "server": {"host": "127.0.0.1", "port": port, "log_level": "warning"},
        }
    )


def serve_directly(port: int) -> None:
    from app import main

    main.serve(pass_through(port), settings(port))


def serve_on_ray(port: int) -> None:
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    from deploy.ray.service import streamdiffusion

    ray.init(_node_ip_address="127.0.0.2", num_cpus=2, num_gpus=0, include_dashboard=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    one = streamdiffusion.options(
        func_or_class=serve.ingress(pass_through)(),
        num_replicas=1,
        autoscaling_config=None,
        ray_actor_options={"num_cpus": 1},
    )
    serve.run(one.bind(), route_prefix="/")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()


def measure(with_ray: bool) -> None:
    running: list[Process] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def start(role: str) -> str:
            port = free_port()
            command = [sys.executable, "-m", "benchmarks.proxies", role, str(port)]
            running.append(Process(command, folder / f"{role}.log", {"RAY_AUTH_MODE": "disabled"}))
            running[-1].wait_for(port, "/health/ready")
            return f"http://127.0.0.1:{port}"

        try:
            urls = {"direct": start("server")}
            certificate = self_signed(folder)
            watched = {"server": running[0].child.pid}
            servers = {"gpu-0": int(urls["direct"].rpartition(":")[2])}
            for name in ("haproxy", "haproxy, TLS"):
                (folder / name).mkdir()
                proxy = Proxy(servers, folder / name, certificate)
                running.append(proxy)
                proxy.wait_for(proxy.port, "/health/ready")
                urls[name] = f"https://localhost:{proxy.secure_port}" if "TLS" in name else proxy.url
                watched[name] = proxy.child.pid
            if with_ray:
                urls["ray"] = start("ray")
            before = {name: cpu(pid) for name, pid in watched.items()}
            times = asyncio.run(compare(urls, certificate))
            # The server had the frames of three ways.
            frames = dict.fromkeys(watched, FRAMES + DISCARDED) | {"server": 3 * (FRAMES + DISCARDED)}
            spent = {name: (cpu(pid) - before[name]) / frames[name] for name, pid in watched.items()}
            result = figures(times)
        finally:
            for process in reversed(running):
                process.end(signal.SIGTERM)
    result["cpu_ms_per_frame"] = {name: round(seconds * 1000, 3) for name, seconds in spent.items()}
    if not with_ray:
        result["ways"] |= ray_before(FOLDER / "proxies.json")
    result["load_before"] = round(os.getloadavg()[0], 2)
    print(json.dumps(result, indent=1))
    print(save("proxies", result))


def self_signed(folder: Path) -> Path:
    """A certificate for localhost and its key, in one file."""
    key, certificate, both = (folder / name for name in ("key.pem", "certificate.pem", "site.pem"))
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    files = ("-keyout", str(key), "-out", str(certificate))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject, *files]
    subprocess.run(command, check=True, capture_output=True)
    both.write_text(certificate.read_text() + key.read_text())
    return both


def cpu(pid: int) -> float:
    """CPU seconds of a process and its children so far."""
    whole = psutil.Process(pid)
    spent = [process.cpu_times() for process in (whole, *whole.children(recursive=True))]
    return sum(times.user + times.system for times in spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("measure", "server", "ray"), nargs="?", default="measure")
    parser.add_argument("port", type=int, nargs="?", default=0)
    parser.add_argument("--without-ray", action="store_true")
    arguments = parser.parse_args()
    if arguments.role == "server":
        serve_directly(arguments.port)
    elif arguments.role == "ray":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        serve_on_ray(arguments.port)
    else:
        measure(not arguments.without_ray)


if __name__ == "__main__":
    main()
