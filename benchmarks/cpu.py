"""Speed on a CPU with the embedded model, against the original: ``python -m benchmarks.cpu``.

Both run the same weights in float32 on one thread, ours with `none` and with `onnx`; they are compared by the
processor time that a frame takes, which other programs on the machine disturb least. Then the whole server
with one user. Results: ``benchmarks/results/cpu.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image as PillowImage

from app.accelerations import load_acceleration
from app.accelerations.base import Shapes
from app.config.schema import ModelSettings, PipelineSettings
from app.core.engine import Engine
from app.core.messages import Image
from app.core.runner import DiffusionRunner
from app.models.loader import load
from app.models.model import Model
from app.pipelines import load_pipelines
from benchmarks.results import FOLDER, save, summary
from benchmarks.serving import Server, picture
from benchmarks.serving import load as load_server
from benchmarks.streams import Load, pictures

MODEL = Path(__file__).resolve().parents[1] / "models" / "mini"
ACCELERATIONS = ("none", "onnx")
STEPS = (1, 2)
STREAMS = (1, 4)


class Original:
    """streamdiffusion 0.1.1 without its CUDA events, which a CPU does not have: the four calls between them.
    Its own post-processing, whose module needs torchvision, is written out.
    """

    def __init__(self, model: Model, size: int, steps: int, prompt: str) -> None:
        from streamdiffusion import StreamDiffusion

        plan = plans(steps, 1)[0]
        pipe = StableDiffusionPipeline.from_pretrained(
            str(MODEL), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        self._size = size
        self._stream = StreamDiffusion(
            pipe,
            t_index_list=[(999 - t) // 20 for t in plan.timesteps],
            torch_dtype=torch.float32,
            width=size,
            height=size,
            cfg_type="none",
        )
        factor = size // model.latent_shape(size, size)[1]
        if factor != pipe.vae_scale_factor:
            self._stream.latent_height = self._stream.latent_width = size // factor
        self._stream.prepare(prompt, num_inference_steps=50, generator=torch.Generator())

    @torch.inference_mode()
    def frame(self, image: Image) -> Image:
        """One picture."""
        stream = self._stream
        x = stream.image_processor.preprocess(PillowImage.fromarray(image), self._size, self._size)
        made = stream.decode_image(stream.predict_x0_batch(stream.encode_image(x))).detach().clone()
        unit = (made / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
        return np.asarray((unit * 255).round().astype("uint8")[0])


def plans(steps: int, count: int) -> list[Any]:
    """The plans of as many streams, each with a prompt of its own."""
    pipeline = load_pipelines("img2img")["image"]
    return [
        pipeline.plan(pipeline.Params(prompt=f"pencil {n}", num_inference_steps=steps, guidance_scale=1.0))
        for n in range(count)
    ]


def measure_original(
    objects: Sequence[Original], images: Sequence[Image], seconds: float
) -> dict[str, float]:
    """Streams served one after the other."""
    frames, started_at, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started_at < seconds:
        objects[frames % len(objects)].frame(images[frames % len(images)])
        frames += 1
    return {
        "frames_per_second": frames / (time.perf_counter() - started_at),
        "cpu_ms_per_frame": 1e3 * (time.process_time() - cpu) / frames,
    }


def build(model: Model, size: int, name: str) -> Engine:
    """The engine with its default batch sizes."""
    buckets = (1, 2, 3, 4)
    acceleration = load_acceleration(name, model.device, Path("engines"))
    runner = DiffusionRunner(
        model,
        acceleration.networks(model, Shapes(size, size, buckets, buckets), lambda _words: None),
        load_pipelines("img2img"),
        width=size,
        height=size,
        buckets=buckets,
        guidance="none",
        description={},
    )
    runner.warm_up(2, lambda _words: None)
    return Engine(lambda _report: runner, buckets=buckets, stream_batch=False)


def serve(port: int, acceleration: str, size: int, pipe: Connection) -> None:
    """The whole server's process, until it is killed."""
    from app import main
    from app.config.schema import Settings

    settings = Settings.model_validate(
        {
            "model": {"model_id": str(MODEL), "device": "cpu", "acceleration": acceleration, "threads": 1},
            "pipeline": {"width": size, "height": size},
            "server": {"host": "127.0.0.1", "port": port, "log_level": "warning"},
        }
    )
    pipe.send({})
    main.serve(main.create_app(settings), settings)


def measure_server(size: int, rounds: int, seconds: float) -> dict[str, list[Any]]:
    """One user of the whole server, as fast as it can, with each acceleration in turn."""
    sent = [picture(15, "420", 85, seed, size) for seed in range(4)]
    found: dict[str, list[Any]] = {name: [] for name in ACCELERATIONS}
    for _ in range(rounds):
        for name, runs in found.items():
            server = Server(serve, name, size)
            try:
                runs.append(asyncio.run(load_server(server, sent, users=1, seconds=seconds)))
            finally:
                server.stop()
    return found


async def measure(model: Model, name: str, size: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Both in short turns, so that whatever else the machine does disturbs them alike."""
    images = pictures(8, size, size)
    engine = build(model, size, name)
    load_now = Load(engine, [], images)
    await engine.start(lambda events: load_now.deliver(events))
    found = {}
    for steps in STEPS:
        for streams in STREAMS:
            objects = [Original(model, size, steps, f"pencil {n}") for n in range(streams)]
            original, ours = [], []
            for _ in range(rounds):
                original.append(measure_original(objects, images, seconds))
                load_now = Load(engine, plans(steps, streams), images)
                figures = await load_now.run(streams, seconds, settle=0.3)
                ours.append(
                    {
                        "frames_per_second": figures["frames_per_second"],
                        "cpu_ms_per_frame": figures["host_cpu_ms_per_frame"],
                    }
                )
            ratios = [
                theirs["cpu_ms_per_frame"] / mine["cpu_ms_per_frame"]
                for theirs, mine in zip(original, ours, strict=True)
            ]
            found[f"{name}, steps {steps}, streams {streams}"] = {
                "ratio": summary(ratios),
                **{
                    f"{who} {figure}": summary([turn[figure] for turn in turns])
                    for who, turns in (("original", original), ("ours", ours))
                    for figure in turns[0]
                },
            }
    await engine.stop()
    return found


def main() -> None:
    """Measure both, in turn, on one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each of the two")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--size", type=int, default=256, help="of a picture")
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = ModelSettings(model_id=str(MODEL), device="cpu")
    model = load(settings, PipelineSettings(use_tiny_vae=True), lambda _words: None)
    found: dict[str, Any] = {}
    for name in ACCELERATIONS:
        found |= asyncio.run(measure(model, name, arguments.size, arguments.rounds, arguments.seconds))
    for name, figures in found.items():
        ratio = figures["ratio"]
        print(f"{name}: {ratio['median']} ({ratio['p25']} to {ratio['p75']}) times as fast as the original")
    served = measure_server(arguments.size, 3, 4 * arguments.seconds)
    for name, runs in served.items():
        print(f"the whole server, {name}: {[run['frames_per_second'] for run in runs]} frames/s")
    figures = {"size": arguments.size, "threads": 1, "loads": found, "server": served}
    print(save("cpu", figures, arguments.output))


if __name__ == "__main__":
    main()
