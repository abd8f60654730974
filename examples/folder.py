"""Every picture of a folder, repainted: `python examples/folder.py photos painted "oil painting"`.

Needs `pip install ./clients/python`. The results have the names of the pictures, ending in .jpg.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from streamdiffusion_client import Client, FrameError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


async def main(arguments: argparse.Namespace) -> None:
    """Repaint one picture after the other; one that the server cannot take is named and left out."""
    arguments.target.mkdir(parents=True, exist_ok=True)
    pictures = sorted(path for path in arguments.source.iterdir() if path.suffix.lower() in SUFFIXES)
    parameters = {"prompt": arguments.prompt, "strength": arguments.strength, "seed": arguments.seed}
    async with Client(arguments.server, parameters=parameters, quality=95) as client:
        for path in pictures:
            try:
                result = await client.render(path.read_bytes())
            except FrameError as error:
                print(f"{path.name}: {error}")
                continue
            (arguments.target / path.with_suffix(".jpg").name).write_bytes(result.picture)
            print(f"{path.name}: {result.total:.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--server", default="http://localhost:8000")
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=42)
    asyncio.run(main(parser.parse_args()))
