"""The hand-written kernels against PyTorch's own, run by Triton's interpreter where there is no GPU.

They need Triton, which CPU builds of torch come without: `pip install triton`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import (
    conv2d,
    gelu,
    group_norm,
    interpolate,
    layer_norm,
    scaled_dot_product_attention,
    silu,
)

from app.accelerations import fused
from app.accelerations.base import AccelerationError
from app.models.model import Model
from tests import tiny

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="pip install triton")

from app.accelerations._fused import (  # noqa: E402
    attention,
    convolutions,
    lines,
    modules,
    norms,
    pointwise,
    products,
)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Float32 on a GPU means float32."""
    settings: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = False
    yield
    for setting, was in zip(settings, before, strict=True):
        setting.allow_tf32 = was


def close(made: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return float((made.float() - expected.float()).norm() / expected.float().norm()) < tolerance


def channels_last(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    # A mean far from zero, where a naive variance loses its digits.
    values = torch.randn(*shape, generator=generator) * 2 + 50
    return values.to(DEVICE).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((1, 64, 8, 8), 32),
        ((2, 320, 5, 7), 32),
        ((3, 96, 8, 8), 8),
        ((2, 1280, 2, 2), 32),
        ((2, 640, 40, 36), 32),
        ((1, 72, 64, 81), 8),
        ((1, 64, 1, 3), 32),
    ],
)
# In rows beyond the picture the interpreter computes a sigmoid of anything, and warns.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("shifted", ["", "each", "all"])
def test_group_norm(shape: tuple[int, ...], groups: int, activation: bool, shifted: str) -> None:
    x, channels = channels_last(*shape), shape[1]
    weight, bias = torch.randn(channels, device=DEVICE), torch.randn(channels, device=DEVICE)
    shift = torch.randn(1 if shifted == "all" else shape[0], channels, device=DEVICE) if shifted else None
    made = norms.group_norm(x, groups, weight, bias, 1e-5, silu=activation, shift=shift)
    moved = x if shift is None else x + shift[:, :, None, None]
    expected = group_norm(moved.double(), groups, weight.double(), bias.double(), 1e-5)
    assert close(made, silu(expected) if activation else expected, 1e-4)
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("shape", [(2, 64, 4, 4), (1, 96, 5, 3), (3, 64, 2, 2)])
def test_group_norm_for_a_convolution(shape: tuple[int, ...]) -> None:
    x, channels = channels_last(*shape), shape[1]
    norm = torch.nn.GroupNorm(32, channels, device=DEVICE).requires_grad_(False)
    conv = torch.nn.Conv2d(channels, 48, 3, padding=1, bias=False, device=DEVICE).requires_grad_(False)
    shift = torch.randn(shape[0], channels, device=DEVICE)
    made = modules.Norm(norm, silu=True).convolved(x, shift, conv)
    assert math.prod(shape[::2]) * shape[3] <= modules.FEW_PIXELS
    assert close(made, conv(silu(norm(x + shift[:, :, None, None]))), 1e-4)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_group_norm_does_not_see_the_other_pictures() -> None:
    x = channels_last(3, 64, 16, 16)
    weight, bias = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)
    other = x.clone(memory_format=torch.preserve_format)
    other[1:] = 7 * other[1:] - 3
    first, second = (norms.group_norm(t, 32, weight, bias, 1e-5, silu=True)[0] for t in (x, other))
    assert torch.equal(first, second)


@pytest.mark.parametrize("channels", [12, 320])
def test_add_bias(channels: int) -> None:
    x, skip = channels_last(2, channels, 5, 7), -2 * channels_last(2, channels, 5, 7)
    bias = torch.randn(channels, device=DEVICE)
    expected = x + bias[:, None, None]
    made = pointwise.add_bias(x.clone(memory_format=torch.preserve_format), bias)
    assert close(made, expected)
    made = pointwise.add_bias(x, bias, skip)
    assert close(made, expected + skip)
    assert made is x


