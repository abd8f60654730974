"""Modules that take the places of diffusers' in a UNet and a VAE and do the same with fewer kernels.

What does not depend on the picture is computed for the whole UNet at once: one matrix product projects the
time embedding for all residual blocks, another the prompt for all cross attentions. They travel through
diffusers' blocks in the places of ``temb`` and ``encoder_hidden_states``; each module takes its part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, scaled_dot_product_attention, silu

from app.accelerations._fused.kernels import add_bias, add_layer_norm, geglu, group_norm

Span = slice
"""A module's part of a common projection."""


def _conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution without its bias."""
    return conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


class Norm(nn.Module):
    """A GroupNorm and the SiLU that follows it."""

    def __init__(self, norm: nn.GroupNorm, *, silu: bool) -> None:
        super().__init__()
        self.norm, self.silu = norm, silu

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """(B, C, H, W) of any memory format → channels last."""
        norm = self.norm
        x = x.contiguous(memory_format=torch.channels_last)
        return group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=self.silu, shift=shift)


class Resnet(nn.Module):
    """ResnetBlock2D. The biases of its convolutions are added where their output is read next: the first one
    with the time embedding (``span`` of the common projection), the second one with the shortcut.
    """

    bias: Tensor

    def __init__(self, block: Any, span: Span | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(block.norm1, silu=True), Norm(block.norm2, silu=True)
        self.conv1, self.conv2, self.shortcut = block.conv1, block.conv2, block.conv_shortcut
        self.span = span
        bias = block.conv2.bias
        if self.shortcut is not None and self.shortcut.bias is not None:
            bias = bias + self.shortcut.bias
        self.register_buffer("bias", bias.detach())

    def forward(self, x: Tensor, temb: Tensor | None, *_: Any, **__: Any) -> Tensor:
        """``temb`` is the projection for all blocks, (B, sum of channels)."""
        shift = self.conv1.bias[None] if self.span is None or temb is None else temb[:, self.span]
        hidden = _conv(self.norm1(x), self.conv1)
        hidden = _conv(self.norm2(hidden, shift), self.conv2)
        skip = x if self.shortcut is None else _conv(x, self.shortcut)
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        return add_bias(hidden, self.bias, skip.contiguous(memory_format=torch.channels_last))


class TimeEmbedding(nn.Module):
    """The UNet's time embedding, projected for every residual block; their first biases are in it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, embedding: nn.Module, blocks: list[Any]) -> None:
        super().__init__()
        self.embedding = embedding
        weights = [block.time_emb_proj.weight for block in blocks]
        biases = [block.time_emb_proj.bias + block.conv1.bias for block in blocks]
        self.register_buffer("weight", torch.cat(weights).detach())
        self.register_buffer("bias", torch.cat(biases).detach())

    def forward(self, *arguments: Any) -> Tensor:
        """(B, time channels) → (B, sum of channels)."""
        return linear(silu(self.embedding(*arguments)), self.weight, self.bias)


class Transformer(nn.Module):
    """Transformer2DModel with self attention, cross attention and GEGLU in each block. ``spans`` are the
    blocks' parts of the common projection of the prompt, keys then values.
    """

    def __init__(self, transformer: Any, spans: list[Span]) -> None:
        super().__init__()
        self.norm = Norm(transformer.norm, silu=False)
        self.proj_in, self.proj_out = _Linear(transformer.proj_in), _Linear(transformer.proj_out)
        self.blocks = nn.ModuleList(
            Block(block, span) for block, span in zip(transformer.transformer_blocks, spans, strict=True)
        )

    def forward(self, x: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        """As diffusers calls it with ``return_dict=False``."""
        batch, channels, height, width = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        tokens = self.proj_in(tokens)
        for block in self.blocks:
            tokens = block(tokens, encoder_hidden_states)
        made = self.proj_out(tokens).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return (add_bias(made, None, x),)


class _Linear(nn.Module):
    """A linear layer, or a 1×1 convolution used as one."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().flatten(1))
        self.register_buffer("bias", layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Block(nn.Module):
    """BasicTransformerBlock: residuals are added where the next normalisation reads them."""

    qkv: Tensor

    def __init__(self, block: Any, span: Span) -> None:
        super().__init__()
        own, cross = block.attn1, block.attn2
        self.heads, self.span = own.heads, span
        self.norms = nn.ModuleList((block.norm1, block.norm2, block.norm3))
        self.register_buffer("qkv", torch.cat([own.to_q.weight, own.to_k.weight, own.to_v.weight]).detach())
        self.own_out, self.query, self.cross_out = own.to_out[0], cross.to_q, cross.to_out[0]
        self.widen, self.narrow = block.ff.net[0].proj, block.ff.net[2]

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
        """(B, N, C), and the projection of the prompts for all blocks, (B, L, sum of 2 C)."""
        normed = self._norm(0, x, None)[1]
        x, normed = self._norm(1, x, self.own_out(self._attend(*linear(normed, self.qkv).chunk(3, -1))))
        keys, values = prompts[..., self.span].chunk(2, -1)
        x, normed = self._norm(2, x, self.cross_out(self._attend(self.query(normed), keys, values)))
        made: Tensor = x + self.narrow(geglu(self.widen(normed)))
        return made

    def _norm(self, which: int, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        norm: Any = self.norms[which]
        return add_layer_norm(x, delta, norm.weight, norm.bias, norm.eps)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tensor in (query, key, value))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class TinyBlock(nn.Module):
    """AutoencoderTinyBlock with ReLU."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.first, self.second, self.third = block.conv[0], block.conv[2], block.conv[4]
        self.skip = block.skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), channels last."""
        x = x.contiguous(memory_format=torch.channels_last)
        hidden = add_bias(_conv(x, self.first), self.first.bias, relu=True)
        hidden = add_bias(_conv(hidden, self.second), self.second.bias, relu=True)
        skip = self.skip(x).contiguous(memory_format=torch.channels_last)
        return add_bias(_conv(hidden, self.third), self.third.bias, skip, relu=True)
