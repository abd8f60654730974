"""The three functions of tensors that a model is to the engine, whichever way they are executed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Networks:
    """A model, accelerated or not. All tensors are on the model's device; any batch size is accepted.

    Attributes:
        unet: (latents (B, C, h, w), time steps (B,) float32, embeddings (B, L, D)) → prediction, as the
            latents; float32 latents are accepted and float32 is returned. Time steps are whole numbers.
        encode: images (B, 3, H, W) in [-1, 1] → latents (B, C, h, w), scaled as the UNet wants them.
        decode: latents → images (B, 3, H, W), about in [-1, 1].
    """

    unet: Callable[[Tensor, Tensor, Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
