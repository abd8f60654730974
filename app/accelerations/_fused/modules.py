"""Modules that take the places of diffusers' in a UNet and a VAE and do the same with fewer kernels.

What does not depend on the picture is known for the whole UNet at once: a table has the time embedding as it
is projected for all residual blocks; one matrix product projects the prompt for all cross attentions. They
travel through diffusers' blocks in the places of ``temb`` and ``encoder_hidden_states``; each module takes
its part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, linear, relu, silu

from app.accelerations._fused import lines
from app.accelerations._fused.attention import attention
from app.accelerations._fused.convolutions import (
    conv_from_few,
    conv_to_few,
    weights_from_few,
    weights_to_few,
)
from app.accelerations._fused.norms import add_layer_norm, fits, group_norm
from app.accelerations._fused.pointwise import add_bias, upsample
from app.accelerations._fused.products import geglu

Span = slice
"""A module's part of a common projection."""

FEW = 4
"""Channels of Stable Diffusion's latents; more than a picture has."""
FEW_PIXELS = 128
"""Pixels of all pictures that leave most of a large GPU idle in a convolution."""


def _conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution without its bias, channels last."""
    made = conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return made.contiguous(memory_format=torch.channels_last)


def _mix(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution of 1×1 pixels without its bias, channels last: as a matrix product it is faster."""
    return linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1)).permute(0, 3, 1, 2)


def convolution(conv: nn.Conv2d) -> nn.Module:
    """The fastest way to do a convolution by itself: of the channels and the bias that it has."""
    plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    if conv.bias is None:
        return conv
    if plain and conv.in_channels <= FEW:
        return PackedConv(conv, weights_from_few, conv_from_few)
    if plain and conv.out_channels <= FEW:
        return PackedConv(conv, weights_to_few, conv_to_few)
    return Conv(conv)


class Conv(nn.Module):
    """A convolution and its bias."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → channels last."""
        assert self.conv.bias is not None
        return add_bias(_conv(x.contiguous(memory_format=torch.channels_last), self.conv), self.conv.bias)


