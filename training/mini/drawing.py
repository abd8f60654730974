"""Training samples: pictures, what prompts make of them, and pools of them kept on the device."""

import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from training.mini.model import FACTOR, LATENTS, PICTURE, Parts
from training.mini.ops import upload
from training.mini.prompts import Request, phrase, picture_request, recoloured, scene_request
from training.mini.scenes import SHAPES, draw_scene, draw_shapes
from training.mini.settings import Settings, Shape
from training.mini.sources import draw_sources
from training.mini.styles import apply
from training.mini.tokenizer import MAX_TOKENS

if TYPE_CHECKING:
    from training.mini.train import Run


def as_bytes(x: Tensor) -> Tensor:
    """Pictures in [0, 1] as bytes."""
    return (x * 255 + 0.5).clamp(0, 255).to(torch.uint8)


class Drawer:
    """Draws training pairs: a source picture, what the prompt makes of it, and the prompt's tokens."""

    def __init__(self, parts: Parts, settings: Settings, device: torch.device) -> None:
        self.tokenizer = parts.tokenizer
        self.settings = settings
        self.device = device
        self.random = random.Random(settings.seed)
        self.sources: dict[Shape, Tensor] = {}
        self.drawn = 0

    def tokens(self, requests: list[Request]) -> Tensor:
        """A wording of every request as tokens (B, 32)."""
        texts = [phrase(request, self.random) for request in requests]
        encoded = self.tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True)
        return upload(torch.tensor(encoded["input_ids"]), self.device)

    def renew_sources(self, shape: Shape) -> None:
        """Draw one group of photographs anew, or all of them at the first call."""
        group = min(self.settings.source_group, shape.sources)
        if shape not in self.sources:
            parts = [
                as_bytes(draw_sources(group, shape.height, shape.width, self.device))
                for _ in range(shape.sources // group)
            ]
            self.sources[shape] = torch.cat(parts)
            return
        start = self.drawn % (shape.sources // group) * group
        self.sources[shape][start : start + group] = as_bytes(
            draw_sources(group, shape.height, shape.width, self.device)
        )
        self.drawn += 1

    def photographs(self, count: int, shape: Shape) -> Tensor:
        """Drawn photographs (B, 3, H, W) in [0, 1], each mirrored, enlarged and shifted at random."""
        if shape not in self.sources:
            self.renew_sources(shape)
        pool = self.sources[shape]
        x = pool[torch.randint(0, len(pool), (count,), device=self.device)].float() / 255
        u = torch.rand(4, count, device=self.device)
        scale = 1 - 0.45 * (u[0] * 2 - 1).clamp_min(0)
        where = torch.zeros(count, 2, 3, device=self.device)
        where[:, 0, 0] = scale * torch.where(u[1] < 0.5, -1.0, 1.0)
        where[:, 1, 1] = scale
        where[:, :, 2] = ((u[2:] * 2 - 1) * (1 - scale)).T
        grid = functional.affine_grid(where, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)

    def noise(self, count: int, shape: Shape) -> Tensor:
        return torch.randn(count, LATENTS, shape.height // FACTOR, shape.width // FACTOR, device=self.device)

    def pictures(self, count: int, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        """Sources and repainted pictures (B, 3, H, W) in [0, 1], and tokens (B, 32): image mode.

        No landscapes of video mode: there, with the same words, they are a result to be kept.
        """
        request = picture_request(self.random)
        sources = self.photographs(count, shape)
        return sources, apply(sources, request.style, request.mood), self.tokens([request] * count)

    def scene_request(self) -> Request:
        return scene_request(self.random)

    def scenes(self, count: int, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        """Noise (B, 8, h, w), the scene that its plan stands for (B, 3, H, W), and tokens: video mode."""
        noise = self.noise(count, shape)
        plan = noise[:, PICTURE:]
        request = self.scene_request()
        assert request.scene is not None
        if request.scene.kind in SHAPES:
            requests = [recoloured(request, self.random) for _ in range(count)]
            picture = draw_shapes(plan, [each.scene for each in requests if each.scene is not None])
        else:
            requests = [request] * count
            picture = draw_scene(plan, request.scene)
        return noise, apply(picture, request.style, request.mood), self.tokens(requests)


class Pool:
    """Drawn samples kept on the device and replaced a few at a time: the first part scenes, the second
    repainted sources.

    `source` holds the noise of a scene, or the latents of a source picture, once more as the plan; `target`
    the latents of the result; `drawn` and `pixels` the pictures before and after, as bytes.
    """

    def __init__(self, run: "Run", shape: Shape) -> None:
        self.run, self.shape, self.size = run, shape, shape.pool
        self.scenes = max(1, shape.pool // 2)
        size, h, w = shape.pool, shape.height, shape.width
        device = run.device
        low = (h // FACTOR, w // FACTOR)
        self.source = torch.zeros((size, LATENTS, *low), dtype=torch.bfloat16, device=device)
        self.target = torch.zeros((size, PICTURE, *low), dtype=torch.bfloat16, device=device)
        self.drawn = torch.zeros((size, 3, h, w), dtype=torch.uint8, device=device)
        self.pixels = torch.zeros((size, 3, h, w), dtype=torch.uint8, device=device)
        self.tokens = torch.zeros((size, MAX_TOKENS), dtype=torch.long, device=device)
        self.uses = 0
        self.next = [0, 0]
        self.fill()

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures in [0, 1]."""
        x = (pictures.nan_to_num() * 2 - 1).to(self.run.vae.dtype, memory_format=self.run.layout)
        latents: Tensor = self.run.vae.encode(x).latents
        return latents

    @torch.no_grad()
    def _write(self, start: int, rows: int, scenes: bool) -> None:
        part = slice(start, start + rows)
        drawer = self.run.drawer
        if scenes:
            noise, target, tokens = drawer.scenes(rows, self.shape)
            self.source[part] = noise
        else:
            drawn, target, tokens = drawer.pictures(rows, self.shape)
            self.source[part] = self.encode(drawn).repeat(1, 2, 1, 1)
            self.drawn[part] = as_bytes(drawn)
        self.target[part] = self.encode(target)
        self.pixels[part] = as_bytes(target)
        self.tokens[part] = tokens

    def fill(self) -> None:
        rows = min(self.shape.refresh, self.scenes)
        for _ in range(self.scenes // rows):
            self._replace(rows, True)
            self._replace(rows, False)

    def _replace(self, rows: int, scenes: bool) -> None:
        first, span = (0, self.scenes) if scenes else (self.scenes, self.size - self.scenes)
        self._write(first + self.next[scenes] % (span // rows) * rows, rows, scenes)
        self.next[scenes] += 1

    def refresh(self) -> None:
        """Replace a few samples, scenes and repainted pictures by turns, and now and then some sources."""
        self.uses += 1
        self._replace(min(self.shape.refresh, self.scenes), self.uses % 2 == 0)
        if self.uses % self.run.settings.source_every == 0:
            self.run.drawer.renew_sources(self.shape)
