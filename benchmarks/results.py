"""What all benchmarks share: statistics, the machine they ran on, and the files they write."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent / "results"
LIBRARIES = (
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "xformers",
    "streamdiffusion",
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime",
    "numpy",
    "simplejpeg",
    "uvicorn",
    "websockets",
)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, 99th percentile, least and most of some measurements; of none only their count."""
    if not values:
        return {"count": 0}
    low, median, high, late = np.percentile(np.asarray(values, float), [25, 50, 75, 99])
    figures = {"median": median, "p25": low, "p75": high, "p99": late, "min": min(values), "max": max(values)}
    return {name: round(float(figure), 4) for name, figure in figures.items()} | {"count": len(values)}


def machine() -> dict[str, Any]:
    """Processor, GPU, driver and versions."""
    import torch

    gpu: dict[str, Any] = {}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return {
        **gpu,
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def alike(there: Mapping[str, Any], here: Mapping[str, Any], *parts: str) -> bool:
    """Whether two machines have the same parts, and no library of another version."""
    if any(there.get(part) != here[part] for part in parts):
        return False
    both = there["versions"].keys() & here["versions"].keys()
    return all(there["versions"][name] == here["versions"][name] for name in both)


def require_gpu() -> None:
    """End the program where there is none, before it takes errors for results."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("this measures a GPU, and there is none")


def save(name: str, figures: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Write ``NAME.json``: the machine, then the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n", encoding="utf-8")
    return path


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )
