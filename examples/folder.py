"""Every picture of a folder, repainted: `python examples/folder.py photos painted "oil painting"`.

Needs `pip install ./clients/python pillow`. The results are JPEGs of the server's size, cut around the
centre. They have the names of the pictures; where that is not a JPEG's, .jpg is appended, so that `a.png`
does not overwrite `a.jpg`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
from pathlib import Path

from PIL import ExifTags, Image, ImageOps
from streamdiffusion_client import Client, ClientError, FrameError

JPEG = {".jpg", ".jpeg"}
SUFFIXES = JPEG | {".png", ".webp"}


def upright(path: Path) -> bytes:
    """A picture's file; turned upright if it is a photograph that only says so, which the server refuses."""
    with Image.open(path) as picture:
        if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return path.read_bytes()
        turned = io.BytesIO()
        ImageOps.exif_transpose(picture).convert("RGB").save(turned, "JPEG", quality=95)
        return turned.getvalue()


def result_name(path: Path) -> str:
    """The name of the JPEG that a picture becomes."""
    return path.name if path.suffix.lower() in JPEG else f"{path.name}.jpg"


async def main(arguments: argparse.Namespace) -> None:
    """Repaint one picture after the other; one that cannot be taken is named and left out."""
    if arguments.target.resolve() == arguments.source.resolve():
        raise SystemExit("the results would take the pictures' place: name another folder for them")
    pictures = sorted(path for path in arguments.source.glob("*") if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise SystemExit(f"there is no JPEG, PNG or WebP in {arguments.source}")
    arguments.target.mkdir(parents=True, exist_ok=True)
    parameters = {"prompt": arguments.prompt, "strength": arguments.strength, "seed": arguments.seed}
    async with Client(arguments.server, parameters=parameters, quality=95) as client:
        for path in pictures:
            try:
                result = await client.render(upright(path))
            except (FrameError, OSError) as error:
                print(f"{path.name}: {error}")
                continue
            (arguments.target / result_name(path)).write_bytes(result.picture)
            print(f"{path.name}: {result.total:.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--server", default="http://localhost:8000")
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=42)
    try:
        asyncio.run(main(parser.parse_args()))
    except ClientError as error:
        raise SystemExit(str(error)) from error
