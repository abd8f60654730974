"""The binary messages of a connection with `?output=ws`."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

VERSION = 1
HEADER = struct.Struct("<BBHIddfffIII")
FORMATS = {1: "jpeg", 2: "webp"}
REPEATED = 1


@dataclass(frozen=True)
class Result:
    """A finished picture.

    Attributes:
        picture: a JPEG or WebP file.
        format: ``jpeg`` or ``webp``.
        number: of the frame in its session, ascending.
        frame_id: as the client wrote it on the frame.
        frame_time: as the client wrote it on the frame, in the client's own unit.
        revision: how often the parameters had changed before this frame.
        waited: milliseconds that the frame waited for the device.
        made: milliseconds from its first denoising step to the finished picture.
        total: milliseconds from its arrival at the server to this message.
        dropped: frames of this session that gave way to newer ones so far.
        repeated: the frame was like the one before, so the picture is that one's.
    """

    picture: bytes
    format: str
    number: int
    frame_id: int | None
    frame_time: float | None
    revision: int
    waited: float
    made: float
    total: float
    dropped: int
    repeated: bool


def decode_result(message: bytes) -> Result:
    """Read a binary message. Raises ValueError if it is of a version that this module does not know."""
    version, picture_format, size, revision, frame_id, frame_time, *times, flags, number, dropped = (
        HEADER.unpack_from(message)
    )
    if version != VERSION or picture_format not in FORMATS:
        raise ValueError(f"unknown result: version {version}, format {picture_format}")
    waited, made, total = times
    return Result(
        picture=message[size:],
        format=FORMATS[picture_format],
        number=number,
        frame_id=None if math.isnan(frame_id) else int(frame_id),
        frame_time=None if math.isnan(frame_time) else frame_time,
        revision=revision,
        waited=waited,
        made=made,
        total=total,
        dropped=dropped,
        repeated=bool(flags & REPEATED),
    )
