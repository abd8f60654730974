"""Train the embedded model from nothing: `python -m training.mini.train --minutes 10 --out runs/mini`.

Three phases by the clock: the autoencoder, then pools of drawn samples in its latents, then text encoder and
UNet together. Checkpoints are written all along; `--resume DIR` goes on from one with a fresh optimiser, so
that a run can be split. `--export DIR` writes the diffusers folder at the end. LOG.md says what was tried and
what came of it.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.mini.batch import Batch, Carry, assemble
from training.mini.drawing import Drawer, Pool, as_bytes
from training.mini.losses import Discriminator, picture_loss
from training.mini.model import FACTOR, GRID, Parts, noise_levels
from training.mini.settings import COMPILE_ONLY, SMALL, Settings, Shape

log = logging.getLogger("training.mini")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _rate(progress: float, step: int, peak: float, warmup: int) -> float:
    """Linear warm-up by steps, then cosine decay by the clock to 1 % of the peak."""
    decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * min(1.0, (step + 1) / warmup) * decay


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
        self.grid = torch.tensor(GRID, device=device)
        self.autocast = torch.autocast(device.type, torch.bfloat16)
        self.history: list[dict[str, float]] = []
        self.saved = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def compiled(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        return torch.compile(function, dynamic=False) if self.settings.compile else function

    def optimiser(self, parameters: list[nn.Parameter], rate: float, decay: float) -> torch.optim.AdamW:
        fused = self.device.type == "cuda"
        return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=decay, fused=fused)

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
        rows = min(s.group, s.vae_pool // 2)

        def draw(scenes: bool) -> Tensor:
            if scenes:
                return as_bytes(self.drawer.scenes(rows, main)[1])
            sources, styled, _ = self.drawer.pictures(rows, main)
            sources[rows // 2 :] = styled[rows // 2 :]
            return as_bytes(sources)

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
            loss: Tensor = picture_loss(y, x) + 0.05 * shape + 0.5 * bound
            return loss

        loss_function = self.compiled(loss_of)
        parameters = list(vae.parameters())
        optimiser = self.optimiser(parameters, s.vae_rate, 0.0)
        average = Average([vae], 0.998)
        pool = torch.cat([draw(k % 2 == 1) for k in range(s.vae_pool // rows)])
        self.note(phase=1, step=0)
        step = 0
        while self.seconds() < until:
            if step % 4 == 3:
                where = step // 4 % (len(pool) // rows) * rows
                pool[where : where + rows] = draw(step // 4 % 2 == 1)
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
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update()
            if step % 50 == 0:  # reading a figure keeps the queue of work short, so that the clock is right
                value = round(loss.item(), 4)
                if step % 500 == 0:
                    self.note(phase=1, step=step, vae_loss=value)
            step += 1
        average.swap()
        vae.eval().requires_grad_(False)
        self.note(phase=1, step=step, vae_loss=round(loss.item(), 4) if step else 0.0)

    # UNet and text encoder

    def predict(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        with self.autocast:
            predicted: Tensor = self.parts.unet(x, t, context).sample
        return predicted.float()

    def loss(
        self, predicted: Tensor, target: Tensor, shown: Tensor, pixels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, its latent part, and the decoded windows `shown` of the prediction in [-1, 1]."""
        with self.autocast:
            decoded = self.parts.vae.decode(shown).sample
        decoded = decoded.float()
        latent = (predicted - target).abs().mean()
        return latent + picture_loss(decoded, pixels.float() / 127.5 - 1), latent.detach(), decoded

    def window(self, predicted: Tensor, batch: Batch, shape: Shape) -> tuple[Tensor, Tensor]:
        """One window of the first rows: predicted latents, and target pictures as bytes."""
        s = self.settings
        side, rows = s.window, max(1, int(len(predicted) * s.pixel_rows))
        top, left = (
            32 * int(torch.randint(0, (size - side) // 32 + 1, ())) for size in (shape.height, shape.width)
        )
        small = predicted[
            :rows, :, top // FACTOR : (top + side) // FACTOR, left // FACTOR : (left + side) // FACTOR
        ]
        large = batch.pixels[:rows, :, top : top + side, left : left + side]
        return small.contiguous(memory_format=self.layout), large.contiguous(memory_format=self.layout)

    def train_unet(self, until: float) -> None:
        """Learn the clean latent of what the prompt asks for, from pure noise or from a noised source."""
        s, parts = self.settings, self.parts
        parts.vae.eval().requires_grad_(False)
        modules: list[nn.Module] = [parts.unet.train(), parts.text.train()]
        parameters = [p for module in modules for p in module.parameters()]
        optimiser = self.optimiser(parameters, s.rate, 0.01)
        average = Average(modules, s.decay)
        critic = Critic(self) if s.adversarial else None
        predict, loss_of = self.compiled(self.predict), self.compiled(self.loss)
        pools = {shape: Pool(self, shape) for shape in s.shapes}
        self.note(phase=2, step=0)
        begin, step, rows = self.seconds(), 0, 0
        carries: dict[Shape, Carry] = {}
        while self.seconds() < until and step != s.steps:
            shape = next(shape for shape in reversed(s.shapes) if step % shape.every == shape.every - 1)
            main = shape == s.shapes[0]
            progress = (self.seconds() - begin) / max(1e-6, until - begin)
            batch = assemble(pools[shape], carries.get(shape), s, self.b, self.grid)
            pools[shape].refresh()
            rows += len(batch.x)
            with self.autocast:
                context = parts.text(batch.tokens)[0]
            for group in optimiser.param_groups:
                group["lr"] = _rate(progress, step, s.rate, s.warmup)
            x = batch.x.contiguous(memory_format=self.layout)
            predicted = (predict if main else self.predict)(x, batch.t, context)
            shown, pixels = self.window(predicted, batch, shape)
            loss, latent, decoded = (loss_of if main else self.loss)(predicted, batch.target, shown, pixels)
            if critic is not None and progress > 1 - s.adversarial_share:
                loss = loss + s.adversarial * critic.judge(decoded, pixels.float() / 127.5 - 1)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update()
            carries[shape] = batch.carry(predicted.detach())
            if step % 50 == 0:
                values = {"loss": loss.item(), "latent": latent.item(), "norm": norm.item()}
                if step % 200 == 0:
                    self.note(phase=2, step=step, rows=rows, **{k: round(v, 4) for k, v in values.items()})
                if time.monotonic() - self.saved > 60:
                    average.swap()
                    self.save()
                    average.swap()
            step += 1
        average.swap()
        self.note(phase=2, step=step, rows=rows)
        self.save()


class Critic:
    """A discriminator and its training."""

    def __init__(self, run: Run) -> None:
        self.run = run
        network: Any = Discriminator().to(run.device)
        self.network: Discriminator = network.to(memory_format=run.layout)
        self.optimiser = run.optimiser(list(self.network.parameters()), 5e-4, 0.0)

    def judge(self, painted: Tensor, drawn: Tensor) -> Tensor:
        """Train on the pictures (in [-1, 1]), then say what the model should minimise."""
        self.network.requires_grad_(True)
        with self.run.autocast:
            loss = self.network.own_loss(painted.detach(), drawn)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.network.requires_grad_(False)
        with self.run.autocast:
            return self.network.opinion(painted, drawn)


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = SMALL if arguments.small else COMPILE_ONLY if arguments.compile_only else Settings()
    names = ("minutes", "vae_minutes", "rate", "warmup", "steps", "adversarial", "adversarial_share", "seed")
    chosen = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.no_compile:
        chosen["compile"] = False
    return replace(settings, **chosen)


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
    parser.add_argument("--warmup", type=int, help="steps until that rate is reached")
    parser.add_argument("--steps", type=int, help="stop the UNet after so many steps")
    parser.add_argument("--adversarial", type=float, help="weight of the discriminator's opinion")
    parser.add_argument("--adversarial-share", type=float, help="last part of the run that listens to it")
    parser.add_argument("--seed", type=int)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="settings of a test")
    size.add_argument(
        "--compile-only", action="store_true", help="two steps that fill the compiler's cache beside a run"
    )
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args(arguments_given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = _settings(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    run = Run(settings, device, arguments.out, arguments.resume)
    if settings.vae_minutes > 0:
        run.train_vae(settings.vae_minutes * 60)
        run.save()
    run.train_unet(settings.minutes * 60)
    if arguments.export is not None:
        run.parts.export(arguments.export)


if __name__ == "__main__":
    main()
