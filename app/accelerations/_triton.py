"""What Triton needs of a machine: it compiles kernels, and a C module that launches them, when they are first
used.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch


def triton_problems(device: torch.device, oldest_capability: tuple[int, int]) -> list[str]:
    """Why Triton cannot compile for this CUDA device here, a sentence each."""
    found = []
    if find_spec("triton") is None:
        found.append("Triton is not installed; run: pip install triton")
    if torch.cuda.get_device_capability(device) < oldest_capability:
        found.append(f"it needs a GPU of compute capability {'.'.join(map(str, oldest_capability))} or newer")
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        found.append("Triton needs a C compiler; run: apt install gcc")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        found.append("Triton needs Python's headers; run: apt install python3-dev")
    return found
