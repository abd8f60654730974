"""Mend what a word means in scenes: `python -m training.mini.mend autumn --resume runs/1 --out runs/2`.

What a season, a time of day or a weather is called is a mood of image mode, too, and a training run may end
with kinds of scenes that take it for that. Ten minutes on a CPU mend it: scenes that have it learn as in
training, and every other row is held to what the model made of it before. Held rows count by the square of
their change, whose pull ends where nothing has changed. By its amount, as pictures are learned, each step of
chance would be answered by as large a pull as a great fault.
"""

import argparse
import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.mini.average import Average
from training.mini.batch import STRIDE, Batch, Carry, assemble
from training.mini.drawing import Drawer, Pool
from training.mini.model import GRID, PICTURE, boundary
from training.mini.prompts import (
    KIND_WORDS,
    LIGHT_WORDS,
    SEASON_WORDS,
    SEASONLESS,
    SHAPE_WORDS,
    TIME_WORDS,
    WEATHER_WORDS,
    Request,
)
from training.mini.settings import Settings, Shape
from training.mini.train import Run

log = logging.getLogger("training.mini")

SETTINGS = replace(
    Settings(),
    shapes=(Shape(192, 192, 1, 12, 384, 192, 4),),
    minutes=10.0,
    rate=1e-4,
    warmup=20,
    decay=0.98,
    scenes=0.6,
    source_group=12,
    source_every=24,
    graphs=False,
)
SHARE = 0.5
"""Of the landscapes, those that have what is mended."""
HELD = 30.0
"""Weight of what the other rows changed, squared, beside the mended rows' difference to their target."""
TRAITS = {"time": TIME_WORDS, "weather": WEATHER_WORDS, "season": SEASON_WORDS}


def own_words(trait: str, value: str) -> set[str]:
    """Words that only this value of the trait has: by "colors" autumn is known, by "in" it is not."""
    tables = (KIND_WORDS, TIME_WORDS, WEATHER_WORDS, SEASON_WORDS, LIGHT_WORDS, SHAPE_WORDS)
    own = {word for text in TRAITS[trait][value] for word in text.split()}
    for table in tables:
        for name, texts in table.items():
            if table is not TRAITS[trait] or name != value:
                own -= {word for text in texts for word in text.replace(",", "").split()}
    return own


def kinds_with(trait: str, value: str) -> list[str]:
    """Landscapes that show it."""
    plain = SEASONLESS if trait == "season" and value != "winter" else ()
    return [kind for kind in KIND_WORDS if kind != "space" and kind not in plain]


class Aimed(Drawer):
    """Draws landscapes of some kinds mostly with one value of one trait."""

    def __init__(self, run: Run, trait: str, value: str, kinds: Sequence[str]) -> None:
        super().__init__(run.parts, run.settings, run.device)
        self.changed: Any = {trait: value, "light": "none"}
        self.kinds = kinds
        words = " ".join(sorted(own_words(trait, value)))
        ids = self.tokenizer(words, add_special_tokens=False)["input_ids"]
        self.marks = torch.tensor(ids, device=run.device)

    def scene_request(self) -> Request:
        request = super().scene_request()
        scene = request.scene
        if scene is None or scene.kind not in KIND_WORDS or self.random.random() > SHARE:
            return request
        kind = self.random.choice(self.kinds)
        return replace(request, scene=replace(scene, kind=kind, **self.changed))

    def found(self, batch: Batch) -> Tensor:
        """Which rows are scenes whose prompt names it (B), of whatever step."""
        scenes = batch.stages.left == (GRID[0] + 1) // STRIDE
        return scenes & torch.isin(batch.tokens, self.marks).any(1)


def _mean(values: Tensor, rows: Tensor) -> float:
    return round(((values * rows).sum() / rows.sum().clamp(min=1)).item(), 5)


def mend(run: Run, drawer: Aimed) -> None:
    """Learn for the minutes of the settings, and leave the averaged weights in the run's parts."""
    settings, parts = run.settings, run.parts
    shape, run.drawer = settings.shapes[0], drawer
    pool = Pool(run, shape)
    modules: list[nn.Module] = [parts.unet, parts.text]
    before: list[Any] = [copy.deepcopy(module).requires_grad_(False) for module in modules]
    learning = [p for module in modules for p in module.parameters()]
    optimiser = run.optimiser(learning, settings.rate, 0.0)
    average = Average(learning, settings.decay)
    begin, step = time.monotonic(), 0
    carry: Carry | None = None
    while (passed := (time.monotonic() - begin) / (60 * settings.minutes)) < 1 and step != settings.steps:
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / settings.warmup)
            group["lr"] = settings.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * passed)))
        with torch.no_grad():
            batch = assemble(pool, carry, settings, run.b, run.grid)
            pool.refresh()
            skip, out = boundary(batch.t)
            held = before[0](batch.x, batch.t, before[1](batch.tokens)[0]).sample
        made = parts.unet(batch.x, batch.t, parts.text(batch.tokens)[0]).sample
        predicted = skip * batch.x + out * made
        wanted = ((predicted[:, :PICTURE] - batch.target).abs() / out).mean((1, 2, 3))
        changed = (made - held)[:, :PICTURE].square().mean((1, 2, 3))
        aimed = drawer.found(batch)
        optimiser.zero_grad()
        torch.where(aimed, wanted, HELD * changed).mean().backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        average.update()
        carry = batch.carry(predicted.detach(), pool.encode)
        step += 1
        if step % settings.check == 0:
            figures = {"wanted": _mean(wanted, aimed), "changed": _mean(changed, ~aimed)}
            run.note(phase=3, step=step, **figures)
    average.settle()


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    # What need not be named, as summer, has no words to mend.
    values = {value: trait for trait, table in TRAITS.items() for value in table if "" not in table[value]}
    parser.add_argument("value", choices=values, help="what is mended")
    parser.add_argument("--kinds", nargs="+", help="landscapes for which it is mended; else all that show it")
    parser.add_argument("--resume", type=Path, required=True, help="a checkpoint, or a diffusers folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the mended checkpoint")
    parser.add_argument("--export", type=Path, help="write the diffusers folder here")
    parser.add_argument("--minutes", type=float, default=SETTINGS.minutes)
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    arguments = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = replace(SETTINGS, minutes=arguments.minutes, steps=arguments.steps)
    trait = values[arguments.value]
    possible = kinds_with(trait, arguments.value)
    kinds = arguments.kinds or possible
    if unknown := [kind for kind in kinds if kind not in possible]:
        parser.error(f"there is no {', no '.join(unknown)}; there are: {', '.join(possible)}")
    run = Run(settings, torch.device("cpu"), arguments.out, arguments.resume)
    mend(run, Aimed(run, trait, arguments.value, kinds))
    run.save()
    log.info("written to %s", arguments.out)
    if arguments.export is not None:
        run.parts.load(arguments.out)
        run.parts.export(arguments.export)


if __name__ == "__main__":
    main()