@pytest.mark.parametrize(("rows", "width", "dtype"), [(5, 320, torch.float32), (550, 96, torch.float16)])
@pytest.mark.parametrize("gathers", [True, False])
def test_geglu(
    rows: int, width: int, dtype: torch.dtype, gathers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not gathers:
        monkeypatch.setattr(products, "gathers_tiles", lambda _tensor: False)
    layer = torch.nn.Linear(48, 2 * width, device=DEVICE, dtype=dtype).requires_grad_(False)
    x = torch.randn(2, rows, 48, device=DEVICE, dtype=dtype)
    value, gate = layer.float()(x.float()).chunk(2, -1)
    layer.to(dtype)
    around = torch.zeros(2, rows, width + 16, device=DEVICE, dtype=dtype)
    products.geglu(x, layer.weight, layer.bias, around[..., 8 : width + 8])
    assert close(around[..., 8 : width + 8], value * gelu(gate), 1e-5 if dtype == torch.float32 else 2e-3)
    assert not around[..., :8].any()
    assert not around[..., width + 8 :].any()


@pytest.mark.parametrize(("queries", "keys"), [(128, 128), (100, 77), (64, 256), (5, 130)])
@pytest.mark.parametrize("few", [attention.FEW_PROGRAMS, 0])
def test_attention(queries: int, keys: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "FEW_PROGRAMS", few)
    heads, width = 2, 2 * attention.WIDTH
    query, key, value = (
        torch.randn(2, length, 4 * width, device=DEVICE, dtype=torch.float16)[..., width : 2 * width]
        for length in (queries, keys, keys)
    )
    made = attention.attention(query, key, value, heads)
    q, k, v = (t.float().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    assert close(made, scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), 1e-3)
    assert made.is_contiguous()


def test_attention_does_not_see_the_other_pictures() -> None:
    query, key, value = torch.randn(3, 2, 77, 64, device=DEVICE, dtype=torch.float16)
    before = attention.attention(query, key, value, 1)[0]
    for tensor in (query, key, value):
        tensor[1] = 3 * tensor[1] + 1
    assert torch.equal(attention.attention(query, key, value, 1)[0], before)


@pytest.mark.parametrize("shape", [(2, 12, 5, 7), (1, 320, 8, 3), (1, 64, 1, 1)])
def test_upsample(shape: tuple[int, ...]) -> None:
    x = channels_last(*shape)
    made = pointwise.upsample(x)
    assert torch.equal(made, interpolate(x, scale_factor=2.0, mode="nearest"))
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("size", [None, (10, 6), (9, 6), (9, 5)])
def test_upsample_and_convolution(biased: bool, size: tuple[int, int] | None) -> None:
    x = channels_last(2, 12, 5, 3)
    conv = torch.nn.Conv2d(12, 20, 3, padding=1, bias=biased, device=DEVICE).requires_grad_(False)
    made = modules.Upsample(conv)(x, size)
    assert close(made, conv(interpolate(x, size=size or (10, 6), mode="nearest")))
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("out", [64, 80])
def test_conv_from_few(channels: int, out: int) -> None:
    x, weight = channels_last(2, channels, 9, 5), torch.randn(out, channels, 3, 3, device=DEVICE)
    bias = torch.randn(out, device=DEVICE)
    made = convolutions.conv_from_few(x, convolutions.weights_from_few(weight), bias)
    assert close(made, conv2d(x, weight, bias, padding=1))


@pytest.mark.parametrize("out", [3, 4])
def test_conv_to_few(out: int) -> None:
    x, weight = channels_last(2, 32, 9, 17), torch.randn(out, 32, 3, 3, device=DEVICE)
    bias = torch.randn(out, device=DEVICE)
    made = convolutions.conv_to_few(x, convolutions.weights_to_few(weight), bias)
    assert close(made, conv2d(x, weight, bias, padding=1))
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("height", "width"), [(4, 64), (3, 130), (5, 40), (80, 128)])
@pytest.mark.parametrize("skips", [True, False])
def test_conv_relu(height: int, width: int, skips: bool) -> None:
    x, skip = (torch.randn(2, 64, height, width, device=DEVICE).half() for _ in range(2))
    x, skip = (t.contiguous(memory_format=torch.channels_last) for t in (x, skip))
    weight = torch.randn(64, 64, 3, 3, device=DEVICE).half().contiguous(memory_format=torch.channels_last)
    bias = torch.randn(64, device=DEVICE).half()
    made = lines.conv_relu(x, weight, bias, skip if skips else None)
    expected = conv2d(x.float(), weight.float(), bias.float(), padding=1)
    assert close(made, torch.relu(expected + skip.float() if skips else expected), 1e-3)
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("width", [320, 1280, 48])
def test_add_layer_norm(width: int) -> None:
    x, delta = torch.randn(2, 5, width, device=DEVICE), torch.randn(2, 5, width, device=DEVICE)
    weight, bias = torch.randn(width, device=DEVICE), torch.randn(width, device=DEVICE)
    total, made = norms.add_layer_norm(x, delta, weight, bias, 1e-5)
    assert close(total, x + delta)
    assert close(made, layer_norm(x + delta, (width,), weight, bias, 1e-5))
    total, made = norms.add_layer_norm(x, None, weight, bias, 1e-5)
    assert total is x
    assert close(made, layer_norm(x, (width,), weight, bias, 1e-5))
    wide = torch.zeros(2, 5, width + 8, device=DEVICE)
    total, made = norms.add_layer_norm(x, delta, weight, bias, 1e-5, wide)
    assert close(wide[..., :width], x + delta)
    assert not wide[..., width:].any()
    assert close(made, layer_norm(x + delta, (width,), weight, bias, 1e-5))


