"""A Stable Diffusion model in memory, and its plain execution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.core.denoise import NoiseSchedule
from app.models.networks import Networks
from app.models.safety import SafetyChecker


@dataclass(frozen=True)
class Model:
    """The parts of a model as diffusers and transformers load them, on one device.

    Attributes:
        name: what it was loaded from, for logs and the status.
        schedule: what the UNet was trained with.
        distilled: whether it was distilled for few steps without guidance.
        safety_checker: finds pictures that should not be shown; None if not wanted.
    """

    name: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: NoiseSchedule
    distilled: bool
    device: torch.device
    dtype: torch.dtype
    safety_checker: SafetyChecker | None = None

    def networks(self) -> Networks:
        """The model as it is, executed by PyTorch."""
        return Networks(unet=self.predict, encode=self.encode, decode=self.decode)

    def predict(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """The UNet."""
        predicted: Tensor = self.unet(
            latents.to(self.dtype), timesteps, encoder_hidden_states=embeddings, return_dict=False
        )[0]
        return predicted.float()

    def encode(self, images: Tensor) -> Tensor:
        """The VAE's encoder; the mode of the distribution where it has one, so that a frame is a function
        of its input.
        """
        images = images.to(self.dtype, memory_format=torch.channels_last)
        encoded = self.vae.encode(images, return_dict=False)[0]
        latents: Tensor = encoded if isinstance(encoded, Tensor) else encoded.mode()
        return latents * float(self.vae.config.scaling_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """The VAE's decoder."""
        latents = (latents / self.vae.config.scaling_factor).to(self.dtype, memory_format=torch.channels_last)
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return images

    def embed(self, text: str) -> Tensor:
        """The embedding of a prompt, (1, L, D), on the CPU. What exceeds the text encoder's length is cut."""
        tokens = self.tokenizer(
            text,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden: Tensor = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return hidden.to("cpu", self.dtype)

    @torch.inference_mode()
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """The shape (C, h, w) of a picture's latents, asked of the VAE itself."""
        latents = self.encode(torch.zeros(1, 3, height, width, device=self.device))
        return tuple(latents.shape[1:])  # type: ignore[return-value] # three numbers
