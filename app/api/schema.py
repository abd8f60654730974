"""`/api/settings`: the parameters of a pipeline as front ends of the StreamDiffusion demos read them.

Such a front end draws one control for each property by its ``field``, and sends the value back under
its ``id``. It needs ``min`` and ``max`` where pydantic says ``minimum`` and ``maximum``, the choices of
a select as ``values``, and the size of the frames to send as the defaults of ``width`` and ``height``.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from app.core.messages import Mode

TITLE = "StreamDiffusion Backend"

_RENAMED = {"minimum": "min", "maximum": "max", "multipleOf": "step", "enum": "values"}


def input_params(params: type[BaseModel], *, width: int, height: int) -> dict[str, Any]:
    """The schema of a pipeline's parameters, the frames' size included."""
    schema = params.model_json_schema(by_alias=False)
    definitions = schema.pop("$defs", {})
    properties = {
        name: {**_resolved(entry, definitions), "id": name} for name, entry in schema["properties"].items()
    }
    for name, size in (("width", width), ("height", height)):
        properties[name] = {
            "default": size,
            "title": name.capitalize(),
            "type": "integer",
            "id": name,
            "field": "range",
            "min": size,
            "max": size,
            "hide": True,
            "disabled": True,
        }
    return {**schema, "title": params.__name__, "properties": properties}


def _resolved(entry: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The entry by front ends' names; instead of a reference, as pydantic writes for an enumeration, what it
    refers to, and instead of a choice between something and nothing, which has no control, the something.
    """
    types = [choice for choice in entry.get("anyOf", ()) if choice != {"type": "null"}]
    if len(types) == 1:
        entry = {**types[0], **{key: value for key, value in entry.items() if key != "anyOf"}}
    definition = definitions.get(entry.get("$ref", "").rpartition("/")[2], {})
    whole = {**definition, **entry}
    return {_RENAMED.get(key, key): value for key, value in whole.items() if key != "$ref"}


def info(mode: Mode, description: str) -> dict[str, Any]:
    """What the page is called and whether it sends pictures."""
    return {
        "title": "StreamDiffusionBackend",
        "type": "object",
        "properties": {
            "title": TITLE,
            "description": description,
            "input_mode": {"default": mode, "title": "Input Mode", "type": "string", "id": "input_mode"},
        },
    }
