"""Where the device's time goes: ``python -m benchmarks.kernels``.

Kernel times of one tick by `torch.profiler`, classed by the kernels' names; and single operations: attention
by each of PyTorch's kernels, and JPEG on the CPU beside nvJPEG. Results: ``benchmarks/results/kernels.json``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from app.core.messages import FrameIn, Row, SessionKey
from benchmarks import ours
from benchmarks.gpu import isolated
from benchmarks.results import FOLDER, require_gpu, save, summary
from benchmarks.sd_turbo import GFLOP
from benchmarks.streams import pictures

Figures = dict[str, Any]

BATCHES = (1, 16)
TICKS = 5
KINDS = (
    ("attention", ("sdpa", "flash", "fmha", "attention", "_attend")),
    (
        "convolutions",
        ("conv", "_lines", "fprop", "implicit_gemm", "nhwcadd", "nchwtonhwc", "nhwctonchw", "cask_plugin"),
    ),
    ("matrix products", ("nvjet", "gemm", "cublas", "splitk", "cutlass", "geglu_product")),
    ("copies", ("memcpy", "memset")),
)
"""Kinds of kernels and what their names contain; the first that fits counts, the rest is pointwise."""
ATTENTION = [
    (batch, queries, keys) for batch in BATCHES for queries in (4096, 1024, 256) for keys in (queries, 77)
]
HEADS = {4096: 5, 1024: 10, 256: 20}
BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def kind(kernel: str) -> str:
    """The kind of a kernel."""
    return next(
        (name for name, parts in KINDS if any(part in kernel.lower() for part in parts)),
        "norms and pointwise",
    )


def tick(acceleration: str) -> Figures:
    """Milliseconds of kernels in one tick by kind, launches and achieved TFLOP/s, for each batch size."""
    from torch.profiler import ProfilerActivity, profile

    built = ours.build(acceleration, graph=True, buckets=BATCHES)
    image, plan = pictures(1, ours.SIZE, ours.SIZE)[0], ours.plan("image", 1)
    embeddings = tuple(built.runner.encode(text) for text in plan.texts)
    found: Figures = {}
    for batch in BATCHES:
        frames = (FrameIn(SessionKey("", 0), n, plan, image, 0.0) for n in range(batch))
        rows = tuple(Row(slot, frame, 0.0, embeddings) for slot, frame in enumerate(frames))
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
            for _ in range(TICKS):
                built.runner.launch(rows).collect()
            torch.cuda.synchronize()
        kernels = profiler.key_averages()
        times: dict[str, float] = dict.fromkeys([*(name for name, _ in KINDS), "norms and pointwise"], 0.0)
        for entry in kernels:
            times[kind(entry.key)] += entry.self_device_time_total / TICKS / 1e3
        total = sum(times.values())
        found[f"batch {batch}"] = {
            "kernels_ms": {"total": round(total, 3), **{name: round(ms, 3) for name, ms in times.items()}},
            "launches": round(sum(entry.count for entry in kernels) / TICKS),
            "tflops": round(batch * sum(GFLOP.values()) / total, 1),
        }
    return found


def attention() -> Figures:
    """Microseconds of one attention, by kernel and shape."""
    found: Figures = {}
    for batch, queries, keys in ATTENTION:
        heads = HEADS[queries]
        q, k, v = (
            torch.randn(batch, heads, length, 64, device="cuda", dtype=torch.float16)
            for length in (queries, keys, keys)
        )
        times = {}
        for name, backend in BACKENDS.items():
            with sdpa_kernel(backend):
                times[name] = round(1e3 * graphed(lambda: scaled_dot_product_attention(q, k, v)), 1)  # noqa: B023
        found[f"batch {batch}, {queries} queries, {keys} keys"] = times
    return found


def graphed(call: Callable[[], Any], repeats: int = 20) -> float:
    """Milliseconds of one call among several in a CUDA graph, the median of some replays."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    times: list[float] = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / repeats)
    return sorted(times)[3]


def codec() -> Figures:
    """Milliseconds of one 512×512 picture: simplejpeg on one core, nvJPEG through torchvision."""
    import simplejpeg
    from torchvision.io import decode_jpeg, encode_jpeg

    images = pictures(16, ours.SIZE, ours.SIZE)
    files = [simplejpeg.encode_jpeg(image, 85, "RGB", "420") for image in images]
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    decoded = decode_jpeg(tensors, device="cuda")

    def measured(call: Callable[[], Any], count: int) -> Figures:
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            started_at = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - started_at) / count)
        return summary(times)

    return {
        "decode, simplejpeg": measured(lambda: [simplejpeg.decode_jpeg(f, "RGB") for f in files], 16),
        "encode, simplejpeg": measured(
            lambda: [simplejpeg.encode_jpeg(i, 85, "RGB", "420") for i in images], 16
        ),
        "decode, nvJPEG, 1": measured(lambda: decode_jpeg(tensors[:1], device="cuda"), 1),
        "decode, nvJPEG, 16": measured(lambda: decode_jpeg(tensors, device="cuda"), 16),
        "encode, nvJPEG, 1": measured(lambda: encode_jpeg(decoded[:1], quality=85), 1),
        "encode, nvJPEG, 16": measured(lambda: encode_jpeg(decoded, quality=85), 16),
    }


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=["fused", "none"], help="accelerations")
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    require_gpu()
    found: Figures = {"ticks": {name: isolated(tick, name) for name in arguments.only}}
    found["attention_us"] = isolated(attention)
    found["codec_ms"] = isolated(codec)
    print(found)
    print(save("kernels", found, arguments.output))


if __name__ == "__main__":
    main()
