"""Streams pictures to a StreamDiffusion Backend and back.

A picture is the bytes of a JPEG, PNG or WebP file, in both directions; how they are made and shown is the
caller's business.
"""

from streamdiffusion_client.client import Client
from streamdiffusion_client.errors import (
    ClientError,
    FrameError,
    RefusedError,
    ServerFullError,
    UnreachableError,
)
from streamdiffusion_client.result import Result, decode_result

__all__ = [
    "Client",
    "ClientError",
    "FrameError",
    "RefusedError",
    "Result",
    "ServerFullError",
    "UnreachableError",
    "decode_result",
]
