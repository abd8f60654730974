"""The safety checker of Stable Diffusion, as diffusers ships it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import (
    StableDiffusionSafetyChecker,
    cosine_distance,
)
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD  # type: ignore[attr-defined]

from app.config.schema import ModelSettings

DEFAULT = "CompVis/stable-diffusion-safety-checker"


class SafetyChecker:
    """Finds pictures that should not be shown; ``network`` is diffusers' checker, on its device."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._size = network.config.vision_config.image_size
        self._mean = torch.tensor(OPENAI_CLIP_MEAN, device=network.device)[:, None, None]
        self._std = torch.tensor(OPENAI_CLIP_STD, device=network.device)[:, None, None]

    @classmethod
    def load(cls, model: ModelSettings, device: torch.device, dtype: torch.dtype) -> SafetyChecker:
        """The checker that the model brings, else the one of Stable Diffusion 1."""
        source = DEFAULT
        where: dict[str, Any] = {}
        if not Path(model.model_id).is_file():
            index = StableDiffusionPipeline.load_config(
                model.model_id, revision=model.revision, local_files_only=model.local_files_only
            )
            if index.get("safety_checker", [None])[0] is not None:
                source = model.model_id
                where = {
                    "subfolder": "safety_checker",
                    "revision": model.revision,
                    "variant": model.variant,
                }
        network: Any = StableDiffusionSafetyChecker.from_pretrained(
            source, dtype=dtype, local_files_only=model.local_files_only, **where
        )
        return cls(network.to(device).eval())

    @torch.inference_mode()
    def unsafe(self, images: Tensor) -> Tensor:
        """Whether each picture, (B, H, W, 3), uint8, RGB, is unsafe, (B,), all on the device.

        The network's own ``forward`` comes to the same verdict, but waits for the device.
        """
        network = self._network
        seen = network.visual_projection(network.vision_model(self._prepare(images).to(network.dtype))[1])
        special = _excess(seen, network.special_care_embeds, network.special_care_embeds_weights)
        stricter = 0.01 * (special > 0).any(1, keepdim=True)
        concepts = _excess(seen, network.concept_embeds, network.concept_embeds_weights - stricter)
        return (concepts > 0).any(1)

    def _prepare(self, images: Tensor) -> Tensor:
        """CLIP's preparation: the shorter side to its size, the centre, normalised."""
        pixels = images.permute(0, 3, 1, 2).float() / 255.0
        height, width = pixels.shape[2:]
        scale = self._size / min(height, width)
        size = (max(self._size, round(height * scale)), max(self._size, round(width * scale)))
        pixels = interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - self._size) // 2, (size[1] - self._size) // 2
        pixels = pixels[:, :, top : top + self._size, left : left + self._size]
        return (pixels - self._mean) / self._std


def _excess(seen: Tensor, concepts: Tensor, thresholds: Tensor) -> Tensor:
    """By how much each picture is more like each concept than it may be, (B, concepts), to three decimals."""
    likeness: Tensor = cosine_distance(seen, concepts)
    return (likeness.float() - thresholds).round(decimals=3)
