"""Batches of three kinds of rows: scenes from noise, noised sources, and the model's own results again."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.mini.drawing import Pool, as_bytes
from training.mini.model import GRID, PICTURE
from training.mini.ops import blur
from training.mini.settings import Settings

STRIDE = GRID[0] - GRID[1]
REPAINTED = 519
"""Further steps are learned from sources up to this time step. Their results are then looked at below the
default strength's alone, where a model must take nothing for finished: warm photographs are no sunsets.
The plan tells a source from a result, too; training without this limit was not tried since.
"""
FULL = 500
"""Sources below this time step, the default strength's, are repainted in part."""
SHARPEN = 1.0
"""Of what a blur of one pixel takes away, added to what further steps learn."""


@dataclass
class Stages:
    """Where each row stands among the steps of a frame.

    Attributes:
        left: places of the grid from the frame's first step to the picture, as strength has it.
        count: steps of the frame, 2 to 4.
        made: those made before this one.
    """

    left: Tensor
    count: Tensor
    made: Tensor

    def times(self) -> Tensor:
        """The time steps, spaced as the engine spaces them."""
        return (self.left - self.made * self.left // self.count).clamp(min=1) * STRIDE - 1

    def of(self, rows: Tensor) -> "Stages":
        return Stages(self.left[rows], self.count[rows], self.made[rows])

    def following(self) -> "Stages":
        return Stages(self.left, self.count, self.made + 1)


@dataclass
class Carry:
    """Results of the last training step, to be noised and improved: how the model learns further steps."""

    latent: Tensor
    target: Tensor
    pixels: Tensor
    tokens: Tensor
    stages: Stages


@dataclass
class Batch:
    """Noisy latents x with their plan (B, 8, h, w), time steps t, prompt tokens, target latents (B, 4, h, w)
    and target pictures (bytes); the rows `again` go on to a further step.
    """

    x: Tensor
    t: Tensor
    tokens: Tensor
    target: Tensor
    pixels: Tensor
    stages: Stages
    again: Tensor

    def carry(self, predicted: Tensor, encode: Callable[[Tensor], Tensor]) -> Carry:
        """The rows that go on, after this step's results; `encode` makes latents of pictures in [0, 1].

        A pass blurs, and what it blurred is there still, only fainter: what comes after a first step is
        learned from a sharpened picture.
        """
        rows = self.again
        first = self.stages.made[rows].eq(0).view(-1, 1, 1, 1)
        pictures = self.pixels[rows].float() / 255
        sharp = (pictures + SHARPEN * (pictures - blur(pictures, 1.0))).clamp(0, 1)
        return Carry(
            predicted[rows].nan_to_num(0, 0, 0),
            torch.where(first, encode(sharp), self.target[rows]),
            torch.where(first, as_bytes(sharp), self.pixels[rows]),
            self.tokens[rows],
            self.stages.of(rows).following(),
        )


def _times(count: int, near: float, device: torch.device) -> Tensor:
    """Places in GRID for noised sources: a share around the default strength, the others anywhere below pure
    noise.
    """
    close = int(count * near)
    around = torch.randint(20, 30, (2, close), device=device).sum(0) // 2
    return torch.cat([around, torch.randint(1, 50, (count - close,), device=device)])


def assemble(pool: Pool, carry: Carry | None, settings: Settings, b: Tensor, grid: Tensor) -> Batch:
    """A batch from the pool and from the results of the last step.

    The rows are mixed, so that the first ones (whose pixels are compared) are of all kinds; those of further
    steps are twice as likely among them, because sharpening is what is left to do there.
    `b` is the share of noise by time step, (1000,); `grid` is GRID on the device.
    """
    device = b.device
    carried = 0 if carry is None else len(carry.latent)
    rows = pool.shape.batch
    first = round((rows - carried) * settings.scenes)
    rest = rows - carried - first
    fresh = first + rest
    v = torch.randint(0, pool.scenes, (first,), device=device)
    i = torch.randint(pool.scenes, pool.size, (rest,), device=device)
    ti = grid[_times(rest, settings.near, device)]
    source, target = pool.source[i].float(), pool.target[i].float()
    # Up to the default strength the result moves from the source to the repainted picture. What a source
    # asks for then differs from what is left to do in a further step of the same time.
    move = ((ti + 1) / FULL).clamp(max=1).view(-1, 1, 1, 1)
    target = torch.lerp(source[:, :PICTURE], target, move)
    drawn = pool.drawn[i].float()
    pixels = as_bytes((drawn + (pool.pixels[i].float() - drawn) * move) / 255)
    noise = pool.source[v].float()
    times = torch.cat([torch.full((first,), GRID[0], device=device), ti])
    count = torch.randint(2, 5, (fresh,), device=device)
    stages = Stages((times + 1) // STRIDE, count, torch.zeros_like(times))
    latents, targets = [noise, source], [pool.target[v].float(), target]
    tokens, pictures = [pool.tokens[v], pool.tokens[i]], [pool.pixels[v], pixels]
    if carry is not None:
        latents.append(carry.latent)
        targets.append(carry.target)
        tokens.append(carry.tokens)
        pictures.append(carry.pixels)
        both = [(getattr(stages, name), getattr(carry.stages, name)) for name in ("left", "count", "made")]
        stages = Stages(*(torch.cat(pair) for pair in both))
    t = stages.times()
    level = b[t].view(-1, 1, 1, 1)
    clean = torch.cat(latents)
    x = torch.sqrt(1 - level * level) * clean + level * torch.randn_like(clean)
    x[:first] = noise
    # What was begun goes on to its last step, then others begin: sources and half of the scenes, and the
    # other half where these are too few.
    unfinished = stages.made + 1 < stages.count
    begins = torch.zeros(rows, device=device)
    begins[:first] = 1
    begins[: first // 2] = 2
    begins[first:fresh] = 2 * (ti <= REPAINTED).float()
    begins[fresh:] = 3
    wish = unfinished * begins + torch.rand(rows, device=device)
    chosen = wish.topk(max(1, int(rows * settings.carried))).indices
    place = torch.rand(rows, device=device)
    place[fresh:] *= 0.5
    order = place.argsort()
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(rows, device=device)
    return Batch(
        x[order], t[order], torch.cat(tokens)[order], torch.cat(targets)[order],
        torch.cat(pictures)[order], stages.of(order), inverse[chosen],
    )  # fmt: skip
