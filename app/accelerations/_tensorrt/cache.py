"""Engines on disk: each under a key of everything it depends on, and checked when it is read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MAGIC = b"StreamDiffusion engine 1\n"


def fingerprint(part: Any) -> str:
    """A digest of a module's configuration and of every weight, LoRAs included when they are fused."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(dict(part.config), sort_keys=True, default=str).encode())
    for name, tensor in sorted(part.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def key_of(facts: Mapping[str, Any]) -> str:
    """The key: a digest of the facts."""
    return hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()


def path_of(folder: Path, name: str, key: str) -> Path:
    """Where an engine is kept."""
    return folder / f"{name}-{key[:16]}.engine"


def read(path: Path, key: str) -> bytes | None:
    """The engine; None if there is none, or none that can be trusted, which is logged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    header, _, plan = content.removeprefix(MAGIC).partition(b"\n")
    expected = _header(key, plan)
    if content.startswith(MAGIC) and header == expected:
        return plan
    log.warning("%s is damaged or belongs to something else; it will be built anew", path)
    return None


def write(path: Path, key: str, plan: bytes) -> None:
    """Keep an engine. The file appears whole or not at all, however many processes write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(MAGIC + _header(key, plan) + b"\n" + plan)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _header(key: str, plan: bytes) -> bytes:
    return json.dumps({"key": key, "sha256": hashlib.sha256(plan).hexdigest()}).encode()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
