"""SD-Turbo's architecture with random weights: speed and memory are the real model's, pictures are not.

The configurations are the public ones of stabilityai/sd-turbo (a Stable Diffusion 2.1 UNet and text encoder)
and madebyollin/taesd. Nothing is downloaded; the weights are drawn on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, LCMScheduler
from diffusers import UNet2DConditionModel as UNet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from app.core.denoise import NoiseSchedule
from app.models.model import Model

UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
TAESD: dict[str, Any] = {}  # the defaults of AutoencoderTiny are TAESD
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}

GFLOP = {"unet": 804.0, "encode": 122.0, "decode": 141.0}
"""Floating-point operations of one 512×512 picture, in units of 10^9."""


def tokenizer() -> Any:
    """Tokens are letters: real ones would need a download, and cost the same."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def model(device: torch.device, dtype: torch.dtype, seed: int = 0, **unet: Any) -> Model:
    """The model as the engine wants it; ``unet`` overrides parts of the UNet's configuration."""
    torch.manual_seed(seed)
    with torch.device(device):
        # In the wanted precision from the start: the text encoder and the UNet are 1.2 billion weights.
        standard = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            parts: tuple[Any, ...] = (
                UNet(**{**UNET, **unet}),
                AutoencoderTiny(**TAESD),
                CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)),
            )
        finally:
            torch.set_default_dtype(standard)
    for part in parts:
        part.requires_grad_(False).eval()
    alphas = LCMScheduler.from_config(SCHEDULER).alphas_cumprod
    return Model(
        name="SD-Turbo's architecture, random weights",
        unet=parts[0],
        vae=parts[1],
        text_encoder=parts[2],
        tokenizer=tokenizer(),
        schedule=NoiseSchedule(tuple(alphas.double().tolist()), "epsilon"),
        distilled=True,
        device=device,
        dtype=dtype,
    )


def pipeline(model: Model, cls: Any) -> Any:
    """The same parts as a pipeline of diffusers, for the peers."""
    return cls(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
