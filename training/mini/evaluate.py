"""Held-out evaluation of the embedded model: `python -m training.mini.evaluate`.

Photographs come from scikit-image's package; none was seen in training. Writes figures to `results.json` and
contact sheets to the model's `sheets` folder.

How to read the figures:
* autoencoder: PSNR in dB of encoding and decoding a photograph at 256 pixels.
* styles: `nearer` is 1 - |result - rendering| / |input - rendering|, mean absolute differences after a blur
  of one pixel, where the rendering is the style's own operator; 1 is the rendering itself, 0 as far as the
  input. `sharpness` is the mean gradient of the result divided by the rendering's. `texture` is `nearer` for
  the statistics of 7-pixel patches (sliced Wasserstein distance, patch means removed): it counts whether
  strokes and lines are there, not whether each is in its place. `edges` is the correlation of the edge maps
  of input and result; `edges_rendering` is that of the rendering.
* scenes: how often simple colour and shape measurements find what the prompt names, over several seeds.
* drawn scenes: video mode against the program's own drawing of the same noise: mean difference in grey levels
  (of 255), `sharpness`, and `texture` as the distance of patch statistics (0 is the drawing).
* steadiness: mean change in grey levels (of 255) between the results of neighbouring frames of a photograph
  that moves by one pixel a frame, after undoing the movement; `input` is that of the frames themselves, and
  `rendering` that of the style's own operator, whose hatching and tiles do not move along.
"""

import argparse
import itertools
import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from skimage import data, measure
from torch import Tensor
from torch.nn import functional

from training.mini.model import FACTOR, LATENTS, PICTURE
from training.mini.ops import blur, edges, gradient, luma
from training.mini.sample import Sampler
from training.mini.scenes import COLOURS, SHAPES, Scene, draw_scene
from training.mini.styles import ALL_STYLES

log = logging.getLogger("training.mini")
SOME_STYLES = ("pencil", "watercolor", "cartoon", "neon", "blueprint", "thermal", "sunset", "winter")
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "camera", "rocket")


def photograph(name: str, size: int = 256) -> Tensor:
    """A photograph of scikit-image, cropped square: (1, 3, size, size) in [0, 1]."""
    pixels = np.asarray(getattr(data, name)())
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    x = torch.from_numpy(pixels[..., :3].copy()).float().permute(2, 0, 1)[None] / 255
    side = min(x.shape[2:])
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    return functional.interpolate(
        x[:, :, top : top + side, left : left + side], size=(size, size), mode="area"
    )


def _difference(a: Tensor, b: Tensor) -> float:
    return (blur(a, 1.0) - blur(b, 1.0)).abs().mean().item()


def _edge_correlation(a: Tensor, b: Tensor) -> float:
    stacked = torch.stack([edges(luma(x), 2.0).flatten() for x in (a, b)])
    return torch.corrcoef(stacked)[0, 1].item()


def _sharpness(result: Tensor, rendering: Tensor) -> float:
    """Mean gradient of the first divided by that of the second."""
    a, b = (sum(part.abs().mean() for part in gradient(x)) for x in (result, rendering))
    return float(a / b)


