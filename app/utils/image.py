"""Pictures: bytes of a client to an array of the model's size, and back.

What a picture is gets checked in its header, before anything is decoded: a file of a few kilobytes can
hold 20 000 × 20 000 pixels. A picture that cannot be taken as it is (turned by EXIF, CMYK, 16 bits a
channel, animated) is refused with words that say how to send it, rather than repainted wrongly.

JPEG is the fast path (libjpeg-turbo through simplejpeg); PNG and WebP go through Pillow. Everything here
is blocking and thread-safe; the costly parts release the GIL.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import PngImagePlugin, WebPImagePlugin

Array = NDArray[np.uint8]
PictureFormat = Literal["jpeg", "webp"]

MIN_SIDE = 8
"""The fewest pixels of a side: what one latent pixel of Stable Diffusion stands for."""

MAX_SEGMENTS = 500
"""The most parts of a file that are looked at for its header. A camera writes about twenty; millions of empty
ones, which fit into a message, would keep a thread busy for seconds."""

MAX_SCANS = 100
"""The most scans of a JPEG. Progressive ones have about ten; each passes over the whole picture, and 16 MB
have room for those of half an hour."""

MAX_CHUNKS = 10_000
"""The most parts of a PNG, which are handled one by one in Python."""

LARGE = 2**21
"""Pixels of a picture that is larger than a camera's frame of 1080 lines."""

_ORIENTATION = 0x0112
_SHORT = 3
_EXIF = b"Exif\0\0"
_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JPEG_SCAN = b"\xff\xda"
_OTHER_FORMATS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"<svg": "an SVG",
    b"<?xml": "an SVG",
    b"\0\0\1\0": "an icon",
    b"\x1a\x45\xdf\xa3": "a video",
}


class PictureError(ValueError):
    """The bytes cannot be taken as a picture; the message says why, in words for whoever sent them."""


@dataclass(frozen=True)
class Header:
    """What a picture says of itself before it is decoded. ``orientation`` is EXIF's, 1 being upright."""

    format: Literal["JPEG", "PNG", "WebP"]
    width: int
    height: int
    channels: int = 3
    bits: int = 8
    animated: bool = False
    orientation: int = 1
    scans: int = 1


