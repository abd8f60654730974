"""Hand-written kernels around the matrix products: ready within half a minute, nothing is compiled ahead."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from app.accelerations._triton import triton_problems
from app.accelerations.base import AccelerationError, BaseAcceleration, Shapes
from app.accelerations.none import prepare
from app.models.model import Model
from app.models.networks import Networks

OLDEST_CAPABILITY = (8, 0)


class Acceleration(BaseAcceleration):
    """The model's blocks are replaced by ones that launch half as many kernels. In place."""

    @classmethod
    def problems(cls, device: torch.device) -> list[str]:
        """It needs Triton, which needs a recent GPU and a C compiler."""
        if device.type != "cuda":
            return [f"its kernels are written for NVIDIA GPUs, and the device is {device}"]
        return triton_problems(device, OLDEST_CAPABILITY)

    def networks(self, model: Model, shapes: Shapes, report: Callable[[str], None]) -> Networks:
        """Replace the blocks; the kernels are compiled when they are first used, in seconds."""
        prepare(model)
        modules = _working_modules(model)
        project = fuse_unet(model.unet, modules, model.schedule.train_steps)
        fuse_vae(model.vae, modules)
        plain = model.networks()

        def unet(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
            return plain.unet(latents, timesteps, project(embeddings))

        return Networks(unet, plain.encode, plain.decode)


def _working_modules(model: Model) -> Any:
    """The modules, when one of their kernels has been compiled and has run: what Triton needs beside a
    compiler shows only then.

    Raises:
        AccelerationError: if it did not.
    """
    try:
        modules = import_module("app.accelerations._fused.modules")
        some = torch.zeros(1, 16, 64, device=model.device, dtype=torch.float16)
        modules.attention(some, some, some, 1)
        modules.upsample(some[..., None])
        torch.cuda.synchronize(model.device)
    except Exception as error:  # compilers, linkers and drivers raise what they like
        reason = str(error).strip().partition("\n")[0]
        raise AccelerationError(
            f"the acceleration 'fused' cannot work here: Triton does not run ({reason})"
        ) from error
    return modules


def fuse_unet(unet: Any, modules: Any, steps: int) -> Callable[[Tensor], Tensor]:
    """Replace what can be replaced.

    Args:
        unet: of Stable Diffusion 1.x or 2.x.
        modules: what to replace it by.
        steps: how many time steps there are, the first whole numbers.

    Returns:
        The projection of prompts that the UNet then takes.

    Raises:
        AccelerationError: if the UNet is not built of Stable Diffusion's blocks.
    """
    resnets = [m for m in unet.modules() if type(m).__name__ == "ResnetBlock2D"]
    transformers = [m for m in unet.modules() if type(m).__name__ == "Transformer2DModel"]
    blocks = [block for transformer in transformers for block in transformer.transformer_blocks]
    _check(unet, resnets, blocks, len(transformers))
    places, start = {}, 0
    for resnet in resnets:
        places[resnet] = slice(start, start := start + resnet.conv1.out_channels)
    unet.time_proj = modules.TimeTable(unet.time_proj, unet.time_embedding, resnets, steps)
    unet.time_embedding = modules.Known()
    spans, start = {}, 0
    for transformer, block in zip(transformers, blocks, strict=True):
        spans[transformer] = slice(start, start := start + 2 * block.attn2.to_k.out_features)
    weights = [weight for block in blocks for weight in (block.attn2.to_k.weight, block.attn2.to_v.weight)]
    prompts = torch.cat(weights).detach()
    for resnet, place in places.items():
        _replace(unet, resnet, modules.Resnet(resnet, place))
    for transformer, span in spans.items():
        _replace(unet, transformer, modules.Transformer(transformer, span))
    for module in list(unet.modules()):
        if _upsamples(module):
            _replace(unet, module, modules.Upsample(module.conv))
        elif type(module).__name__ == "Downsample2D":
            module.conv = modules.convolution(module.conv)
    unet.conv_in, unet.conv_out = modules.convolution(unet.conv_in), modules.convolution(unet.conv_out)
    unet.conv_norm_out, unet.conv_act = modules.Norm(unet.conv_norm_out, silu=True), nn.Identity()
    return lambda embeddings: torch.nn.functional.linear(embeddings, prompts)


def fuse_vae(vae: Any, modules: Any) -> None:
    """Replace what a tiny VAE with ReLU is made of, and the residual blocks and upsampling of a full one."""
    for module in list(vae.modules()):
        name = type(module).__name__
        if name == "AutoencoderTinyBlock" and isinstance(module.conv[1], nn.ReLU):
            _replace(vae, module, modules.TinyBlock(module))
        elif name == "ResnetBlock2D" and _is_plain(module):
            _replace(vae, module, modules.Resnet(module, None))
        elif _upsamples(module):
            _replace(vae, module, modules.Upsample(module.conv))
        elif name in ("EncoderTiny", "DecoderTiny"):
            for place, layer in enumerate(module.layers):
                before = module.layers[place - 1] if place else None
                if isinstance(layer, nn.Conv2d) and _doubles(before):
                    module.layers[place - 1], module.layers[place] = nn.Identity(), modules.Upsample(layer)
                elif isinstance(layer, nn.Conv2d):
                    module.layers[place] = modules.convolution(layer)


def _check(unet: Any, resnets: list[Any], blocks: list[Any], transformers: int) -> None:
    # What else is made of the time embedding or the prompt would be given what travels in their places here.
    plain = (
        unet.class_embedding is None
        and unet.config.addition_embed_type is None
        and unet.time_embed_act is None
        and unet.encoder_hid_proj is None
    )
    plain = plain and all(_is_plain(resnet) for resnet in resnets)
    plain = plain and all(
        block.attn2 is not None
        and not block.only_cross_attention
        and block.attn2.to_q.bias is None
        and block.attn1.to_q.bias is None
        and block.attn2.to_k.bias is None
        and type(block.ff.net[0]).__name__ == "GEGLU"
        and isinstance(block.norm1, nn.LayerNorm)
        for block in blocks
    )
    if not plain or not 0 < len(blocks) == transformers or not isinstance(unet.conv_act, nn.SiLU):
        raise AccelerationError(
            "the acceleration 'fused' knows the blocks of Stable Diffusion 1.x and 2.x only; "
            "use 'compile' or 'none'"
        )


def _is_plain(resnet: Any) -> bool:
    """Whether a residual block is what `modules.Resnet` computes."""
    return (
        (resnet.time_embedding_norm == "default" or resnet.time_emb_proj is None)
        and resnet.output_scale_factor == 1.0
        and resnet.upsample is None
        and resnet.downsample is None
        and isinstance(resnet.nonlinearity, nn.SiLU)
    )


def _upsamples(module: nn.Module) -> bool:
    """Whether it is what `modules.Upsample` computes."""
    layer: Any = module
    return (
        type(module).__name__ == "Upsample2D"
        and layer.norm is None
        and layer.interpolate
        and isinstance(layer.conv, nn.Conv2d)
        and layer.conv.kernel_size == (3, 3)
    )


def _doubles(layer: nn.Module | None) -> bool:
    """Whether it is what `modules.Upsample` computes before its convolution."""
    return isinstance(layer, nn.Upsample) and layer.scale_factor == 2 and layer.mode == "nearest"


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    name = next(name for name, module in root.named_modules() if module is old)
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, new)
