"""Train the embedded model: `python -m training.mini.train --minutes 10 --out runs/mini`.

Three phases by the clock: the autoencoder, then pools of drawn samples in its latents, then text encoder and
UNet together, at the end against a critic. Checkpoints are written all along; `--resume DIR` goes on from
one, or from a diffusers folder. A run in pieces says which share of the whole each of them is:

    python -m training.mini.train --minutes 9 --share 0 0.4 --out runs/1
    python -m training.mini.train --minutes 12 --share 0.4 1 --vae-minutes 0 --resume runs/1 --out runs/2

`--export DIR` writes the diffusers folder at the end; `training.mini.mend` repairs single words later. LOG.md
says what was tried and what came of it.
"""

import argparse
import copy
import json
import logging
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.mini.average import Average
from training.mini.batch import Batch, Carry, assemble
from training.mini.critic import Critic, Rival
from training.mini.drawing import Drawer, Pool, as_bytes
from training.mini.graphs import Graph, Twin, quick
from training.mini.learner import Ahead, Steps, blank_inputs, learner, work_of
from training.mini.losses import picture_loss
from training.mini.memory import Learners, recall, remember
from training.mini.model import FACTOR, GRID, PICTURE, Parts, noise_levels
from training.mini.settings import SMALL, Settings, Shape, with_rows

log = logging.getLogger("training.mini")


def _rate(progress: float, step: int, peak: float, warmup: int) -> float:
    """Linear warm-up by steps, then cosine decay by the clock to 1 % of the peak."""
    decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * min(1.0, (step + 1) / warmup) * decay


