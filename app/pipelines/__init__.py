"""Pipelines, one file each, found by the file's name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from app.core.messages import Mode
from app.pipelines.base import BasePipeline

BUILT_IN: dict[Mode, str] = {"image": "img2img", "video": "txt2img"}


def load_pipelines(name: str) -> dict[Mode, BasePipeline[Any]]:
    """The pipeline of each mode: the named one for its own mode, the built-in one for the other.

    Raises:
        TypeError: if the file has no class ``Pipeline`` as described in ``app.pipelines.base``.
    """
    named = _load(name)
    return {mode: named if named.mode == mode else _load(other) for mode, other in BUILT_IN.items()}


def _load(name: str) -> BasePipeline[Any]:
    cls = getattr(import_module(f"app.pipelines.{name}"), "Pipeline", None)
    if not (isinstance(cls, type) and issubclass(cls, BasePipeline)):
        raise TypeError(f"app/pipelines/{name}.py has no class Pipeline that is a BasePipeline")
    mode = getattr(cls, "mode", None)
    if mode not in BUILT_IN:
        right = " or ".join(map(repr, BUILT_IN))
        raise TypeError(f"app/pipelines/{name}.py: the mode of Pipeline must be {right}, not {mode!r}")
    return cls()  # an abstract method that is missing raises TypeError here and names it
