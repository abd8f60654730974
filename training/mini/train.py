"""Train the embedded model from nothing: `python -m training.mini.train --minutes 10 --out runs/mini`.

Three phases by the clock: the autoencoder, then a pool of drawn samples in its latents, then text encoder
and UNet together. Checkpoints are written all along; `--resume DIR` goes on from one with a fresh optimiser,
so that a run can be split. `--export DIR` writes the diffusers folder at the end. LOG.md says what was tried
and what came of it.
"""

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.mini.model import FACTOR, GRID, Parts, noise_levels
from training.mini.prompts import Request, phrase, picture_request, scene_request, style_request
from training.mini.scenes import draw_scene
from training.mini.sources import draw_sources
from training.mini.styles import apply
from training.mini.tokenizer import MAX_TOKENS

log = logging.getLogger("training.mini")
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Shape:
    """One picture size of the UNet's training.

    Attributes:
        every: the size of every so many-th step; of several sizes due, the last listed is taken.
        batch: rows of a step.
        scenes: share of video mode among fresh rows; the others are repainted pictures.
        pool: drawn samples kept at a time.
        crop: train on square windows of so many pixels and on the favourite styles; moods need the whole
            picture.
    """

    height: int
    width: int
    every: int
    batch: int
    scenes: float
    pool: int
    crop: int | None = None


@dataclass(frozen=True)
class Settings:
    """Sizes and times of one run; the defaults fill one large GPU for ten minutes.

    `near` is the share of noised sources near the default strength; `favourites` are styles asked for more
    often in windows; `steps` ends the UNet's training early; the first of `shapes` is the one that is
    compiled, and that the autoencoder learns from.
    """

    minutes: float = 9.4
    vae_minutes: float = 1.0
    shapes: tuple[Shape, ...] = (
        Shape(256, 256, 1, 512, 0.5, 8192),
        Shape(512, 512, 24, 128, 0.5, 512),
        Shape(256, 448, 20, 288, 0.5, 512),
    )
    vae_batch: int = 128
    vae_crop: int = 128
    vae_pool: int = 2048
    chunk: int = 256
    group: int = 16
    refresh_every: int = 8
    pixel_share: float = 0.25
    near: float = 0.5
    rate: float = 1.6e-3
    vae_rate: float = 2e-3
    decay: float = 0.999
    favourites: tuple[str, ...] = ()
    compile: bool = True
    steps: int | None = None
    seed: int = 0


REFINE = Settings(
    minutes=60,
    vae_minutes=0,
    shapes=(Shape(256, 256, 1, 12, 0.0, 160, crop=128), Shape(256, 256, 10, 4, 0.5, 64)),
    chunk=16,
    group=2,
    refresh_every=64,
    near=0.9,
    pixel_share=0.34,
    rate=1e-3,
    decay=0.99,
    favourites=("pencil", "oil", "watercolor", "cartoon", "comic", "mosaic", "pixel_art", "charcoal"),
    compile=False,
    seed=1,
)
"""An hour on a few CPU cores that goes on from a checkpoint: small pictures, mostly the styles that are
hard.
"""

SMALL = Settings(
    minutes=0.5,
    vae_minutes=0.15,
    shapes=(Shape(64, 64, 1, 8, 0.5, 32), Shape(64, 96, 4, 8, 0.5, 8)),
    vae_batch=8,
    vae_crop=32,
    vae_pool=16,
    chunk=8,
    group=4,
    compile=False,
)
"""The same run for a test: everything is walked through, nothing is learned well."""