class PackedConv(nn.Module):
    """A convolution and its bias by a kernel that wants its weights in an order of its own."""

    weights: Tensor
    bias: Tensor

    def __init__(
        self,
        conv: nn.Conv2d,
        pack: Callable[[Tensor], Tensor],
        compute: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        assert conv.bias is not None
        self.register_buffer("weights", pack(conv.weight))
        self.register_buffer("bias", conv.bias.detach())
        self._compute = compute

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → channels last."""
        return self._compute(x.contiguous(memory_format=torch.channels_last), self.weights, self.bias)


class Norm(nn.Module):
    """A GroupNorm and the SiLU that follows it."""

    def __init__(self, norm: nn.GroupNorm, *, silu: bool) -> None:
        super().__init__()
        self.norm, self.silu = norm, silu

    def forward(self, x: Tensor, shift: Tensor | None = None, *, taps: bool = False) -> Tensor:
        """(B, C, H, W) of any memory format → channels last, or what a convolution reads of it."""
        norm = self.norm
        x = x.contiguous(memory_format=torch.channels_last)
        return group_norm(
            x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=self.silu, shift=shift, taps=taps
        )

    def convolved(self, x: Tensor, shift: Tensor | None, conv: nn.Conv2d) -> Tensor:
        """The 3×3 convolution of it, without bias. Of a few pixels it is faster as a matrix product."""
        batch, _, height, width = x.shape
        if batch * height * width > FEW_PIXELS or not fits(x, self.norm.num_groups):
            return _conv(self(x, shift), conv)
        weight = conv.weight.permute(0, 2, 3, 1).flatten(1)  # a view of weights that are channels last
        made = linear(self(x, shift, taps=True), weight)
        return made.view(batch, height, width, -1).permute(0, 3, 1, 2)


class Upsample(nn.Module):
    """Twice the width and height, then a 3×3 convolution.

    Of the nine pixels that it reads only four differ, which four depends on whether line and column are even
    or odd. That is a transposed convolution of 4×4 pixels and stride 2 with sums of the weights: 4/9 of the
    arithmetic.
    """

    weight: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        weight = conv.weight.detach().float()
        for axis in (2, 3):
            first, middle, last = weight.unbind(axis)
            weight = torch.stack([last, middle + last, first + middle, first], axis)
        weight = weight.to(conv.weight.dtype).transpose(0, 1)
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None, *_: Any) -> Tensor:
        """(B, C, H, W) → (B, any, 2H, 2W), channels last; one less of each where ``output_size`` says so, of
        what was odd before it was halved.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        if output_size is None or tuple(output_size) == tuple(2 * size for size in x.shape[2:]):
            made = conv_transpose2d(x, self.weight, stride=2, padding=1)
            made = made.contiguous(memory_format=torch.channels_last)
        else:
            cut = upsample(x)[:, :, : output_size[0], : output_size[1]]
            made = _conv(cut.contiguous(memory_format=torch.channels_last), self.conv)
        return made if self.conv.bias is None else add_bias(made, self.conv.bias)


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
        x = x.contiguous(memory_format=torch.channels_last)
        shift = self.conv1.bias[None] if self.span is None or temb is None else temb[:, self.span]
        hidden = self.norm1.convolved(x, None, self.conv1)
        hidden = self.norm2.convolved(hidden, shift, self.conv2)
        return add_bias(hidden, self.bias, x if self.shortcut is None else _mix(x, self.shortcut))


class TimeTable(nn.Module):
    """The UNet's time embedding, projected for every residual block, whose first biases are in it, for each
    of the ``steps`` time steps that there are: reading a row takes the place of twenty small kernels.
    """

    table: Tensor

    def __init__(self, projection: nn.Module, embedding: nn.Module, blocks: list[Any], steps: int) -> None:
        super().__init__()
        weight = torch.cat([block.time_emb_proj.weight for block in blocks])
        bias = torch.cat([block.time_emb_proj.bias + block.conv1.bias for block in blocks])
        with torch.no_grad():
            waves = projection(torch.arange(steps, device=weight.device)).to(weight.dtype)
            self.register_buffer("table", linear(silu(embedding(waves)), weight, bias))

    def forward(self, timesteps: Tensor) -> Tensor:
        """Whole numbers, (B,) → (B, sum of channels)."""
        return self.table[timesteps.long()]


class Known(nn.Module):
    """Takes the place of a module whose work is done before."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """``x``."""
        return x


class Transformer(nn.Module):
    """Transformer2DModel of one block with self attention, cross attention and GEGLU. ``span`` is the block's
    part of the common projection of the prompt, keys then values.

    Residuals are added where the next normalisation reads them. The last two layers, P (x + D h + d) + p,
    have nothing between them, so they are one: (P | P D) applied to (x | h), and P d + p.
    """

    qkv: Tensor
    last: Tensor
    bias: Tensor

    def __init__(self, transformer: Any, span: Span) -> None:
        super().__init__()
        (block,) = transformer.transformer_blocks
        own, cross = block.attn1, block.attn2
        self.heads, self.span = own.heads, span
        self.norm = Norm(transformer.norm, silu=False)
        self.proj_in = _Linear(transformer.proj_in)
        self.norms = nn.ModuleList((block.norm1, block.norm2, block.norm3))
        self.register_buffer("qkv", torch.cat([own.to_q.weight, own.to_k.weight, own.to_v.weight]).detach())
        self.own_out, self.query, self.cross_out = own.to_out[0], cross.to_q, cross.to_out[0]
        self.widen = block.ff.net[0].proj
        project, narrow = _Linear(transformer.proj_out), block.ff.net[2]
        outer = project.weight.double()
        last = torch.cat([outer, outer @ narrow.weight.detach().double()], 1)
        bias = outer @ narrow.bias.detach().double() + project.bias.double()
        self.register_buffer("last", last.to(narrow.weight.dtype))
        self.register_buffer("bias", bias.to(narrow.weight.dtype))

    def forward(self, x: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        """As diffusers calls it with ``return_dict=False``."""
        batch, channels, height, width = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels))
        made = linear(self._block(tokens, encoder_hidden_states), self.last)
        made = made.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return (add_bias(made, self.bias, x),)

    def _block(self, x: Tensor, prompts: Tensor) -> Tensor:
        """What the last layer takes, (B, N, C + F), of (B, N, C) and the prompts' projection."""
        width = x.shape[-1]
        normed = self._norm(0, x, None)[1]
        query, key, value = linear(normed, self.qkv).chunk(3, -1)
        x, normed = self._norm(1, x, self.own_out(attention(query, key, value, self.heads)))
        key, value = prompts[..., self.span].chunk(2, -1)
        attended = attention(self.query(normed), key, value, self.heads)
        both = x.new_empty(*x.shape[:-1], self.last.shape[1])
        normed = self._norm(2, x, self.cross_out(attended), both)[1]
        geglu(normed, self.widen.weight, self.widen.bias, both[..., width:])
        return both

    def _norm(
        self, which: int, x: Tensor, delta: Tensor | None, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        norm: Any = self.norms[which]
        return add_layer_norm(x, delta, norm.weight, norm.bias, norm.eps, total)


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


class TinyBlock(nn.Module):
    """AutoencoderTinyBlock with ReLU."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.first, self.second, self.third = block.conv[0], block.conv[2], block.conv[4]
        self.skip = block.skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), channels last."""
        x = x.contiguous(memory_format=torch.channels_last)
        hidden = _conv_relu(_conv_relu(x, self.first), self.second)
        return _conv_relu(hidden, self.third, self.skip(x).contiguous(memory_format=torch.channels_last))


def _conv_relu(x: Tensor, conv: nn.Conv2d, skip: Tensor | None = None) -> Tensor:
    """ReLU of the convolution and ``skip``: one kernel."""
    if x.is_cuda and conv.bias is not None and lines.suits(x):
        return lines.conv_relu(x, conv.weight, conv.bias, skip)
    if not x.is_cuda:
        made: Tensor = conv(x)
        return relu(made if skip is None else made + skip)
    geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if skip is None:
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *geometry)
    return torch.cudnn_convolution_add_relu(x, conv.weight, skip, 1.0, conv.bias, *geometry)
