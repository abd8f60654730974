"""The whole server on a GPU, with real sockets: ``python -m benchmarks.gpu_server``.

SD-Turbo's architecture with random weights behind the real engine and server; front ends in this process
send JPEG pictures of 512×512 and 50 kB and get their results on the same socket, which tells their age.
First as fast as they can, then 20 frames/s each. Results: ``benchmarks/results/gpu-server.json``.
"""

from __future__ import annotations

import argparse
import asyncio
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.results import FOLDER, require_gpu, save
from benchmarks.serving import SIZE, Server, load, picture

USERS = (1, 4, 8, 16, 32)
CAMERAS = (8, 16)
CAMERA_FPS = 20.0


def serve(port: int, acceleration: str, pipe: Connection) -> None:
    """The server's process, until it is killed."""
    from app import main
    from app.config.schema import Settings
    from app.core.engine import Engine
    from app.pipelines import load_pipelines
    from benchmarks import ours

    built = ours.build(acceleration, graph=True)
    settings = Settings.model_validate(
        {
            "pipeline": {"width": SIZE, "height": SIZE},
            "server": {"host": "127.0.0.1", "port": port, "log_level": "warning"},
        }
    )
    engine = Engine(lambda _report: built.runner, buckets=built.buckets, stream_batch=True)
    pipe.send(built.seconds)
    main.serve(main.create_app(settings, build=lambda _: (engine, load_pipelines("img2img"))), settings)


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--acceleration", default="fused")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    require_gpu()
    pictures = [picture(50, "420", 85, seed) for seed in range(4)]
    server = Server(serve, arguments.acceleration)
    found: dict[str, Any] = {"acceleration": arguments.acceleration, "start_seconds": server.told}
    try:
        for name, counts, fps in (("as fast as they can", USERS, None), ("20 fps each", CAMERAS, CAMERA_FPS)):
            found[name] = []
            for users in counts:
                run = asyncio.run(load(server, pictures, users=users, seconds=arguments.seconds, fps=fps))
                print(name, run, flush=True)
                found[name].append(run)
    finally:
        server.stop()
    print(save("gpu-server", found, arguments.output))


if __name__ == "__main__":
    main()
