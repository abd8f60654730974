"""Picture operations in batch, on whatever device the tensors live.

Pictures are float tensors of shape (B, 3, H, W) with values in [0, 1]; maps are (B, 1, H, W). Nothing here
draws random numbers, so the same picture always gives the same result.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

Colour = tuple[float, float, float]


def upload(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`, without waiting until a GPU is idle as an ordinary copy does."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def luma(x: Tensor) -> Tensor:
    """Brightness by the weights of ITU-R BT.601; (B, 3, H, W) to (B, 1, H, W)."""
    return 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]


@lru_cache(maxsize=4096)
def _table(values: tuple[Colour, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Colours as an (N, 3) tensor. Kept, because every copy to a GPU waits until the GPU is idle."""
    return torch.tensor(values, device=device, dtype=dtype)


def colour(value: Sequence[float], like: Tensor) -> Tensor:
    """A colour as a (1, 3, 1, 1) tensor on the device and in the dtype of `like`."""
    r, g, b = value
    return _table(((r, g, b),), like.device, like.dtype).view(1, 3, 1, 1)


def lerp(a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    """`a` where weight is 0, `b` where it is 1."""
    return a + (b - a) * weight


def smoothstep(low: float, high: float, x: Tensor) -> Tensor:
    """Hermite step from 0 at `low` to 1 at `high`."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, separable; wide blurs run at reduced size because nothing fine survives them anyway."""
    factor = 1
    while sigma / factor > 3.5:
        factor *= 2
    if factor > 1:
        small = functional.avg_pool2d(x, factor, ceil_mode=True)
        small = blur(small, sigma / factor)
        return functional.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
    radius = max(1, math.ceil(2.5 * sigma))
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    b, c, h, w = x.shape
    y = functional.pad(x.reshape(b * c, 1, h, w), (radius, radius, radius, radius), mode="replicate")
    y = functional.conv2d(y, kernel.view(1, 1, 1, -1))
    y = functional.conv2d(y, kernel.view(1, 1, -1, 1))
    return y.reshape(b, c, h, w)


def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along x and y, the same size as the input."""
    p = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    return (p[:, :, 1:-1, 2:] - p[:, :, 1:-1, :-2]) / 2, (p[:, :, 2:, 1:-1] - p[:, :, :-2, 1:-1]) / 2


def edges(x: Tensor, sigma: float = 1.2, gain: float = 14.0) -> Tensor:
    """Soft edge strength in [0, 1] of the picture smoothed by `sigma` pixels, strongest channel."""
    gx, gy = gradient(blur(x, sigma))
    magnitude = torch.sqrt(gx * gx + gy * gy + 1e-8).amax(1, keepdim=True)
    return torch.tanh((gain * magnitude - 0.12).clamp_min(0))


def saturate(x: Tensor, amount: float) -> Tensor:
    """Colourfulness times `amount`; 0 is grey."""
    return lerp(luma(x).expand_as(x), x, amount).clamp(0, 1)


def contrast(x: Tensor, amount: float, pivot: float = 0.5) -> Tensor:
    """Contrast around `pivot`."""
    return ((x - pivot) * amount + pivot).clamp(0, 1)


def levels(x: Tensor, count: int, softness: float = 0.18) -> Tensor:
    """Posterise to `count` levels with soft steps, so that a slowly moving picture does not flicker."""
    scaled = x.clamp(0, 1) * (count - 1)
    low = torch.floor(scaled)
    step = ((scaled - low - 0.5) / softness).clamp(-0.5, 0.5) + 0.5
    return (low + step) / (count - 1)


def ramp(value: Tensor, stops: list[Colour]) -> Tensor:
    """Map a (B, 1, H, W) value through evenly spaced colour stops, linearly."""
    table = _table(tuple(stops), value.device, value.dtype)
    scaled = value.clamp(0, 1) * (len(stops) - 1)
    low = scaled.floor().clamp(max=len(stops) - 2)
    index = low.long()[:, 0]
    a, b = table[index].movedim(-1, 1), table[index + 1].movedim(-1, 1)
    return lerp(a, b, scaled - low)


def kuwahara(x: Tensor, radius: int, sharpness: float = 6.0) -> Tensor:
    """Edge-keeping smoothing: the mean of the calmest of four quadrants, softly chosen.

    Kuwahara et al. 1976, with the soft weights of Papari et al. 2007 to avoid blocks.
    """
    size = radius + 1
    padded = functional.pad(x, (radius, radius, radius, radius), mode="replicate")
    mean = functional.avg_pool2d(padded, size, 1)
    variance = (
        (functional.avg_pool2d(padded * padded, size, 1) - mean * mean).clamp_min(0).sum(1, keepdim=True)
    )
    h, w = x.shape[-2:]
    total: Tensor | None = None
    weights: Tensor | None = None
    for dy in (0, radius):
        for dx in (0, radius):
            m = mean[:, :, dy : dy + h, dx : dx + w]
            s = torch.sqrt(variance[:, :, dy : dy + h, dx : dx + w] + 1e-6)
            weight = (s + 0.004).pow(-sharpness / 2)
            total = m * weight if total is None else total + m * weight
            weights = weight if weights is None else weights + weight
    assert total is not None
    assert weights is not None
    return total / weights


def blocks(x: Tensor, size: int) -> Tensor:
    """Mean colour of every `size` by `size` block, at full size again."""
    small = functional.avg_pool2d(x, size, ceil_mode=True)
    return functional.interpolate(small, scale_factor=size, mode="nearest")[:, :, : x.shape[2], : x.shape[3]]


def grid(like: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates x (1, 1, 1, W) and y (1, 1, H, 1)."""
    h, w = like.shape[-2:]
    xs = torch.arange(w, device=like.device, dtype=like.dtype).view(1, 1, 1, w)
    ys = torch.arange(h, device=like.device, dtype=like.dtype).view(1, 1, h, 1)
    return xs, ys


def vignette(like: Tensor, amount: float) -> Tensor:
    """A (1, 1, H, W) factor: 1 in the middle, 1 - amount in the corners."""
    xs, ys = grid(like)
    h, w = like.shape[-2:]
    d = ((xs / w - 0.5) ** 2 + (ys / h - 0.5) ** 2) * 2
    return 1 - amount * smoothstep(0.15, 1.0, d)


@lru_cache(maxsize=16)
def cells(
    height: int, width: int, per_period: int, device: str, stretch: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Irregular tiles that repeat every 32 pixels: nearest tile centre and distance to the tile's border.

    Tiles are `stretch` times as long along the rising diagonal as across it. A period of 32 pixels is what
    the model can know: its lowest level has one position per 32 pixels.

    Returns:
        centre index (H * W,) into the flattened picture, and border distance in pixels (1, 1, H, W).
    """
    generator = torch.Generator().manual_seed(7)
    step = 32 / per_period
    base = torch.stack(torch.meshgrid(torch.arange(per_period), torch.arange(per_period), indexing="ij"), -1)
    base = (base.reshape(-1, 2).float() + 0.5) * step
    base = base + (torch.rand(base.shape, generator=generator) - 0.5) * step * (
        0.62 if per_period > 2 else 0.9
    )
    tiles_y, tiles_x = math.ceil(height / 32) + 2, math.ceil(width / 32) + 2
    ys, xs = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    points = torch.stack([ys, xs], -1).reshape(-1, 1, 2)
    shifts = torch.tensor([[a, b] for a in (-32.0, 0.0, 32.0) for b in (-32.0, 0.0, 32.0)])
    seeds = (base[None] + shifts[:, None]).reshape(1, -1, 2)
    offset = points - seeds
    along, across = (offset[..., 0] - offset[..., 1]) * 0.5**0.5, (offset[..., 0] + offset[..., 1]) * 0.5**0.5
    distance = torch.hypot(along / stretch**0.5, across * stretch**0.5)
    near, which = distance.topk(2, dim=1, largest=False)
    border = (near[:, 1] - near[:, 0]).reshape(32, 32)
    centre = seeds[0, which[:, 0]].reshape(32, 32, 2)
    border = border.repeat(tiles_y, tiles_x)[:height, :width]
    origin_y = (torch.arange(height) // 32 * 32).view(-1, 1)
    origin_x = (torch.arange(width) // 32 * 32).view(1, -1)
    centre = centre.repeat(tiles_y, tiles_x, 1)[:height, :width]
    cy = (centre[..., 0] + origin_y).round().clamp(0, height - 1).long()
    cx = (centre[..., 1] + origin_x).round().clamp(0, width - 1).long()
    return (cy * width + cx).reshape(-1).to(device), border[None, None].to(device)


def cell_colours(x: Tensor, per_period: int, sigma: float, stretch: float = 1.0) -> tuple[Tensor, Tensor]:
    """Every tile of `cells` in one colour, and the distance to the tile's border in pixels."""
    b, c, h, w = x.shape
    index, border = cells(h, w, per_period, str(x.device), stretch)
    flat = blur(x, sigma).reshape(b, c, h * w)
    return flat[:, :, index].reshape(b, c, h, w), border.to(x.dtype)
