"""What a proxy adds to the way of a frame: `python -m benchmarks.proxies haproxy` (or `ray`).

One user is connected directly and one through the proxy, and they take turns, frame by frame, so that
whatever else the machine does befalls both alike. A frame's time goes from sending its 60 kB to having the
result. Writes benchmarks/results/latency_NAME.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.results import save
from tests.deploy.servers import Process, Proxy, Server
from tests.deploy.users import picture

JPEG = picture(256, noise=28)
FRAMES, DISCARDED = 600, 50


async def compare(urls: dict[str, str], frames: int = FRAMES) -> dict[str, list[float]]:
    """Milliseconds of each frame, for each way."""
    times: dict[str, list[float]] = {name: [] for name in urls}
    async with AsyncExitStack() as stack:
        sockets: dict[str, ClientConnection] = {}
        for name, url in urls.items():
            uri = f"{url.replace('http', 'ws', 1)}/api/ws/latency-{name}?output=ws"
            sockets[name] = await stack.enter_async_context(
                connect(uri, compression=None, ping_interval=None)
            )
        asked = dict.fromkeys(urls, False)
        for number, name in itertools.product(range(frames + DISCARDED), urls):
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("proxy", choices=("haproxy", "ray"))
    arguments = parser.parse_args()
    running: list[Process] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            server = Server("gpu-0", folder)
            running.append(server)
            server.wait_until_ready()
            if arguments.proxy == "haproxy":
                proxy = Proxy({"gpu-0": server.port}, folder)
                running.append(proxy)
                port = proxy.port
                proxy.wait_for(port, "/health/ready")
            else:
                from tests.deploy.test_ray import Cluster

                cluster = Cluster(folder)
                running.append(cluster)
                port = cluster.port
                cluster.wait_until_ready()
            urls = {"direct": f"http://127.0.0.1:{server.port}", arguments.proxy: f"http://127.0.0.1:{port}"}
            result = figures(asyncio.run(compare(urls)))
        finally:
            for process in reversed(running):
                process.end(signal.SIGTERM)
    print(json.dumps(result, indent=1))
    print(save(f"latency_{arguments.proxy}", result))


if __name__ == "__main__":
    main()