def _texture_distance(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein distance between the 7-pixel patches of two batches, patch means removed."""
    directions = torch.randn(64, 3 * 49, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=1, keepdim=True)
    sorted_: list[Tensor] = []
    for x in (a, b):
        patches = functional.unfold(x.expand(-1, 3, -1, -1), 7, stride=2).movedim(1, 0).reshape(3, 49, -1)
        patches = (patches - patches.mean(1, keepdim=True)).reshape(3 * 49, -1)
        sorted_.append((directions @ patches).sort(1).values)
    return (sorted_[0] - sorted_[1]).abs().mean().item()


def measure_autoencoder(sampler: Sampler, size: int = 256) -> dict[str, float]:
    figures = {}
    for name in PHOTOGRAPHS:
        x = photograph(name, size)
        with torch.no_grad():
            latents = sampler.vae.encode(x.to(sampler.device) * 2 - 1).latents
            y = (sampler.vae.decode(latents).sample.clamp(-1, 1) / 2 + 0.5).cpu()
        figures[name] = round(-10 * torch.log10((x - y).square().mean()).item(), 2)
    figures["mean"] = round(sum(figures.values()) / len(figures), 2)
    return figures


def measure_styles(
    sampler: Sampler, names: Iterable[str], steps: int = 1, strength: float = 0.5
) -> dict[str, dict[str, float]]:
    photographs = torch.cat([photograph(name) for name in PHOTOGRAPHS])
    figures: dict[str, dict[str, float]] = {}
    for name in names:
        style = ALL_STYLES[name]
        rendering = style.operator(photographs).clamp(0, 1)
        result = sampler.repaint(photographs, style.words[0], strength, steps)
        figures[name] = {
            "nearer": round(1 - _difference(result, rendering) / _difference(photographs, rendering), 3),
            "sharpness": round(_sharpness(result, rendering), 3),
            "texture": round(
                1 - _texture_distance(result, rendering) / _texture_distance(photographs, rendering), 3
            ),
            "edges": round(_edge_correlation(photographs, result), 3),
            "edges_rendering": round(_edge_correlation(photographs, rendering), 3),
        }
    figures["mean"] = {
        key: round(sum(each[key] for each in figures.values()) / len(figures), 3)
        for key in ("nearer", "sharpness", "texture")
    }
    for prompt in ("", "a man with a hat", "qwertz uiop"):
        result = sampler.repaint(photographs, prompt, strength, steps)
        figures[f"unknown: {prompt!r}"] = {
            "difference": round(_difference(result, photographs), 4),
            "edges": round(_edge_correlation(photographs, result), 3),
        }
    return figures


def _shape_found(picture: Tensor, shape: str, colour: str) -> tuple[bool, bool]:
    """Whether the picture's foreground has the named colour, and the outline the named shape."""
    names = list(COLOURS)
    table = torch.tensor([COLOURS[name] for name in names]).view(-1, 3, 1, 1)
    border = torch.cat([picture[0, :, :8].reshape(3, -1), picture[0, :, -8:].reshape(3, -1)], 1).mean(1)
    mask = (picture[0] - border.view(3, 1, 1)).abs().sum(0) > 0.45
    if mask.sum() < 200:
        return False, False
    inner = picture[0][:, mask].median(1).values.view(1, 3, 1, 1)
    # The background has shades of its own: the shape is what is nearer to its colour than to the border's.
    away = [(picture - c.view(1, 3, 1, 1)).abs().sum((0, 1)) for c in (inner, border)]
    mask = _largest_part(away[0] < away[1])
    # Compare hue and brightness apart from the light falling on the shape.
    distance = (table - inner).square().sum((1, 2, 3))
    right_colour = names[int(distance.argmin())] == colour
    overlaps = []
    for candidate in SHAPES:
        template = draw_scene(
            torch.zeros(1, PICTURE, 64, 64), Scene(candidate, colour="black", background="white")
        )
        overlaps.append(_overlap(_fit(mask), _fit(luma(template)[0, 0] < 0.5)))
    return right_colour, SHAPES[int(np.argmax(overlaps))] == shape


def _largest_part(mask: Tensor) -> Tensor:
    """The largest connected part of a mask: a corner's shade is no part of a shape."""
    label: Any = measure.label  # comes without types
    parts: Tensor = torch.from_numpy(label(mask.numpy()))
    return parts == parts[mask].bincount().argmax()


def _fit(mask: Tensor) -> Tensor:
    """A mask cropped to its bounding box and scaled to 64 by 64."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float()
    return functional.interpolate(crop[None, None], size=(64, 64), mode="bilinear")[0, 0] > 0.5


def _overlap(a: Tensor, b: Tensor) -> float:
    return ((a & b).sum() / (a | b).sum()).item()


def _mean(picture: Tensor, top: float, bottom: float) -> Tensor:
    h = picture.shape[2]
    return picture[0, :, int(top * h) : int(bottom * h)].mean((1, 2))


def _is_sunset(p: Tensor) -> bool:
    r, _, b = _mean(p, 0.2, 0.5).tolist()
    return bool(r > b + 0.08)


def _is_night(p: Tensor) -> bool:
    return bool(_mean(p, 0.0, 1.0).mean() < 0.27)


def _is_day(p: Tensor) -> bool:
    r, _, b = _mean(p, 0.0, 0.3).tolist()
    return bool(b > r + 0.08 and b > 0.5)


def _is_green_below(p: Tensor) -> bool:
    r, g, b = _mean(p, 0.7, 1.0).tolist()
    return bool(g > r + 0.04 and g > b + 0.04)


def _is_blue_below(p: Tensor) -> bool:
    r, _, b = _mean(p, 0.6, 1.0).tolist()
    return bool(b > r + 0.08)


def _is_sand_below(p: Tensor) -> bool:
    r, g, b = _mean(p, 0.75, 1.0).tolist()
    return bool(r > g > b and r > b + 0.15)


def _is_white_below(p: Tensor) -> bool:
    colour = _mean(p, 0.8, 1.0)
    return bool(colour.mean() > 0.62) and bool(colour.max() - colour.min() < 0.15)


_SCENE_CHECKS = {
    "the sea": _is_blue_below,
    "a desert": _is_sand_below,
    "a beach": _is_sand_below,
    "a meadow": _is_green_below,
    "mountains at sunset": _is_sunset,
    "the sea at sunset": _is_sunset,
    "a city at night": _is_night,
    "a forest at night": _is_night,
    "mountains on a sunny day": _is_day,
    "a forest in winter": _is_white_below,
    "mountains in winter, snow": _is_white_below,
}


def measure_scenes(sampler: Sampler, steps: int, seeds: int = 5) -> dict[str, float]:
    figures = {}
    for prompt, check in _SCENE_CHECKS.items():
        figures[prompt] = sum(check(sampler.imagine(prompt, seed, steps)) for seed in range(seeds)) / seeds
    colours = ("red", "blue", "green", "yellow", "purple", "orange", "pink", "black")
    found = [
        _shape_found(sampler.imagine(f"a {colour} {shape}", index, steps), shape, colour)
        for index, colour in enumerate(colours)
        for shape in SHAPES
    ]
    figures["shapes: named colour"] = round(sum(a for a, _ in found) / len(found), 3)
    figures["shapes: named shape"] = round(sum(b for _, b in found) / len(found), 3)
    figures["seeds differ by (grey levels)"] = round(
        255
        * (sampler.imagine("mountains", 1, steps) - sampler.imagine("mountains", 2, steps))
        .abs()
        .mean()
        .item(),
        1,
    )
    return figures


_DRAWN = {
    "mountains": Scene("mountains"),
    "the sea at sunset with the sun": Scene("sea", time="sunset", light="sun"),
    "a city at night": Scene("city", time="night"),
    "a forest in autumn": Scene("forest", season="autumn"),
    "a desert": Scene("desert"),
    "a lake, clouds": Scene("lake", weather="clouds"),
    "space": Scene("space"),
    "rain over the sea": Scene("sea", weather="rain"),
    "a yellow star on a blue background": Scene("star", colour="yellow", background="blue"),
    "a red square on a white background": Scene("square", colour="red", background="white"),
}


def measure_drawn_scenes(sampler: Sampler, steps: int, size: int = 256, seeds: int = 3) -> dict[str, float]:
    shape = (1, LATENTS, size // FACTOR, size // FACTOR)
    pairs = [
        (
            sampler.imagine(prompt, seed, steps, size, size),
            draw_scene(torch.randn(shape, generator=torch.Generator().manual_seed(seed))[:, PICTURE:], scene),
        )
        for prompt, scene in _DRAWN.items()
        for seed in range(seeds)
    ]
    count = len(pairs)
    return {
        "difference (grey levels)": round(255 * sum(_difference(a, b) for a, b in pairs) / count, 2),
        "sharpness": round(sum(_sharpness(a, b) for a, b in pairs) / count, 3),
        "texture distance": round(sum(_texture_distance(a, b) for a, b in pairs) / count, 4),
    }


def measure_steadiness(sampler: Sampler, frames: int = 8) -> dict[str, float]:
    wide = photograph("astronaut", 320)
    clip = [wide[:, :, 32:288, 20 + k : 276 + k] for k in range(frames)]

    def change(pictures: list[Tensor]) -> float:
        pairs = itertools.pairwise(pictures)
        return (
            255
            * sum((a[..., 33:] - b[..., 32:-1]).abs().mean().item() for a, b in pairs)
            / (len(pictures) - 1)
        )

    figures = {"input": round(change(clip), 2)}
    for name in SOME_STYLES:
        style = ALL_STYLES[name]
        results = [sampler.repaint(frame, style.words[0]) for frame in clip]
        figures[name] = round(change(results), 2)
        renderings = [style.operator(frame).clamp(0, 1) for frame in clip]
        figures[f"{name}, rendering"] = round(change(renderings), 2)
    return figures


def save_sheet(rows: list[list[Tensor]], labels: list[list[str]], path: Path, side: int = 192) -> None:
    """A grid of pictures (1, 3, H, W) with labels, as WebP."""
    sheet = Image.new("RGB", (side * max(map(len, rows)), (side + 16) * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            pixels = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
            tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(tile, (j * side, i * (side + 16) + 16))
            pen.text((j * side + 3, i * (side + 16) + 2), labels[i][j][:36], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=84, method=6)


def draw_sheets(sampler: Sampler, folder: Path) -> None:
    """The contact sheets of the model card."""
    people = {name: photograph(name) for name in ("astronaut", "chelsea", "coffee")}
    tiles: list[tuple[str, list[Tensor]]] = [("input", list(people.values()))]
    tiles += [
        (style.words[0], [sampler.repaint(x, style.words[0]) for x in people.values()])
        for style in ALL_STYLES.values()
    ]
    rows, labels = [], []
    for start in range(0, len(tiles), 7):
        part = tiles[start : start + 7]
        for index in range(len(people)):
            rows.append([pictures[index] for _, pictures in part])
            labels.append([name if index == 0 else "" for name, _ in part])
    save_sheet(rows, labels, folder / "styles.webp")

    rows, labels = [], []
    for prompt in ("pencil sketch", "oil painting", "neon", "sunset"):
        strengths = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
        rows.append([sampler.repaint(people["astronaut"], prompt, s) for s in strengths])
        labels.append([f"{prompt}, {s}" for s in strengths])
    save_sheet(rows, labels, folder / "strength.webp")

    combos = (
        "watercolor sunset", "winter oil painting", "pixel art, night", "comic book, autumn",
        "mosaic at sunset", "a pencil sketch of a woman, sepia", "",
    )  # fmt: skip
    rows = [[sampler.repaint(x, prompt) for prompt in combos] for x in people.values()]
    save_sheet(
        rows, [[prompt or "(empty prompt)" for prompt in combos]] * len(rows), folder / "combinations.webp"
    )

    prompts = (
        "mountains", "mountains at sunset with the sun", "the sea, clouds",
        "the sea at night with the moon", "a beach", "a lake in the morning", "a forest in autumn",
        "a forest in winter, snow", "a desert", "city skyline", "a city at night",
        "green hills, flowers, spring", "space", "a red circle", "a blue square on a yellow background",
        "a yellow star on blue", "a pink heart", "watercolor mountains", "pixel art city at night",
        "rain over the sea", "a field in the fog",
    )  # fmt: skip
    rows, labels = [], []
    for start in range(0, len(prompts), 7):
        asked = prompts[start : start + 7]
        for seed in (1, 2, 3):
            rows.append([sampler.imagine(prompt, seed) for prompt in asked])
            labels.append([f"{prompt} #{seed}" for prompt in asked])
    save_sheet(rows, labels, folder / "scenes.webp")

    rows, labels = [], []
    for steps in (1, 2, 4):
        row = [
            sampler.imagine(p, 5, steps)
            for p in ("mountains at sunset with the sun", "a city at night", "a forest")
        ]
        row += [
            sampler.repaint(people["astronaut"], p, 0.5, steps)
            for p in ("pencil sketch", "oil painting", "cartoon")
        ]
        rows.append(row)
        labels.append([f"{steps} step{'s' if steps > 1 else ''}"] * len(row))
    save_sheet(rows, labels, folder / "steps.webp")

    day, sunset = (sampler.encode_prompt(p) for p in ("mountains in summer", "mountains at sunset"))
    shares = [k / 6 for k in range(7)]
    blend = [sampler.imagine(torch.lerp(day, sunset, share), 4) for share in shares]
    save_sheet([blend], [[f"prompt blend {share:.2f}" for share in shares]], folder / "blend.webp")

    big = photograph("astronaut", 512)
    row = [sampler.repaint(big, p) for p in ("pencil sketch", "oil painting", "neon")]
    row.append(sampler.imagine("mountains at sunset with the sun", 3, 1, 512, 512))
    save_sheet([row], [["512 pixels"] * 4], folder / "large.webp", side=336)


def measure_speed(sampler: Sampler, size: int, frames: int = 12) -> float:
    """Milliseconds of one image-mode step (encode, UNet, decode) in float32, the quickest of some."""
    x = photograph("astronaut", size)
    context = sampler.encode_prompt("pencil sketch")
    times = []
    for _ in range(frames):
        begin = time.perf_counter()
        sampler.repaint(x, context)
        times.append(time.perf_counter() - begin)
    return round(1000 * min(times), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the embedded model on photographs it never saw.")
    parser.add_argument("--model", type=Path, default=Path("models/mini"))
    parser.add_argument("--results", type=Path, default=Path("training/mini/results.json"))
    parser.add_argument("--no-sheets", action="store_true")
    parser.add_argument("--device", default="cpu", help="of the model; frames are timed on the CPU alone")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sampler = Sampler.from_folder(str(arguments.model), arguments.device)
    results: dict[str, Any] = {
        "autoencoder_psnr_256": measure_autoencoder(sampler),
        "autoencoder_psnr_512": measure_autoencoder(sampler, 512),
        "styles_1_step": measure_styles(sampler, ALL_STYLES),
        "styles_2_steps": measure_styles(sampler, ALL_STYLES, 2),
        "styles_4_steps": measure_styles(sampler, ALL_STYLES, 4),
        "scenes_1_step": measure_scenes(sampler, 1),
        "scenes_4_steps": measure_scenes(sampler, 4),
        "drawn_scenes": {f"{steps} steps": measure_drawn_scenes(sampler, steps) for steps in (1, 2, 4)},
        "drawn_scenes_512": {
            f"{steps} steps": measure_drawn_scenes(sampler, steps, 512, 1) for steps in (1, 4)
        },
        "steadiness": measure_steadiness(sampler),
    }
    if arguments.device == "cpu":
        results["frame_ms_float32"] = {
            "threads": torch.get_num_threads(),
            "256": measure_speed(sampler, 256),
            "512": measure_speed(sampler, 512),
        }
    arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    log.info("%s", json.dumps(results, indent=1))
    if not arguments.no_sheets:
        draw_sheets(sampler, arguments.model / "sheets")


if __name__ == "__main__":
    main()