class Drawer:
    """Draws training pairs: a source picture, what the prompt makes of it, and the prompt's tokens."""

    def __init__(self, parts: Parts, settings: Settings, device: torch.device) -> None:
        self.tokenizer = parts.tokenizer
        self.settings = settings
        self.device = device
        self.random = random.Random(settings.seed)

    def tokens(self, requests: list[Request]) -> Tensor:
        texts = [phrase(request, self.random) for request in requests]
        encoded = self.tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True)
        return torch.tensor(encoded["input_ids"], device=self.device)

    def _groups(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self.settings.group):
            yield slice(start, min(start + self.settings.group, count))

    def pictures(
        self, count: int, height: int, width: int, moods: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sources and repainted pictures (B, 3, H, W) in [0, 1], and tokens (B, 32): image mode."""
        sources = draw_sources(count, height, width, self.device)
        order = torch.randperm(count, device=self.device)
        sources = sources[order]
        # Some sources are landscapes, which people also show to a camera.
        some = max(1, count // 8)
        noise = torch.randn(some, 4, height // FACTOR, width // FACTOR, device=self.device)
        scene = scene_request(self.random).scene
        assert scene is not None
        sources[:some] = draw_scene(noise, scene)
        targets, requests = [], []
        for part in self._groups(count):
            if moods:
                request = picture_request(self.random)
            else:
                request = style_request(self.random, self.settings.favourites)
            targets.append(apply(sources[part], request.style, request.mood))
            requests += [request] * (part.stop - part.start)
        return sources, torch.cat(targets), self.tokens(requests)

    def scenes(self, count: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noise (B, 4, h, w), the scene it stands for (B, 3, H, W), and tokens: video mode."""
        noise = torch.randn(count, 4, height // FACTOR, width // FACTOR, device=self.device)
        targets, requests = [], []
        for part in self._groups(count):
            request = scene_request(self.random)
            assert request.scene is not None
            targets.append(apply(draw_scene(noise[part], request.scene), request.style, request.mood))
            requests += [request] * (part.stop - part.start)
        return noise, torch.cat(targets), self.tokens(requests)


def _bytes(x: Tensor) -> Tensor:
    return (x * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    d = a - b
    return (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()


def _picture_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 on pixels, on their differences, and on 8-pixel means; pictures in [-1, 1]."""
    return (a - b).abs().mean() + _gradient_loss(a, b) + functional.avg_pool2d(a - b, 8).abs().mean()


def _rate(progress: float, step: int, peak: float, warmup: int) -> float:
    """Linear warm-up by steps, then cosine decay by the clock to 2 % of the peak."""
    return (
        peak
        * min(1.0, (step + 1) / warmup)
        * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
    )


class Average:
    """Exponential moving average of parameters; what is shipped."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self.live = [p for module in modules for p in module.parameters()]
        self.shadow = [p.detach().clone() for p in self.live]
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live and averaged values in place."""
        for live, shadow in zip(self.live, self.shadow, strict=True):
            held = live.detach().clone()
            live.copy_(shadow)
            shadow.copy_(held)


class Run:
    """One training run on one device."""

    def __init__(self, settings: Settings, device: torch.device, out: Path, resume: Path | None) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = device
        self.out = out
        self.start = time.monotonic()
        self.parts = Parts()
        if resume is not None:
            self.parts.load(resume)
        # The CPU's half precision gradients are slow in that layout, a GPU's fast.
        self.layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        parts: Any = self.parts.to(device)
        parts.to(memory_format=self.layout)
        self.drawer = Drawer(self.parts, settings, device)
        self.b = torch.tensor(noise_levels(), dtype=torch.float32, device=device)
        self.autocast = torch.autocast(device.type, torch.bfloat16)
        self.history: list[dict[str, float]] = []
        self.saved = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def _compiled(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        return torch.compile(function, dynamic=False) if self.settings.compile else function

    def note(self, **values: float) -> None:
        self.history.append({"seconds": round(self.seconds(), 1), **values})
        log.info("%s", json.dumps(self.history[-1]))

    def save(self) -> None:
        self.parts.save(self.out)
        (self.out / "history.json").write_text(json.dumps(self.history) + "\n")
        self.saved = time.monotonic()

    # Autoencoder

    def train_vae(self, until: float) -> None:
        """Learn to copy drawn pictures, plain and styled, through 4 noisy latent channels of about unit
        variance.
        """
        s, vae = self.settings, self.parts.vae
        vae.train()
        begin, main = self.seconds(), s.shapes[0]

        def draw(rows: int) -> Tensor:
            sources, styled, _ = self.drawer.pictures(rows // 2, main.height, main.width)
            _, scenes, _ = self.drawer.scenes(rows - rows // 2, main.height, main.width)
            sources[rows // 4 :] = styled[rows // 4 :]
            return _bytes(torch.cat([sources, scenes]))

        def loss_of(x: Tensor, noise: Tensor) -> Tensor:
            with self.autocast:
                z = vae.encode(x).latents
                y = vae.decode(z + noise * 0.05).sample
            z, y = z.float(), y.float()
            flat = z.movedim(1, -1).reshape(-1, z.shape[1])
            mean = flat.mean(0)
            spread = (flat - mean).T @ (flat - mean) / len(flat)
            shape = (spread - torch.eye(len(mean), device=z.device)).square().mean() + mean.square().mean()
            bound = functional.relu(z.abs() - 2.6).mean()
            loss: Tensor = _picture_loss(y, x) + 0.05 * shape + 0.5 * bound
            return loss

        loss_function = self._compiled(loss_of)
        optimiser = torch.optim.AdamW(vae.parameters(), lr=s.vae_rate, betas=(0.9, 0.99), weight_decay=0.0)
        average = Average([vae], 0.998)
        rows = min(s.chunk, s.vae_pool)
        pool = torch.cat([draw(rows) for _ in range(s.vae_pool // rows)])
        step = 0
        while self.seconds() < until:
            if step % 24 == 23:
                where = step // 24 % (len(pool) // rows) * rows
                pool[where : where + rows] = draw(rows)
            top = int(torch.randint(0, main.height - s.vae_crop + 1, ()))
            left = int(torch.randint(0, main.width - s.vae_crop + 1, ()))
            index = torch.randint(0, len(pool), (s.vae_batch,), device=self.device)
            x = pool[index][:, :, top : top + s.vae_crop, left : left + s.vae_crop].float() / 127.5 - 1
            x = x.contiguous(memory_format=self.layout)
            noise = torch.randn(len(x), 4, s.vae_crop // FACTOR, s.vae_crop // FACTOR, device=self.device)
            for group in optimiser.param_groups:
                group["lr"] = _rate((self.seconds() - begin) / max(1e-6, until - begin), step, s.vae_rate, 50)
            loss = loss_function(x, noise)
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update()
            if step % 250 == 0:
                self.note(phase=1, step=step, vae_loss=round(loss.item(), 4))
            step += 1
        average.swap()
        vae.eval().requires_grad_(False)
        self.note(phase=1, step=step, vae_loss=round(loss.item(), 4) if step else 0.0)

    # UNet and text encoder

    def unet_loss(
        self, x: Tensor, t: Tensor, context: Tensor, target: Tensor, pixels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, its latent part, the predicted clean latents; `pixels` are of the first rows only."""
        with self.autocast:
            predicted = self.parts.unet(x, t, context).sample
            decoded = self.parts.vae.decode(predicted[: len(pixels)]).sample
        predicted = predicted.float()
        latent = (predicted - target).abs().mean()
        picture = _picture_loss(decoded.float(), pixels.float() / 127.5 - 1)
        return latent + picture, latent.detach(), predicted.detach()

    def train_unet(self, until: float) -> None:
        """Learn the clean latent of what the prompt asks for, from pure noise or from a noised source."""
        s, parts = self.settings, self.parts
        unet, text = parts.unet.train(), parts.text.train()
        parts.vae.eval().requires_grad_(False)
        modules: list[nn.Module] = [unet, text]
        parameters = [p for module in modules for p in module.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=s.rate, betas=(0.9, 0.99), weight_decay=0.01)
        average = Average(modules, s.decay)

        loss_of = self.unet_loss
        compiled = self._compiled(loss_of)
        pools = {shape: Pool(self, shape) for shape in s.shapes}
        for pool in pools.values():
            pool.fill()
        self.note(phase=2, step=0)
        begin, step, rows = self.seconds(), 0, 0
        carries: dict[Shape, Carry] = {}
        while self.seconds() < until and step != s.steps:
            shape = next(shape for shape in reversed(s.shapes) if step % shape.every == shape.every - 1)
            pool = pools[shape]
            if step % s.refresh_every == 0:
                pool.refresh()
            batch, carried = self.assemble(pool, carries.get(shape))
            rows += len(batch.x)
            with self.autocast:
                context = text(batch.tokens)[0]
            for group in optimiser.param_groups:
                group["lr"] = _rate((self.seconds() - begin) / max(1e-6, until - begin), step, s.rate, 150)
            function = compiled if shape == s.shapes[0] else loss_of
            share = max(1, int(len(batch.x) * s.pixel_share))
            loss, latent, predicted = function(batch.x, batch.t, context, batch.target, batch.pixels[:share])
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update()
            carries[shape] = batch.carry(predicted, carried)
            if step % 50 == 0:
                values = {"loss": round(loss.item(), 4), "latent": round(latent.item(), 4)}
                self.note(phase=2, step=step, samples=rows, **values)
                if time.monotonic() - self.saved > 45:
                    average.swap()
                    self.save()
                    average.swap()
            step += 1
        average.swap()
        self.note(phase=2, step=step, samples=rows)
        self.save()

    def assemble(self, pool: "Pool", carry: "Carry | None") -> "tuple[Batch, int]":
        """A batch of three kinds: scenes from pure noise, noised sources, and the model's own results once
        more.

        The rows are mixed by a permutation, so that the first ones (whose pixels are compared) are of all
        kinds.
        """
        carried = 0 if carry is None else len(carry.latent)
        rows = pool.shape.batch
        first = round((rows - carried) * pool.shape.scenes)
        rest = rows - carried - first
        v = torch.randint(0, pool.scenes, (first,), device=self.device)
        i = torch.randint(pool.scenes, pool.size, (rest,), device=self.device)
        # Time steps: a share of the noised sources near the default strength, the others anywhere below pure
        # noise.
        grid = torch.tensor(GRID, device=self.device)
        close = int(rest * self.settings.near)
        near = torch.randint(18, 32, (close,), device=self.device)
        wide = torch.randint(1, 50, (rest - close,), device=self.device)
        ti = grid[torch.cat([near, wide])]
        small, large = pool.window()
        source, target = pool.source[i][small].float(), pool.target[i][small].float()
        pixels = pool.pixels[i][large]
        # Below half strength the result moves from the source to the repainted picture.
        move = (ti.float() / 420).clamp(0, 1).view(-1, 1, 1, 1)
        move = move * move * (3 - 2 * move)
        styled = (torch.rand(rest, 1, 1, 1, device=self.device) < 0.15).float()
        move = torch.maximum(move, styled)
        start = source + (target - source) * styled
        target = source + (target - source) * move
        drawn = pool.drawn[i][large].float()
        pixels = _bytes((drawn + (pixels.float() - drawn) * move) / 255)
        latents = [torch.zeros_like(target[:1]).expand(first, -1, -1, -1), start]
        times = [torch.full((first,), 999, device=self.device), ti]
        targets, tokens = [pool.target[v][small].float(), target], [pool.tokens[v], pool.tokens[i]]
        pictures = [pool.pixels[v][large], pixels]
        noises = [pool.source[v][small].float(), torch.randn_like(start)]
        if carry is not None:
            share = torch.rand(carried, device=self.device) * 0.9 + 0.05
            later = ((share * (carry.t + 1) / 20).round().clamp(min=1) * 20 - 1).long()
            latents.append(carry.latent)
            times.append(later)
            targets.append(carry.target)
            tokens.append(carry.tokens)
            pictures.append(carry.pixels)
            noises.append(torch.randn_like(carry.latent))
        t = torch.cat(times)
        b = self.b[t].view(-1, 1, 1, 1)
        x = torch.sqrt(1 - b * b) * torch.cat(latents) + b * torch.cat(noises)
        x[:first] = noises[0]
        # Rows worth a second look: scenes from pure noise, sources at half strength and above, and some
        # carried ones.
        keep = max(1, rows * 18 // 100)
        eligible = torch.cat(
            [torch.arange(first), first + torch.arange(close), first + rest + torch.arange(carried // 3)]
        )
        chosen = eligible[torch.randperm(len(eligible))[:keep]].to(self.device)
        order = torch.randperm(rows, device=self.device)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(rows, device=self.device)
        return (
            Batch(
                x[order].contiguous(memory_format=self.layout),
                t[order],
                torch.cat(tokens)[order],
                torch.cat(targets)[order],
                torch.cat(pictures)[order],
                inverse[chosen],
            ),
            carried,
        )


@dataclass
class Carry:
    """Results of the last step, to be noised and corrected: how the model learns to use further steps."""

    latent: Tensor
    target: Tensor
    pixels: Tensor
    tokens: Tensor
    t: Tensor


@dataclass
class Batch:
    """One batch: noisy latents x, time steps t, prompt tokens, target latents and target pictures (bytes)."""

    x: Tensor
    t: Tensor
    tokens: Tensor
    target: Tensor
    pixels: Tensor
    again: Tensor

    def carry(self, predicted: Tensor, carried: int) -> Carry:
        rows = self.again
        return Carry(predicted[rows], self.target[rows], self.pixels[rows], self.tokens[rows], self.t[rows])


class Pool:
    """Drawn samples kept on the device and replaced a chunk at a time: the first half scenes, the second
    repainted sources.

    `source` holds the noise of a scene, or the latent of a source picture; `target` the latent of the result;
    `drawn` and `pixels` the pictures before and after, as bytes.
    """

    def __init__(self, run: Run, shape: Shape) -> None:
        self.run, self.shape, self.size = run, shape, shape.pool
        self.scenes = max(1, round(shape.pool * shape.scenes))
        size, h, w = shape.pool, shape.height, shape.width
        device = run.device
        latent = (size, 4, h // FACTOR, w // FACTOR)
        self.source = torch.zeros(latent, dtype=torch.bfloat16, device=device)
        self.target = torch.zeros(latent, dtype=torch.bfloat16, device=device)
        self.drawn = torch.zeros((size, 3, h, w), dtype=torch.uint8, device=device)
        self.pixels = torch.zeros((size, 3, h, w), dtype=torch.uint8, device=device)
        self.tokens = torch.zeros((size, MAX_TOKENS), dtype=torch.long, device=device)
        self.next = 0

    @torch.no_grad()
    def _encode(self, pictures: Tensor) -> Tensor:
        with self.run.autocast:
            x = (pictures * 2 - 1).contiguous(memory_format=self.run.layout)
            latents: Tensor = self.run.parts.vae.encode(x).latents
        return latents

    @torch.no_grad()
    def _write(self, start: int, rows: int, scenes: bool) -> None:
        part = slice(start, start + rows)
        if scenes:
            noise, target, tokens = self.run.drawer.scenes(rows, self.shape.height, self.shape.width)
            self.source[part] = noise
        else:
            h, w = self.shape.height, self.shape.width
            drawn, target, tokens = self.run.drawer.pictures(rows, h, w, moods=self.shape.crop is None)
            self.source[part] = self._encode(drawn)
            self.drawn[part] = _bytes(drawn)
        self.target[part] = self._encode(target)
        self.pixels[part] = _bytes(target)
        self.tokens[part] = tokens

    def window(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where to cut latents and pictures: a random place on the 32-pixel grid of the styles' patterns."""
        if self.shape.crop is None:
            return (slice(None),), (slice(None),)
        top, left = (
            32 * int(torch.randint(0, (size - self.shape.crop) // 32 + 1, ()))
            for size in (self.shape.height, self.shape.width)
        )

        def cut(factor: int) -> tuple[slice, ...]:
            side = self.shape.crop // factor if self.shape.crop else 0
            begin = (top // factor, left // factor)
            return (slice(None), slice(None), *(slice(b, b + side) for b in begin))

        return cut(FACTOR), cut(1)

    def fill(self) -> None:
        chunk = self.run.settings.chunk
        for start in range(0, self.scenes, chunk):
            self._write(start, min(chunk, self.scenes - start), True)
        for start in range(self.scenes, self.size, chunk):
            self._write(start, min(chunk, self.size - start), False)

    def refresh(self) -> None:
        """Replace one chunk, scenes as often as their share."""
        scenes = random.Random(self.next).random() < self.shape.scenes
        first, span = (0, self.scenes) if scenes else (self.scenes, self.size - self.scenes)
        chunk = min(self.run.settings.chunk, span)
        self._write(first + self.next % (span // chunk) * chunk, chunk, scenes)
        self.next += 1


def main(arguments_given: list[str] | None = None) -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="folder of the checkpoint")
    parser.add_argument("--resume", type=Path, help="folder of a checkpoint to go on from")
    parser.add_argument("--export", type=Path, help="write the diffusers folder here at the end")
    parser.add_argument("--minutes", type=float, help="wall clock of the whole run")
    parser.add_argument(
        "--vae-minutes", type=float, help="part of it for the autoencoder; 0 keeps the resumed one"
    )
    parser.add_argument("--rate", type=float, help="peak learning rate of the UNet")
    parser.add_argument("--steps", type=int, help="stop the UNet after so many steps")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--refine", action="store_true", help="settings of an hour on CPU cores, with --resume")
    size.add_argument("--small", action="store_true", help="settings of a test")
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args(arguments_given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = SMALL if arguments.small else REFINE if arguments.refine else Settings()
    chosen = {
        name: getattr(arguments, name)
        for name in ("minutes", "vae_minutes", "rate", "steps")
        if getattr(arguments, name) is not None
    }
    if arguments.no_compile:
        chosen["compile"] = False
    settings = replace(settings, **chosen)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    run = Run(settings, device, arguments.out, arguments.resume)
    if settings.vae_minutes > 0:
        run.train_vae(settings.vae_minutes * 60)
        run.save()
    run.train_unet(settings.minutes * 60)
    if arguments.export is not None:
        run.parts.export(arguments.export)


if __name__ == "__main__":
    main()
