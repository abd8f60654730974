"""One training step of UNet and text encoder: what it computes, and its compiled form.

The step is bound by the GPU's memory: normalisations, activations and copies move far more than convolutions
do. Compiled, they are fused. Compiling takes about as long as the autoencoder's training, so a process of its
own does it meanwhile and leaves the result in the compiler's cache.
"""

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.mini.critic import Rival
from training.mini.graphs import Graph, Twin
from training.mini.losses import picture_loss
from training.mini.model import FACTOR, LATENTS, PICTURE, boundary
from training.mini.settings import Settings
from training.mini.tokenizer import MAX_TOKENS

log = logging.getLogger("training.mini")


@dataclass(frozen=True)
class Work:
    """The heavy parts of a step: noisy latents, time steps and context to clean latents, latents
    to pictures, and the difference of two pictures.
    """

    paint: Callable[[Tensor, Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    compare: Callable[[Tensor, Tensor], Tensor]

    def compiled(self) -> "Work":
        parts = (self.paint, self.decode, self.compare)
        return Work(*(torch.compile(part, fullgraph=True, dynamic=False) for part in parts))


def work_of(unet: nn.Module, vae: Any) -> Work:
    def paint(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        latents: Tensor = unet(x, t, context).sample.float()
        return latents

    def decode(latents: Tensor) -> Tensor:
        pictures: Tensor = vae.decode(latents).sample.float()
        return pictures

    return Work(paint, decode, picture_loss)


def learner(twin: Twin, work: Work, rival: Rival | None, graphs: bool) -> Graph:
    """One step's gradients, written to the originals of `twin` (UNet and text encoder).

    From noisy latents, time steps, tokens, target latents, windows of the target pictures (bytes), the
    windows' rows and columns in latent pixels and the rival's share of each window, to the prediction and
    (loss, its latent part).
    """
    text: Any = twin.modules[1]

    def learn(
        x: Tensor, t: Tensor, tokens: Tensor, target: Tensor, pixels: Tensor, top: Tensor, left: Tensor,
        share: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        def window(latents: Tensor) -> Tensor:
            shown = latents[: len(pixels), :PICTURE].index_select(2, top).index_select(3, left)
            return shown.to(twin.dtype, memory_format=twin.layout)

        twin.take()
        context = text(tokens)[0]
        skip, out = boundary(t)
        painted = work.paint(x.to(twin.dtype, memory_format=twin.layout), t, context)
        predicted = skip * x + out * painted
        decoded = work.decode(window(predicted))
        # By what the UNet says, not by what its share makes of it (the weights of Karras et al. 2022, table
        # 1): the small shares of further steps would teach next to nothing.
        latent = ((predicted[:, :PICTURE] - target).abs() / out).mean()
        shown = decoded.detach().requires_grad_()
        picture = work.compare(shown, pixels.float() / 127.5 - 1)
        (pull,) = torch.autograd.grad(picture, shown)
        if rival is not None:
            with torch.no_grad():
                real = work.decode(window(target))
            strength = share * pull.flatten(1).norm(dim=1)
            pull = pull + rival.pull(shown, real, context[: len(pixels)].mean(1), strength)
        twin.give(latent + (decoded * pull).sum())
        return predicted.detach(), torch.stack([(latent + picture).detach(), latent.detach()])

    return Graph(learn, graphs)


def blank_inputs(settings: Settings, device: torch.device) -> tuple[Tensor, ...]:
    """Inputs of a learner in the sizes of the main shape."""
    shape, side = settings.shapes[0], settings.window
    low = (shape.height // FACTOR, shape.width // FACTOR)
    windows = max(1, int(shape.batch * settings.pixel_rows))
    where = torch.arange(side // FACTOR, device=device)
    return (
        torch.randn((shape.batch, LATENTS, *low), device=device),
        torch.full((shape.batch,), 499, device=device),
        torch.zeros((shape.batch, MAX_TOKENS), dtype=torch.long, device=device),
        torch.randn((shape.batch, PICTURE, *low), device=device),
        torch.zeros((windows, 3, side, side), dtype=torch.uint8, device=device),
        where,
        where,
        torch.zeros(windows, device=device),
    )


class Ahead:
    """The process that compiles a step; started at once, asked for later.

    The convolution library tries algorithms in all the memory it can have, so the two share it out.
    """

    SHARE = 0.3
    """Of the GPU's memory, for that process."""

    def __init__(self, arguments: list[str]) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "training.mini.train", *arguments, "--ahead"]
        torch.cuda.set_per_process_memory_fraction(0.95 - self.SHARE)
        self.process = subprocess.Popen(command)
        self.waiting = True

    def ready(self) -> bool:
        """True once, when the process has ended well."""
        if not self.waiting or self.process.poll() is None:
            return False
        self.waiting = False
        torch.cuda.set_per_process_memory_fraction(1.0)
        if self.process.returncode != 0:
            log.error("compiling failed: the steps stay as they are")
        return self.process.returncode == 0

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Steps:
    """The step as it is now: plain at first, compiled when the compiler is done, later against the critic.

    Attributes:
        eager: the step of any shape but the main one.
        joined: whether the critic takes part.
    """

    def __init__(
        self, twin: Twin, vae: Any, rival: Rival | None, ahead: Ahead | None, settings: Settings, graphs: bool
    ) -> None:
        self.twin, self.rival, self.ahead, self.settings, self.graphs = twin, rival, ahead, settings, graphs
        self.work = self.plain = work_of(twin.modules[0], vae)
        self.graph = learner(twin, self.plain, None, graphs)
        self.eager = self.graph.function
        self.joined = False
        self.proved = (self.graph, self.work, self.joined)

    def update(self, progress: float, share: Tensor) -> None:
        """Take what is due at this share of the whole training; `share` becomes the rival's."""
        since = progress - self.settings.critic_from
        share.fill_(self.settings.critic_share * max(0.0, min(1.0, 10 * since)))
        compiled = self.ahead is not None and self.ahead.ready()
        joins = self.rival is not None and not self.joined and since >= 0
        if compiled:
            self.work = self.plain.compiled()
        self.joined = self.joined or joins
        if compiled or joins:
            log.info("the step changes: compiled %s, critic %s", self.work is not self.plain, self.joined)
            rival = self.rival if self.joined else None
            self.graph = learner(self.twin, self.work, rival, self.graphs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A step of the main shape. If a new form of it fails at its first, the former one goes on."""
        if self.graph is self.proved[0]:
            return self.graph(*inputs)
        try:
            results = self.graph(*inputs)
        except Exception:
            log.exception("the new step failed: the former one goes on")
            if self.joined != self.proved[2]:
                self.rival = None
            self.graph, self.work, self.joined = self.proved
            return self.graph(*inputs)
        self.proved = (self.graph, self.work, self.joined)
        return results

    def after(self) -> None:
        """What follows a step of the main shape."""
        if self.joined and self.rival is not None:
            self.rival.step()