def read_header(data: bytes) -> Header:
    """Read the header of a JPEG, PNG or WebP picture. Raises PictureError for anything else."""
    if not data:
        raise PictureError("the picture is empty")
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg_header(data)
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png_header(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_header(data)
    except (struct.error, IndexError) as error:
        raise PictureError("the picture is truncated: it ends within its header") from error
    kind = next((name for magic, name in _OTHER_FORMATS.items() if data.startswith(magic)), "something else")
    raise PictureError(f"the picture must be a JPEG, PNG or WebP, not {kind}")


def check(header: Header, *, max_pixels: int) -> None:
    """Raise PictureError if a picture with this header cannot be taken as it is."""
    size = f"{header.width}×{header.height}"
    if header.width * header.height > max_pixels:
        raise PictureError(
            f"the picture is too large: {size} pixels; at most {max_pixels} in all are allowed"
        )
    if min(header.width, header.height) < MIN_SIDE:
        raise PictureError(f"the picture is too small: {size} pixels; each side needs at least {MIN_SIDE}")
    if header.animated:
        raise PictureError(f"the picture is animated; send each frame as a {header.format} of its own")
    if header.bits > 8:
        raise PictureError(f"the picture has {header.bits} bits a channel; send 8")
    if header.scans > MAX_SCANS:
        raise PictureError(f"the picture is a JPEG of {header.scans} scans; at most {MAX_SCANS} are allowed")
    if header.channels == 4 and header.format == "JPEG":
        raise PictureError("the picture is CMYK; send RGB or greyscale")
    if header.orientation != 1:
        raise PictureError(
            f"the picture is rotated by its EXIF orientation ({header.orientation}); send it upright"
        )


def is_slow(data: bytes) -> bool:
    """Whether a picture takes seconds to decode: a large one, unless it is a JPEG of one scan, which is made
    smaller on the way.
    """
    try:
        header = read_header(data)
    except PictureError:
        return False
    return header.width * header.height > LARGE and (header.format != "JPEG" or header.scans > 1)


def decode(data: bytes, *, width: int, height: int, max_pixels: int) -> Array:
    """Decode a picture and bring it to a size; one of another aspect loses its edges, evenly.

    Args:
        data: a JPEG, PNG or WebP file.
        width: width of the result in pixels.
        height: height of the result in pixels.
        max_pixels: the most pixels the picture may have, checked before it is decoded.

    Returns:
        RGB, uint8, shape (height, width, 3), C-contiguous. What is transparent shows black, as it does
        in a browser's canvas.

    Raises:
        PictureError: if the bytes are no picture, or one that cannot be taken as it is.
    """
    header = read_header(data)
    check(header, max_pixels=max_pixels)
    if header.format == "JPEG":
        try:
            # The decoder halves a large picture on the way as long as it stays large enough. Where colour has
            # half the resolution it is repeated, not interpolated: half a decibel for 7 % of the time.
            image = simplejpeg.decode_jpeg(data, "RGB", fastupsample=True, min_height=height, min_width=width)
        except ValueError as error:
            raise PictureError(f"the picture is a damaged or truncated JPEG ({error})") from error
    else:
        image = _decode_with_pillow(data, header)
    return fit(image, width=width, height=height)


def fit(image: Array, *, width: int, height: int) -> Array:
    """Crop an RGB array around its centre to the aspect of width × height and resize it to that."""
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    scale = min(columns / width, rows / height)
    crop_columns, crop_rows = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (columns - crop_columns) // 2, (rows - crop_rows) // 2
    view = image[top : top + crop_rows, left : left + crop_columns]
    # AREA averages what shrinks; enlarging, it would show squares.
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    return cv2.resize(view, (width, height), interpolation=method).astype(np.uint8, copy=False)


def encode(image: Array, picture_format: PictureFormat, quality: int) -> bytes:
    """Encode an RGB array of shape (height, width, 3) as JPEG (4:2:0) or WebP; quality is 1 to 100."""
    if picture_format == "jpeg":
        encoded: bytes = simplejpeg.encode_jpeg(image, quality, "RGB", "420")
        return encoded
    buffer = io.BytesIO()
    # Method 0 takes a third of the time of the default for a few percent more bytes.
    Pillow.fromarray(image).save(buffer, "WEBP", quality=quality, method=0)
    return buffer.getvalue()


def _decode_with_pillow(data: bytes, header: Header) -> Array:
    # The plug-ins are called directly: Image.open() would only guess the format again.
    plugin = PngImagePlugin.PngImageFile if header.format == "PNG" else WebPImagePlugin.WebPImageFile
    try:
        with plugin(io.BytesIO(data)) as picture:
            if picture.size != (header.width, header.height):
                # A second header would else slip past the limit on pixels.
                raise PictureError(f"the picture is a damaged {header.format} (it states two sizes)")
            if picture.mode == "RGB":
                return np.array(picture)
            if not picture.has_transparency_data:
                return np.array(picture.convert("RGB"))
            rgba = picture.convert("RGBA")
            black = Pillow.new("RGBA", rgba.size, (0, 0, 0, 255))
            return np.array(Pillow.alpha_composite(black, rgba).convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise PictureError(f"the picture is a damaged or truncated {header.format} ({error})") from error


def _jpeg_header(data: bytes) -> Header:
    """Walk the segments up to the frame header (ITU T.81, B.1.1 and B.2.2)."""
    orientation = 1
    position = 2
    for _ in range(MAX_SEGMENTS):
        if data[position] != 0xFF:
            raise PictureError("the picture is a damaged or truncated JPEG (no marker where one is due)")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in _JPEG_STANDALONE:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in _JPEG_FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            progressive = marker in _JPEG_PROGRESSIVE
            return Header(
                "JPEG",
                width,
                height,
                channels=channels,
                bits=bits,
                orientation=orientation,
                scans=data.count(_JPEG_SCAN)
                if progressive
                else _scans(data, position + 2 + length, channels),
            )
        if marker in {0xD9, 0xDA}:
            raise PictureError("the picture is a damaged or truncated JPEG (no frame header)")
        if marker == 0xE1 and data.startswith(_EXIF, position + 4):
            orientation = _exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
    raise PictureError(f"the picture is a damaged JPEG (no frame header in {MAX_SEGMENTS} segments)")


def _scans(data: bytes, position: int, channels: int) -> int:
    """How often the decoder goes through a JPEG that is not progressive; ``position`` is that of the segment
    after the frame header. If the first scan has all colours, the decoder refuses to take another.
    """
    for _ in range(MAX_SEGMENTS):
        if position + 4 > len(data) or data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xDA and data[position + 4 : position + 5] == bytes([channels]):
            return 1
        if marker in _JPEG_STANDALONE or marker in {0xDA, 0xFF}:
            break
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.count(_JPEG_SCAN)


def _png_header(data: bytes) -> Header:
    """Read IHDR, and the chunks before the pixels for acTL, which animates, and eXIf."""
    if struct.unpack_from(">I4s", data, 8) != (13, b"IHDR"):
        raise PictureError("the picture is a damaged or truncated PNG (its first chunk is not IHDR)")
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    animated, orientation = False, 1
    position = 33
    for _ in range(MAX_SEGMENTS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            break
        if kind == b"acTL":
            animated = True
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : position + 8 + length])
        position += 12 + length
    else:
        raise PictureError(f"the picture is a damaged PNG (no pixels in {MAX_SEGMENTS} chunks)")
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        position += 12 + int(struct.unpack_from(">I", data, position)[0])
    else:
        raise PictureError(f"the picture is a PNG of more than {MAX_CHUNKS} chunks")
    return Header("PNG", width, height, bits=bits, animated=animated, orientation=orientation)


def _webp_header(data: bytes) -> Header:
    """Read the size of the first chunk (RFC 9649, section 2): lossy, lossless or extended."""
    kind = data[12:16]
    if kind == b"VP8X":
        flags = data[20]
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        orientation = _webp_orientation(data) if flags & 0x08 else 1
        return Header("WebP", width, height, animated=bool(flags & 0x02), orientation=orientation)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WebP", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        return Header("WebP", 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
    raise PictureError("the picture is a damaged or truncated WebP (unknown first chunk)")


def _webp_orientation(data: bytes) -> int:
    position = 12
    for _ in range(MAX_SEGMENTS):
        if position + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return _exif_orientation(data[position + 8 : position + 8 + length].removeprefix(_EXIF))
        position += 8 + length + length % 2
    return 1


def _exif_orientation(tiff: bytes) -> int:
    """Find the orientation in the first directory (TIFF 6.0, section 2). Pillow would find it too, but
    warns about damage; EXIF that nobody can read turns nothing.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _ORIENTATION and kind == _SHORT and 1 <= value <= 8:
                return int(value)
    except struct.error:
        return 1
    return 1
