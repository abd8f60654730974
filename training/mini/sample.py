"""Run the embedded model as the server does: fixed noise from a seed, the 50-step grid, `strength` and
steps.
"""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from training.mini.model import FACTOR, GRID, LATENTS, TIMESTEP_SCALING, TRAIN_STEPS, boundary, noise_levels
from training.mini.tokenizer import MAX_TOKENS


def time_steps(steps: int, strength: float) -> list[int]:
    """The time steps of one frame; strength 1 starts at pure noise."""
    start = len(GRID) - max(1, round(len(GRID) * strength))
    steps = min(steps, len(GRID) - start)
    return [GRID[start + k * (len(GRID) - start) // steps] for k in range(steps)]


class Sampler:
    """The model's parts in evaluation mode on one device; pictures are given and come back on the CPU."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderTiny,
        device: str = "cpu",
        scaling: float = TIMESTEP_SCALING,
    ) -> None:
        self.tokenizer, self.device, self.scaling = tokenizer, torch.device(device), scaling
        modules: tuple[Any, ...] = (text, unet, vae)
        self.text, self.unet, self.vae = (module.eval().to(self.device) for module in modules)
        self.b = torch.tensor(noise_levels(), dtype=torch.float32, device=self.device)
        assert len(self.b) == TRAIN_STEPS

    @classmethod
    def from_folder(cls, folder: str, device: str = "cpu") -> "Sampler":
        return cls(
            CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32),
            UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32),
            AutoencoderTiny.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32),
            device,
            LCMScheduler.from_pretrained(folder, subfolder="scheduler").config.timestep_scaling,
        )

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> Tensor:
        encoded = self.tokenizer([prompt], padding="max_length", max_length=MAX_TOKENS, truncation=True)
        context: Tensor = self.text(torch.tensor(encoded["input_ids"], device=self.device))[0]
        return context

    @torch.no_grad()
    def _run(
        self, latent: Tensor | None, context: Tensor, times: list[int], shape: tuple[int, ...], seed: int
    ) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noises = [torch.randn(1, *shape[1:], generator=generator).to(self.device) for _ in times]
        context = context.expand(shape[0], -1, -1)
        x0 = latent
        for t, noise in zip(times, noises, strict=True):
            b = self.b[t]
            x = noise.expand(shape) if x0 is None else torch.sqrt(1 - b * b) * x0 + b * noise
            step = torch.full((shape[0],), t, device=self.device)
            skip, out = boundary(step, self.scaling)
            x0 = skip * x + out * self.unet(x, step, context).sample
        assert x0 is not None
        picture: Tensor = self.vae.decode(x0).sample
        return (picture / 2 + 0.5).clamp(0, 1).cpu()

    @torch.no_grad()
    def repaint(
        self, pictures: Tensor, prompt: str | Tensor, strength: float = 0.5, steps: int = 1, seed: int = 0
    ) -> Tensor:
        """Image mode: (B, 3, H, W) in [0, 1] to the same, every row with the seed's noise."""
        context = self.encode_prompt(prompt) if isinstance(prompt, str) else prompt
        latent = self.vae.encode(pictures.to(self.device) * 2 - 1).latents
        return self._run(latent, context, time_steps(steps, strength), tuple(latent.shape), seed)

    @torch.no_grad()
    def imagine(
        self, prompt: str | Tensor, seed: int = 0, steps: int = 1, height: int = 256, width: int = 256
    ) -> Tensor:
        """Video mode: a picture (1, 3, H, W) in [0, 1] from the prompt alone."""
        context = self.encode_prompt(prompt) if isinstance(prompt, str) else prompt
        shape = (1, LATENTS, height // FACTOR, width // FACTOR)
        return self._run(None, context, time_steps(steps, 1.0), shape, seed)
