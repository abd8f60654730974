"""What becomes of a client's bytes."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from app.utils.image import PictureError, decode, encode, fit, is_slow, read_header

Array = NDArray[np.uint8]


def scene(width: int = 96, height: int = 64) -> Array:
    """Red grows to the right, green to the bottom; smooth, so that JPEG keeps it."""
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.uint8)


def saved(image: Array | Pillow.Image, kind: str, **options: Any) -> bytes:
    picture = image if isinstance(image, Pillow.Image) else Pillow.fromarray(image)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def take(data: bytes, width: int = 96, height: int = 64, max_pixels: int = 1_000_000) -> Array:
    return decode(data, width=width, height=height, max_pixels=max_pixels)


def oriented(value: int) -> Pillow.Exif:
    exif = Pillow.Exif()
    exif[0x0112] = value
    return exif


def huge_png(side: int) -> bytes:
    """A header alone, as a decompression bomb would have it."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))


def disguised_png(first: bytes) -> bytes:
    """A large picture behind a chunk that states a small size."""
    small = first + struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + small + struct.pack(">I", zlib.crc32(small))
    whole = saved(np.zeros((2000, 2000, 3), np.uint8), "PNG")
    return whole[:8] + chunk + whole[8:]


def huge_jpeg(side: int) -> bytes:
    frame = struct.pack(">BHHB", 8, side, side, 3) + bytes(9)
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame


def huge_webp(side: int) -> bytes:
    chunk = bytes(4) + (side - 1).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + chunk


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 4),
        ("JPEG", {"quality": 85, "progressive": True}, 8),
        ("JPEG", {"quality": 95, "subsampling": 2}, 8),  # 4:2:0, as most cameras send
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 12),
    ],
)
def test_a_picture_of_the_right_size_keeps_its_pixels(
    kind: str, options: dict[str, Any], tolerance: int
) -> None:
    image = take(saved(scene(), kind, **options))
    assert image.shape == (64, 96, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert np.abs(image.astype(int) - scene()).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA"])
def test_other_kinds_of_png_become_rgb(mode: str) -> None:
    image = take(saved(Pillow.fromarray(scene()).convert(mode), "PNG"))
    assert image.shape == (64, 96, 3)
    assert int(image[-1, -1].sum()) > int(image[0, 0].sum())


def test_grey_jpeg_becomes_rgb() -> None:
    image = take(saved(Pillow.fromarray(scene()).convert("L"), "JPEG"))
    assert np.array_equal(image[..., 0], image[..., 2])


def test_what_is_transparent_is_black() -> None:
    rgba = np.dstack([scene(), np.zeros((64, 96), np.uint8)])
    assert take(saved(rgba, "PNG")).max() == 0
    assert take(saved(rgba, "WEBP", lossless=True, exact=True)).max() == 0


def test_another_aspect_loses_its_edges_evenly() -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = 200  # the centre that remains when a square is cut out
    image = take(saved(wide, "PNG"), width=32, height=32)
    assert image.min() == 200


@pytest.mark.parametrize("size", [(96, 64), (960, 640), (20, 13)])
def test_any_size_becomes_the_models(size: tuple[int, int]) -> None:
    image = take(saved(scene(*size), "JPEG", quality=95))
    assert np.abs(image.astype(int) - scene()).mean() < 8


def test_a_picture_that_fits_is_not_copied() -> None:
    image = scene()
    assert fit(image, width=96, height=64) is image


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello, I am no picture", "must be a JPEG, PNG or WebP"),
        (saved(scene(), "GIF"), "not a GIF"),
        (saved(scene(), "BMP"), "not a BMP"),
        (saved(scene(), "TIFF"), "not a TIFF"),
        (saved(scene(), "JPEG")[:400], "damaged or truncated JPEG"),
        (saved(scene(), "JPEG")[:-200], "damaged or truncated JPEG"),
        (saved(scene(), "JPEG")[:20], "truncated"),
        (b"\xff\xd8", "truncated"),
        (b"\xff\xd8\xff\xd9", "truncated"),
        (b"\xff\xd8\xff\xda\0\x02", "no frame header"),
        (saved(scene(), "PNG")[:-50], "damaged or truncated PNG"),
        (saved(scene(), "PNG")[:20], "truncated"),
        (saved(scene(), "WEBP")[:-50], "damaged or truncated WebP"),
        (saved(scene(), "WEBP")[:22], "truncated"),
        (b"RIFF\0\0\0\0WEBPnope", "unknown first chunk"),
        (saved(Pillow.fromarray(scene()).convert("CMYK"), "JPEG"), "CMYK"),
        (saved(Pillow.new("I;16", (96, 64)), "PNG"), "16 bits"),
        (saved(scene(), "JPEG", exif=oriented(6)), r"EXIF orientation \(6\)"),
        (saved(scene(), "PNG", exif=oriented(3)), r"EXIF orientation \(3\)"),
        (saved(scene(), "WEBP", exif=oriented(8)), r"EXIF orientation \(8\)"),
        (saved(scene(1, 1), "PNG"), "too small: 1×1"),
        (saved(scene(1, 1), "JPEG"), "too small: 1×1"),
        (saved(scene(1, 1), "WEBP"), "too small: 1×1"),
        (huge_png(20_000), "too large: 20000×20000"),
        (disguised_png(b"IHDR"), "states two sizes"),
        (disguised_png(b"tEXt"), "first chunk is not IHDR"),
        (huge_jpeg(20_000), "too large: 20000×20000"),
        (huge_webp(16_384), "too large: 16384×16384"),
        (
            saved(
                Pillow.fromarray(scene()), "PNG", save_all=True, append_images=[Pillow.new("RGB", (96, 64))]
            ),
            "animated",
        ),
        (
            saved(
                Pillow.fromarray(scene()), "WEBP", save_all=True, append_images=[Pillow.new("RGB", (96, 64))]
            ),
            "animated",
        ),
    ],
)
def test_what_cannot_be_taken_is_refused_with_words(data: bytes, words: str) -> None:
    with pytest.raises(PictureError, match=words):
        take(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xd8" + b"\xff\xe0\0\2" * 1_000_000, "no frame header in 500 segments"),
        (b"\xff\xd8" + b"\xff" * 4_000_000, "no frame header in 500 segments"),
        (huge_png(64) + (b"\0\0\0\0tEXt" + bytes(4)) * 300_000, "no pixels in 500 chunks"),
    ],
)
def test_millions_of_empty_parts_cost_nothing(data: bytes, words: str) -> None:
    began = time.thread_time()
    with pytest.raises(PictureError, match=words):
        take(data)
    assert time.thread_time() - began < 0.05


