"""The peers: what else runs SD-Turbo on a stream, set up as its own examples do.

Each takes a picture in host memory, (H, W, 3) uint8, and returns one: the work of a server between its two
codecs. ``on_device`` leaves out everything but the model, with tensors that are on the GPU already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image as PillowImage
from torch import Tensor

from app.accelerations import xformers as acceleration
from app.core.denoise import timesteps
from app.core.messages import Image
from app.models.model import Model
from benchmarks import sd_turbo

SIZE = 512
STRENGTH = 0.5  # of image mode, as the product's default


class Peer(ABC):
    """One pipeline object, prepared for one prompt, mode and number of steps."""

    @abstractmethod
    def frame(self, image: Image | None) -> Image:
        """One picture, from host memory to host memory."""

    @abstractmethod
    def on_device(self, image: Tensor | None) -> Tensor:
        """One picture, (1, 3, H, W) in [-1, 1], from the device to the device; does not wait for it."""


class Original(Peer):
    """streamdiffusion 0.1.1 as its wrapper and its examples for SD-Turbo set it up: half precision, TAESD,
    the stream batch, no guidance; ``txt2img_sd_turbo`` for video in one step.
    """

    def __init__(self, model: Model, prompt: str, mode: str, steps: int, *, xformers: bool) -> None:
        from streamdiffusion import StreamDiffusion
        from streamdiffusion.image_utils import postprocess_image

        strength = STRENGTH if mode == "image" else 1.0
        indices = [(999 - t) // 20 for t in timesteps(strength, steps)]
        self._mode, self._postprocess = mode, postprocess_image
        self._stream = StreamDiffusion(
            sd_turbo.pipeline(model, StableDiffusionPipeline),
            t_index_list=indices,
            torch_dtype=model.dtype,
            width=SIZE,
            height=SIZE,
            cfg_type="none",
        )
        if xformers:
            acceleration.load_library()
            self._stream.pipe.enable_xformers_memory_efficient_attention()
        self._stream.prepare(prompt, num_inference_steps=50, generator=torch.Generator())
        self._turbo = mode == "video" and steps == 1

    def frame(self, image: Image | None) -> Image:
        made = self.on_device(None if image is None else PillowImage.fromarray(image))
        return np.asarray(self._postprocess(made.cpu(), output_type="pil")[0])

    def on_device(self, image: Any) -> Tensor:
        made: Tensor
        if self._turbo:
            with torch.no_grad():
                made = self._stream.txt2img_sd_turbo(1)
        elif self._mode == "image":
            made = self._stream(image)
        else:
            made = self._stream.txt2img()
        return made


class Diffusers(Peer):
    """The pipeline of diffusers with TAESD, its prompt embedded once; compiled where a mode of
    `torch.compile` is named. "reduce-overhead" records CUDA graphs, "max-autotune" chooses kernels, too.
    """

    def __init__(self, model: Model, prompt: str, mode: str, steps: int, *, compiled: str) -> None:
        self._mode, self._steps = mode, steps
        cls = StableDiffusionImg2ImgPipeline if mode == "image" else StableDiffusionPipeline
        self._pipe = sd_turbo.pipeline(model, cls)
        self._pipe.set_progress_bar_config(disable=True)
        self._embeddings = model.embed(prompt).to(model.device)
        if compiled:
            compile_parts(model, compiled)

    def frame(self, image: Image | None) -> Image:
        made = self._call(None if image is None else PillowImage.fromarray(image), "np")
        picture: Image = (np.asarray(made[0]) * 255).round().astype(np.uint8)
        return picture

    def on_device(self, image: Any) -> Tensor:
        result: Tensor = self._call(image, "pt")
        return result

    def _call(self, image: Any, output_type: str) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        source: dict[str, Any] = {"height": SIZE, "width": SIZE}
        steps = self._steps
        if self._mode == "image":
            source = {"image": image, "strength": STRENGTH}
            steps = round(self._steps / STRENGTH)  # diffusers makes strength × steps of them
        return self._pipe(
            prompt_embeds=self._embeddings,
            num_inference_steps=steps,
            guidance_scale=0.0,
            output_type=output_type,
            **source,
        ).images


def compile_parts(model: Model, mode: str) -> None:
    """As the diffusers documentation advises: channels last, the whole graph. In place; a model that is
    compiled already stays as it is.
    """
    if "forward" in vars(model.unet):
        return
    for part in (model.unet, model.vae):
        part.to(memory_format=torch.channels_last)
    for part in (model.unet, model.vae.encoder, model.vae.decoder):
        part.forward = torch.compile(part.forward, mode=mode, fullgraph=True)