@pytest.mark.timeout(300)  # half a minute in the interpreter, where nothing else runs
@pytest.mark.parametrize(
    ("vae", "size", "dtype", "tolerance"),
    [
        ("tiny", 64, torch.float32, 1e-5),
        ("kl", 64, torch.float32, 1e-5),
        ("tiny", 72, torch.float16, 1e-2),
    ],
)
def test_a_whole_model_computes_the_same(
    vae: tiny.Vae, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    plain = moved(tiny.model(vae), dtype)
    model = moved(plain, dtype)
    project = fused.fuse_unet(model.unet, modules, model.schedule.train_steps)
    fused.fuse_vae(model.vae, modules)
    kinds = {type(module).__name__ for part in (model.unet, model.vae) for module in part.modules()}
    assert not kinds & {"ResnetBlock2D", "BasicTransformerBlock", "AutoencoderTinyBlock"}
    latents = torch.randn(2, *plain.latent_shape(size, size), device=DEVICE)
    images = torch.rand(2, 3, size, size, device=DEVICE) * 2 - 1
    timesteps = torch.tensor([499.0, 100.0], device=DEVICE)
    text = torch.cat([plain.embed("a"), plain.embed("bc")]).to(DEVICE)
    with torch.inference_mode():
        expected = plain.predict(latents, timesteps, text)
        assert close(model.predict(latents, timesteps, project(text)), expected, tolerance)
        assert close(model.encode(images), plain.encode(images), tolerance)
        assert close(model.decode(latents), plain.decode(latents), tolerance)


def moved(model: Model, dtype: torch.dtype) -> Model:
    """A copy on the device."""
    parts = {
        name: deepcopy(getattr(model, name)).to(DEVICE, dtype) for name in ("unet", "vae", "text_encoder")
    }
    return replace(model, **parts, device=torch.device(DEVICE), dtype=dtype)


@pytest.mark.parametrize(
    "built",
    [
        {"mid_block_scale_factor": 2.0},
        {"resnet_time_scale_shift": "scale_shift"},
        {"transformer_layers_per_block": 2},
        {"act_fn": "gelu"},
        {"only_cross_attention": True},
        {"time_embedding_act_fn": "silu"},
        {"num_class_embeds": 4},
        {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
        {"encoder_hid_dim": tiny.WIDTH, "encoder_hid_dim_type": "text_proj"},
    ],
    ids=lambda built: str(next(iter(built))),
)
def test_what_is_built_otherwise_is_refused(built: dict[str, Any]) -> None:
    with pytest.raises(AccelerationError, match="blocks of Stable Diffusion"):
        fused.fuse_unet(tiny.unet(**built), modules, 1000)