def with_scans(count: int, **options: Any) -> bytes:
    """A large JPEG that goes through its last scan again and again; each costs a few bytes."""
    data = saved(np.full((2048, 2048, 3), 127, np.uint8), "JPEG", quality=50, **options)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def test_a_jpeg_of_thousands_of_scans_costs_nothing() -> None:
    data = with_scans(5000, progressive=True)
    began = time.thread_time()
    with pytest.raises(PictureError, match=r"a JPEG of 50\d\d scans; at most 100"):
        take(data, max_pixels=2048 * 2048)
    assert time.thread_time() - began < 0.05
    with pytest.raises(PictureError, match="damaged"):
        take(with_scans(1, progressive=True), max_pixels=2048 * 2048)


def test_scans_of_single_colours_are_counted() -> None:
    data = saved(scene(), "JPEG")
    start = data.rindex(b"\xff\xda")
    (length,) = struct.unpack_from(">H", data, start + 2)
    head, pixels = data[:start], data[start + 2 + length : -2]
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([1, 0, 0, 63, 0]) + pixels
    assert read_header(data).scans == 1
    assert read_header(head + scan * 200 + data[-2:]).scans == 200
    # What only looks like a scan, within a comment, hides nothing.
    comment = b"\xff\xfe" + struct.pack(">H", 14) + b"\xff\xda\x00\x0c\x03" + bytes(7)
    frame = head.index(b"\xff\xc0")
    (length,) = struct.unpack_from(">H", head, frame + 2)
    hidden = head[: frame + 2 + length] + comment + head[frame + 2 + length :] + scan * 200 + data[-2:]
    assert read_header(hidden).scans == 201


def test_progressive_and_many_chunked_pictures_of_cameras_are_fine() -> None:
    assert 5 < read_header(saved(scene(), "JPEG", progressive=True)).scans < 20
    assert take(chunked_png(2000)).shape == (64, 96, 3)


def test_a_png_of_millions_of_chunks_costs_nothing() -> None:
    data = chunked_png(300_000)
    began = time.thread_time()
    with pytest.raises(PictureError, match="more than 10000 chunks"):
        take(data)
    assert time.thread_time() - began < 0.05


@pytest.mark.parametrize(
    ("data", "slow"),
    [
        (huge_png(1500), True),
        (huge_webp(1500), True),
        (saved(np.zeros((1500, 1500, 3), np.uint8), "JPEG", progressive=True), True),
        (saved(np.zeros((1500, 1500, 3), np.uint8), "JPEG"), False),
        (huge_png(1400), False),
        (b"no picture", False),
    ],
    ids=["png", "webp", "progressive", "jpeg", "small", "none"],
)
def test_what_takes_long_is_known_before_it_is_decoded(data: bytes, slow: bool) -> None:
    assert is_slow(data) == slow


def chunked_png(count: int) -> bytes:
    """A good picture, and empty chunks after its pixels."""
    data = saved(scene(), "PNG")
    empty = b"\0\0\0\0abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    return data[:-12] + empty * count + data[-12:]


def test_upright_exif_is_fine() -> None:
    assert take(saved(scene(), "JPEG", exif=oriented(1))).shape == (64, 96, 3)
    assert read_header(saved(scene(), "WEBP", exif=oriented(1))).orientation == 1


def test_every_cut_of_a_picture_is_refused_or_taken_but_never_crashes() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = saved(scene(24, 16), kind)
        for end in range(len(data) - 20):  # the pixels end before the last checksum
            with pytest.raises(PictureError):
                take(data[:end])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_flipped_bytes_never_raise_anything_else(kind: str) -> None:
    data = bytearray(saved(scene(24, 16), kind, exif=oriented(1)))
    random = np.random.default_rng(0)
    for _ in range(400):
        broken = bytearray(data)
        for position in random.integers(0, len(data), 3):
            broken[position] = int(random.integers(0, 256))
        try:
            take(bytes(broken))
        except PictureError:
            continue


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_encoding_comes_back(kind: Any) -> None:
    image = take(encode(scene(), kind, 95))
    assert np.abs(image.astype(int) - scene()).mean() < 4
    assert len(encode(scene(), kind, 30)) < len(encode(scene(), kind, 95))
