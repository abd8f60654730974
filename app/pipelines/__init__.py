"""Pipelines, one file each, found by the file's name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pydantic import BaseModel

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
    if (problem := _problem(cls)) is not None:
        raise TypeError(f"app/pipelines/{name}.py: {problem}")
    return cls()  # an abstract method that is missing raises TypeError here and names it


def _problem(cls: type[BasePipeline[Any]]) -> str | None:
    """What is wrong with the attributes of a pipeline; unlike methods, nobody misses them by themselves."""
    mode = getattr(cls, "mode", None)
    if mode not in BUILT_IN:
        return f"the mode of Pipeline must be {' or '.join(map(repr, BUILT_IN))}, not {mode!r}"
    params = getattr(cls, "Params", None)
    if not (isinstance(params, type) and issubclass(params, BaseModel)):
        return "the Params of Pipeline must be a pydantic model, for example BaseParams"
    required = [name for name, field in params.model_fields.items() if field.is_required()]
    return f"the Params of Pipeline need a default for {', '.join(required)}" if required else None
