"""Batches of three kinds of rows: scenes from noise, noised sources, and the model's own results again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.mini.drawing import Pool, as_bytes
from training.mini.model import GRID
from training.mini.settings import Settings

LAST_STEPS = 400
"""Below this time step a source may be one that is repainted already."""


@dataclass
class Carry:
    """Results of the last step, to be noised and improved: how the model learns to use further steps."""

    latent: Tensor
    target: Tensor
    pixels: Tensor
    tokens: Tensor
    t: Tensor

    def later(self) -> Tensor:
        """The time steps at which the results are looked at again: mostly those of two and four steps."""
        u = torch.rand(2, len(self.t), device=self.t.device)
        usual = torch.where(u[1] < 0.45, 0.5, torch.where(u[1] < 0.8, 0.75, 0.67))
        share = torch.where(u[0] < 0.75, usual, u[1] * 0.9 + 0.05)
        return ((share * (self.t + 1) / 20).round().clamp(min=1) * 20 - 1).long()


@dataclass
class Batch:
    """Noisy latents x, time steps t, prompt tokens, target latents and target pictures (bytes); the rows
    `again` are worth a further step.
    """

    x: Tensor
    t: Tensor
    tokens: Tensor
    target: Tensor
    pixels: Tensor
    again: Tensor

    def carry(self, predicted: Tensor) -> Carry:
        rows = self.again
        return Carry(
            predicted[rows].nan_to_num(0, 0, 0),
            self.target[rows],
            self.pixels[rows],
            self.tokens[rows],
            self.t[rows],
        )


def _times(count: int, near: float, device: torch.device) -> Tensor:
    """Places in GRID for noised sources: a share around the default strength, the others anywhere below pure
    noise.
    """
    close = int(count * near)
    low = torch.randint(18, 34, (2, close), device=device).sum(0) // 2
    return torch.cat([low, torch.randint(1, 50, (count - close,), device=device)])


def assemble(pool: Pool, carry: Carry | None, settings: Settings, b: Tensor, grid: Tensor) -> Batch:
    """A batch from the pool and from the results of the last step.

    The rows are mixed, so that the first ones (whose pixels are compared) are of all kinds; those of further
    steps are twice as likely among them, because each step blurs what the last one left.
    `b` is the share of noise by time step, (1000,); `grid` is GRID on the device.
    """
    device = b.device
    carried = 0 if carry is None else len(carry.latent)
    rows = pool.shape.batch
    first = round((rows - carried) * settings.scenes)
    rest = rows - carried - first
    v = torch.randint(0, pool.scenes, (first,), device=device)
    i = torch.randint(pool.scenes, pool.size, (rest,), device=device)
    ti = grid[_times(rest, settings.near, device)]
    source, target = pool.source[i].float(), pool.target[i].float()
    # Below half strength the result moves from the source to the repainted picture.
    move = (ti.float() / 420).clamp(0, 1).view(-1, 1, 1, 1)
    move = move * move * (3 - 2 * move)
    # What is repainted already stays as it is: the last of several steps. Not at the default strength: a
    # model that must tell there whether a picture is golden already leaves warm photographs as they are.
    done = (ti < LAST_STEPS) & (torch.rand(rest, device=device) < 0.35)
    styled = done.float().view(-1, 1, 1, 1)
    move = torch.maximum(move, styled)
    start = source + (target - source) * styled
    target = source + (target - source) * move
    drawn = pool.drawn[i].float()
    pixels = as_bytes((drawn + (pool.pixels[i].float() - drawn) * move) / 255)
    noise = pool.source[v].float()
    latents, times = [noise, start], [torch.full((first,), GRID[0], device=device), ti]
    targets, tokens = [pool.target[v].float(), target], [pool.tokens[v], pool.tokens[i]]
    pictures = [pool.pixels[v], pixels]
    if carry is not None:
        latents.append(carry.latent)
        times.append(carry.later())
        targets.append(carry.target)
        tokens.append(carry.tokens)
        pictures.append(carry.pixels)
    t = torch.cat(times)
    level = b[t].view(-1, 1, 1, 1)
    clean = torch.cat(latents)
    x = torch.sqrt(1 - level * level) * clean + level * torch.randn_like(clean)
    x[:first] = noise
    # Scenes from pure noise, sources at half strength and above, and some results again.
    worth = torch.cat(
        [
            torch.arange(first + int(rest * settings.near), device=device),
            first + rest + torch.arange(carried // 2, device=device),
        ]
    )
    keep = max(1, int(rows * settings.carried))
    chosen = worth[torch.randperm(len(worth), device=device)[:keep]]
    place = torch.rand(rows, device=device)
    place[first + rest :] *= 0.5
    order = place.argsort()
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(rows, device=device)
    return Batch(
        x[order], t[order], torch.cat(tokens)[order], torch.cat(targets)[order],
        torch.cat(pictures)[order], inverse[chosen],
    )  # fmt: skip
