"""Models of a few hundred kilobytes with random weights from a fixed seed.

They have every part of a Stable Diffusion model and make nothing to look at, but they are deterministic, run
in milliseconds on one thread, and depend on each of their inputs: time step, prompt, every pixel.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers import UNet2DConditionModel as UNet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from app.core.denoise import NoiseSchedule, Prediction
from app.models.model import Model

Vae = Literal["tiny", "tiny4", "kl"]
"""``tiny``: a tiny VAE that makes 8 pixels one latent; ``tiny4``: 4 pixels; ``kl``: the full architecture."""

WIDTH = 32  # of the text encoder
SIZE = 64  # pixels of a side; the tests' usual picture
BETA_START, BETA_END = 0.00085, 0.012
BETAS = {"beta_start": BETA_START, "beta_end": BETA_END, "beta_schedule": "scaled_linear"}


def tokenizer(length: int = 16) -> Any:
    """Letters only: every text has tokens of its own."""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{letter}</w>" for letter in alphabet)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def text_encoder(width: int = WIDTH) -> Any:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=74,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    encoder = CLIPTextModel(config)
    with torch.no_grad():
        # The usual initialisation makes all tokens nearly alike.
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    return encoder.eval().requires_grad_(False)


def unet(channels: int = 4, width: int = WIDTH, **more: Any) -> Any:
    torch.manual_seed(2)
    network: Any = UNet(
        sample_size=SIZE // 8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,  # the number of heads, in spite of its name
        norm_num_groups=8,
        **more,
    )
    with torch.no_grad():
        # So that the prompt is not lost beside the latents.
        for name, parameter in network.named_parameters():
            if "attn2" in name:
                parameter.mul_(4.0)
    return network.eval().requires_grad_(False)


def vae(kind: Vae = "tiny") -> Any:
    torch.manual_seed(3)
    network: Any
    if kind == "kl":
        network = AutoencoderKL(
            block_out_channels=(8, 8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            sample_size=SIZE,
        )
    else:
        levels = 4 if kind == "tiny" else 3
        network = AutoencoderTiny(
            encoder_block_out_channels=(8,) * levels,
            decoder_block_out_channels=(8,) * levels,
            num_encoder_blocks=(1,) * levels,
            num_decoder_blocks=(1,) * levels,
        )
    with torch.no_grad():
        # The usual initialisation makes latents nearly zero and pictures nearly black.
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and kind != "kl":
                parameter.mul_(2.4 if name.startswith("encoder") else 1.5)
        if kind != "kl":
            network.decoder.layers[-1].bias.fill_(0.5)
    return network.eval().requires_grad_(False)


def scheduler(prediction: Prediction = "epsilon", **more: Any) -> Any:
    return EulerDiscreteScheduler(**BETAS, steps_offset=1, prediction_type=prediction, **more)


def pipeline(kind: Vae = "tiny", prediction: Prediction = "epsilon", **more: Any) -> Any:
    """A diffusers pipeline; ``more`` goes to its scheduler."""
    return StableDiffusionPipeline(
        vae=vae(kind),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(),
        scheduler=scheduler(prediction, **more),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(folder: Path, kind: Vae = "tiny", prediction: Prediction = "epsilon", **more: Any) -> Path:
    """Write a model's folder as diffusers lays it out."""
    pipeline(kind, prediction, **more).save_pretrained(folder)
    return folder


def schedule(prediction: Prediction = "epsilon", scaling: float = 10.0) -> NoiseSchedule:
    """Stable Diffusion's schedule, computed here from its definition."""
    roots = torch.linspace(BETA_START**0.5, BETA_END**0.5, 1000, dtype=torch.float64)
    return NoiseSchedule(tuple((1.0 - roots**2).cumprod(0).tolist()), prediction, scaling)


@lru_cache
def model(kind: Vae = "tiny", prediction: Prediction = "epsilon", distilled: bool = False) -> Model:
    """The parts above as the engine takes them, on the CPU in float32."""
    return Model(
        name="tiny",
        unet=unet(),
        vae=vae(kind),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        schedule=schedule(prediction),
        distilled=distilled,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