class Run:
    """One training run on one device."""

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        out: Path,
        resume: Path | None,
        ahead: Ahead | None = None,
    ) -> None:
        torch.manual_seed(settings.seed + round(1000 * settings.share[0]))  # every piece draws pictures anew
        self.settings = settings
        self.device = device
        self.out = out
        self.resume = resume
        self.ahead = ahead
        self.start = time.monotonic()
        self.parts = Parts()
        if resume is not None:
            self.parts.load(resume)
        self.parts.to(device)
        self.graphs = settings.graphs and device.type == "cuda"
        # The CPU's half precision gradients are slow in that layout, a GPU's convolutions fast.
        self.layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.drawer = Drawer(self.parts, settings, device)
        self.b = torch.tensor(noise_levels(), dtype=torch.float32, device=device)
        self.grid = torch.tensor(GRID, device=device)
        self.vae = quick(self.parts.vae, self.layout).requires_grad_(False)
        self.critic_share = torch.zeros((), device=device)
        self.learners: Learners = {}
        self.history: list[dict[str, float]] = []
        self.saved = time.monotonic()
        self.reported = (0.0, 0)

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def optimiser(self, parameters: list[nn.Parameter], rate: float, decay: float) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=decay, fused=True)

    def note(self, **values: float) -> None:
        self.history.append({"seconds": round(self.seconds(), 1), **values})
        log.info("%s", json.dumps(self.history[-1]))

    def save(self) -> None:
        self.parts.save(self.out)
        if self.learners:
            remember(self.learners, self.out, whole=("critic",))
        (self.out / "history.json").write_text(json.dumps(self.history) + "\n")
        self.saved = time.monotonic()

    # Autoencoder

    def copier(self, twin: Twin) -> Graph:
        """One step's gradients of the autoencoder: of pictures (bytes) and noise for their latents, to the
        loss.
        """
        vae: Any = twin.modules[0]

        def learn(pictures: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
            twin.take()
            x = pictures.float() / 127.5 - 1
            z = vae.encode(x.to(twin.dtype, memory_format=self.layout)).latents
            y = vae.decode(z + noise.to(z.dtype) * 0.05).sample
            z, y = z.float(), y.float()
            flat = z.movedim(1, -1).reshape(-1, PICTURE)
            mean = flat.mean(0)
            spread = (flat - mean).T @ (flat - mean) / len(flat)
            identity = torch.eye(len(mean), device=z.device)
            shape = (spread - identity).square().mean() + mean.square().mean()
            bound = functional.relu(z.abs() - 2.6).mean()
            loss = picture_loss(y, x) + 0.05 * shape + 0.5 * bound
            twin.give(loss)
            return (loss.detach(),)

        return Graph(learn, self.graphs)

    def train_vae(self, until: float) -> None:
        """Learn to copy drawn pictures, plain and styled, through four noisy latent channels of about unit
        variance.
        """
        s = self.settings
        begin, main = self.seconds(), s.shapes[0]
        rows = min(s.group, s.vae_pool // 2)
        twin = Twin([self.parts.vae], self.layout)

        def draw(scenes: bool) -> Tensor:
            if scenes:
                return as_bytes(self.drawer.scenes(rows, main)[1])
            sources, styled, _ = self.drawer.pictures(rows, main)
            return as_bytes(torch.cat([sources[: rows // 2], styled[rows // 2 :]]))

        step_of = self.copier(twin)
        optimiser = self.optimiser(twin.parameters, s.vae_rate, 0.0)
        average = Average(twin.parameters, 0.998)
        pool = torch.cat([draw(k % 2 == 1) for k in range(s.vae_pool // rows)])
        sample = self._crops(pool)
        resumed = copy.deepcopy(self.parts.vae.state_dict())
        self.note(phase=1, step=0)
        step, noted, value = 0, self.seconds(), 0.0
        while self.seconds() < until:
            if step % 4 == 3:
                where = step // 4 % (len(pool) // rows) * rows
                pool[where : where + rows] = draw(step // 4 % 2 == 1)
            crops = self._crops(pool)
            for group in optimiser.param_groups:
                group["lr"] = _rate((self.seconds() - begin) / max(1e-6, until - begin), step, s.vae_rate, 50)
            (loss,) = step_of(*crops)
            nn.utils.clip_grad_norm_(twin.parameters, 1.0)
            optimiser.step()
            average.update()
            if step % 50 == 0:  # reading a figure keeps the queue of work short, so that the clock is right
                value = loss.item()
                if not math.isfinite(value):
                    self.note(phase=1, step=step, restored=1)
                    self._restore(average, optimiser)
                elif average.keep() and self.seconds() - noted > 8:
                    noted = self.seconds()
                    self.note(phase=1, step=step, vae_loss=round(value, 4))
            step += 1
        average.settle()
        self._judge(step_of, sample, resumed)
        for p in twin.parameters:
            p.grad = None
        self.vae = quick(self.parts.vae, self.layout).requires_grad_(False)
        self.note(phase=1, step=step, vae_loss=round(value, 4))

    def _crops(self, pool: Tensor) -> tuple[Tensor, Tensor]:
        """Windows of pictures at one random place (bytes), and noise for their latents."""
        s, (height, width) = self.settings, pool.shape[2:]
        top = int(torch.randint(0, height - s.vae_crop + 1, ()))
        left = int(torch.randint(0, width - s.vae_crop + 1, ()))
        index = torch.randint(0, len(pool), (s.vae_batch,), device=self.device)
        x = pool[:, :, top : top + s.vae_crop, left : left + s.vae_crop][index]
        side = s.vae_crop // FACTOR
        return x, torch.randn(len(x), PICTURE, side, side, device=self.device)

    def _judge(self, step_of: Graph, sample: tuple[Tensor, ...], before: dict[str, Tensor]) -> None:
        """Take the autoencoder's weights of `before` back if they were better on a sample."""
        now = copy.deepcopy(self.parts.vae.state_dict())
        after_loss = step_of.function(*sample)[0].item()
        self.parts.vae.load_state_dict(before)
        before_loss = step_of.function(*sample)[0].item()
        log.info("autoencoder on a sample: loss %.4f before, %.4f after", before_loss, after_loss)
        if not after_loss > before_loss and math.isfinite(after_loss):
            self.parts.vae.load_state_dict(now)

    # UNet and text encoder

    def inputs(self, batch: Batch, shape: Shape) -> tuple[Tensor, ...]:
        """What a learner takes, with one window at random for the first rows.

        The critic has twice the share where a further step is learned: there sharpening is what is left.
        """
        s = self.settings
        side, rows = s.window, max(1, int(len(batch.x) * s.pixel_rows))
        top, left = (
            32 * int(torch.randint(0, (size - side) // 32 + 1, ())) for size in (shape.height, shape.width)
        )
        window = torch.arange(side // FACTOR, device=self.device)
        share = self.critic_share * (1 + (batch.stages.made[:rows] > 0))
        pixels = batch.pixels[:rows, :, top : top + side, left : left + side].contiguous()
        return (
            batch.x, batch.t, batch.tokens, batch.target, pixels, window + top // FACTOR,
            window + left // FACTOR, share,
        )  # fmt: skip

    def _restore(self, average: Average, optimiser: torch.optim.Optimizer) -> None:
        """Go back to the last good averaged weights, with an optimiser that remembers nothing."""
        average.restore()
        for state in optimiser.state.values():
            for value in state.values():
                value.zero_()

    def rival(self) -> Rival | None:
        """The critic of the later part of the training, if this run reaches it."""
        s = self.settings
        if s.critic_share == 0 or s.share[1] <= s.critic_from:
            return None
        width: int = self.parts.text.config.hidden_size
        return Rival(Critic(width).to(self.device), self.layout, s.critic_rate)

    def train_unet(self, until: float) -> None:
        """Learn the clean latent of what the prompt asks for, from pure noise or from a noised source."""
        s, parts = self.settings, self.parts
        pools = {shape: Pool(self, shape) for shape in s.shapes}
        self.note(phase=2, step=0)
        main = s.shapes[0]
        twin = Twin([parts.unet, parts.text], self.layout)
        rival = self.rival()
        steps = Steps(twin, self.vae, rival, self.ahead, s, self.graphs)
        optimiser = self.optimiser(twin.parameters, s.rate, 0.01)
        self.learners = {name: (getattr(parts, name), optimiser) for name in ("unet", "text")}
        if rival is not None:
            self.learners["critic"] = (rival.critic, rival.optimiser)
        remembered = self.resume is not None and recall(self.learners, self.resume)
        average = Average(twin.parameters, s.decay)
        begin, step, rows = self.seconds(), 0, 0
        since = -s.warmup if remembered else 0
        peak, lowest = s.rate, math.inf
        self.reported = (begin, 0)
        total, summed = torch.zeros(2, device=self.device), 0
        carries: dict[Shape, Carry] = {}
        while self.seconds() < until and step != s.steps:
            shape = next(shape for shape in reversed(s.shapes) if step % shape.every == shape.every - 1)
            passed = min(1.0, (self.seconds() - begin) / max(1e-6, until - begin))
            progress = s.share[0] + (s.share[1] - s.share[0]) * passed
            if step % s.check == 0:
                steps.update(progress, self.critic_share)
            with torch.no_grad():
                batch = assemble(pools[shape], carries.get(shape), s, self.b, self.grid)
                pools[shape].refresh()
                inputs = self.inputs(batch, shape)
            rows += len(batch.x)
            for group in optimiser.param_groups:
                group["lr"] = _rate(progress, step - since, peak, s.warmup)
            predicted, figures = steps(inputs) if shape == main else steps.eager(*inputs)
            norm = nn.utils.clip_grad_norm_(twin.parameters, 1.0)
            optimiser.step()
            average.update()
            if shape == main:
                steps.after()
            carries[shape] = batch.carry(predicted, pools[shape].encode)
            total += figures
            summed += 1
            step += 1
            if step % s.check:
                continue
            loss, latent = (total / summed).tolist()
            total.zero_()
            summed = 0
            if not math.isfinite(loss) or (loss > s.runaway * lowest and step > since + 2 * s.warmup):
                peak /= 2
                since = step
                carries.clear()
                self._restore(average, optimiser)
                self.note(phase=2, step=step, restored=1, loss=loss, rate=peak)
                continue
            lowest = min(lowest, loss)
            if loss < 1.5 * lowest:
                average.keep()
            self._report(
                step, rows, loss=round(loss, 4), latent=round(latent, 4), norm=round(norm.item(), 3),
                rate=round(optimiser.param_groups[0]["lr"], 6), progress=round(progress, 3),
            )  # fmt: skip
            if time.monotonic() - self.saved > 55:
                self._save(average)
        self.note(phase=2, step=step, rows=rows)
        self._save(average)

    def _report(self, step: int, rows: int, **figures: float) -> None:
        """Note figures every ten seconds, with the speed since the last time."""
        (since, before), now = self.reported, self.seconds()
        if now - since > 10:
            speed = round((rows - before) / (now - since))
            self.note(phase=2, step=step, rows=rows, **figures, rows_per_second=speed)
            self.reported = (now, rows)

    def _save(self, average: Average) -> None:
        """Write the averaged weights, or the last good ones, and go on with the live ones."""
        if not average.keep():
            average.restore()
        average.swap()
        self.save()
        average.swap()


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = SMALL if arguments.small else Settings()
    if arguments.rows is not None:
        settings = with_rows(settings, arguments.rows)
    names = ("minutes", "vae_minutes", "vae_rate", "rate", "warmup", "steps", "seed", "critic_share")
    chosen = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.until is not None:
        chosen["minutes"] = (arguments.until - time.time()) / 60
    if arguments.share is not None:
        chosen["share"] = tuple(arguments.share)
    if arguments.no_graphs:
        chosen["graphs"] = False
    if arguments.no_compile:
        chosen["compiled"] = False
    return replace(settings, **chosen)


def _set_up() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 5  # every shape of the drawing is tried too
    torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew for every shape; flash attention does not


def _compile(settings: Settings, device: torch.device) -> None:
    """Compile a step, for the compiler's cache, in a part of the GPU's memory."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(Ahead.SHARE)
    layout = torch.channels_last
    parts = Parts().to(device)
    twin = Twin([parts.unet, parts.text], layout)
    vae = quick(parts.vae, layout).requires_grad_(False)
    rival = Rival(Critic(parts.text.config.hidden_size).to(device), layout, settings.critic_rate)
    work = work_of(twin.modules[0], vae).compiled()
    learner(twin, work, rival, graphs=False)(*blank_inputs(settings, device))


def main(arguments_given: list[str] | None = None) -> None:
    """Train as the command line says."""
    given = sys.argv[1:] if arguments_given is None else arguments_given
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="folder of the checkpoint")
    parser.add_argument("--resume", type=Path, help="checkpoint or diffusers folder to go on from")
    parser.add_argument("--export", type=Path, help="write the diffusers folder here at the end")
    parser.add_argument("--minutes", type=float, help="wall clock of the whole run")
    parser.add_argument("--until", type=float, help="the same as the time of its end, in seconds since 1970")
    parser.add_argument(
        "--vae-minutes", type=float, help="part of it for the autoencoder; 0 keeps the resumed one"
    )
    parser.add_argument(
        "--share", type=float, nargs=2, metavar=("BEGIN", "END"),
        help="where in the whole of the UNet's training this run begins and ends (0 1)",
    )  # fmt: skip
    parser.add_argument("--critic-share", type=float, help="share of the gradient that is the critic's")
    parser.add_argument("--vae-rate", type=float, help="peak learning rate of the autoencoder")
    parser.add_argument("--rate", type=float, help="peak learning rate of the UNet")
    parser.add_argument("--warmup", type=int, help="steps until that rate is reached")
    parser.add_argument(
        "--rows", type=int, help="rows of a step, of one picture size only: what a CPU can do"
    )
    parser.add_argument("--steps", type=int, help="stop the UNet after so many steps")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--small", action="store_true", help="settings of a test")
    parser.add_argument("--ahead", action="store_true", help="only compile a step, for the compiler's cache")
    parser.add_argument("--no-compile", action="store_true", help="never compile the step")
    parser.add_argument("--no-graphs", action="store_true", help="launch every operation by itself")
    arguments = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = _settings(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _set_up()
    if arguments.ahead:
        _compile(settings, device)
        return
    compiles = settings.graphs and settings.compiled and device.type == "cuda"
    ahead = Ahead(given) if compiles else None
    try:
        run = Run(settings, device, arguments.out, arguments.resume, ahead)
        if settings.vae_minutes > 0:
            run.train_vae(settings.vae_minutes * 60)
            run.save()
        run.train_unet(settings.minutes * 60)
    finally:
        if ahead is not None:
            ahead.stop()
    if arguments.export is not None:
        run.parts.load(arguments.out)
        run.parts.export(arguments.export)


if __name__ == "__main__":
    main()
