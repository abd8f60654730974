"""The header of a binary result message; docs/protocol.md describes it for clients."""

from __future__ import annotations

import math
import struct

from app.core.session import Result
from app.utils.image import PictureFormat

VERSION = 1
REPEATED = 1
"""Flag: the frame was skipped, and the picture is the one before."""

FORMATS: dict[PictureFormat, int] = {"jpeg": 1, "webp": 2}

HEADER = struct.Struct("<BBHIddfffIII")
"""Version, format, size of the header, revision, frame id, frame time, waited, made, total, flags,
number, dropped; little-endian, 48 bytes."""


def pack_header(result: Result, picture_format: PictureFormat, *, now: float, dropped: int) -> bytes:
    """The header of a result. ``now``: the monotonic clock in seconds, when it is sent; ``dropped``: how
    many frames of this session gave way to newer ones so far.
    """
    tag = result.tag
    if result.repeated:
        waited = made = 0.0
    else:
        waited = result.admitted_at - result.received_at
        made = result.finished_at - result.admitted_at
    return HEADER.pack(
        VERSION,
        FORMATS[picture_format],
        HEADER.size,
        result.revision,
        math.nan if tag.id is None else tag.id,
        math.nan if tag.time is None else tag.time,
        waited * 1000,
        made * 1000,
        (now - result.received_at) * 1000,
        REPEATED if result.repeated else 0,
        result.number & 0xFFFFFFFF,
        dropped & 0xFFFFFFFF,
    )
