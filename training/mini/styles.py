"""The styles and moods of the embedded model, as picture operators: what a prompt word does to a picture.

A *style* is a way of drawing (pencil, mosaic, ...), a *mood* changes light and colour (sunset, winter, ...).
All are deterministic and depend on the neighbourhood of a pixel only, so that a small network can learn them.
Fixed patterns (dots, tiles, scan lines) repeat every 8, 16 or 32 pixels from the corner, because a
convolutional network with three halvings of a 4-times smaller latent knows its position modulo 32 pixels and
no better.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.mini.ops import (
    blocks,
    blur,
    cell_colours,
    colour,
    contrast,
    edges,
    gradient,
    grid,
    kuwahara,
    lerp,
    levels,
    luma,
    ramp,
    saturate,
    smoothstep,
    vignette,
)

Operator = Callable[[Tensor], Tensor]


def _dodge(lightness: Tensor, sigma: float) -> Tensor:
    """Colour dodge of a lightness map by its own blur: white paper with dark lines."""
    return ((lightness + 0.1) / (blur(lightness, sigma) + 0.1)).clamp(0, 1)


def _outline(x: Tensor, sigma: float = 1.3, gain: float = 24.0) -> Tensor:
    """Ink lines in [0, 1]: dark side of edges (soft XDoG, Winnemoeller 2011) and colour edges."""
    light = luma(x)
    difference = blur(light, sigma * 2.2) - blur(light, sigma)
    ink = torch.tanh((gain * (difference - 0.012)).clamp_min(0))
    return torch.maximum(ink, smoothstep(0.75, 1.0, edges(x, sigma, 9.0)) * 0.9)


def _hatching(x: Tensor, rising: bool) -> Tensor:
    """Diagonal pencil strokes in [0, 1], one every 8 pixels."""
    xs, ys = grid(x)
    across = xs + ys if rising else xs - ys
    return 0.5 + 0.5 * torch.cos(across * (2 * torch.pi / 8))


def pencil(x: Tensor) -> Tensor:
    light = luma(blur(x, 2.0))
    line = edges(x, 1.3, 15.0)
    shade = 0.6 * smoothstep(0.62, 0.3, light) * _hatching(x, True)
    shade = torch.maximum(shade, 0.75 * smoothstep(0.32, 0.08, light) * _hatching(x, False))
    tone = (1 - 0.9 * line) * (1 - shade)
    return tone.clamp(0.06, 1) * colour((0.99, 0.98, 0.95), x)


def charcoal(x: Tensor) -> Tensor:
    light = contrast(luma(blur(x, 2.0)), 1.25)
    xs, ys = grid(x)
    stroke = torch.cos((xs + ys) * (2 * torch.pi / 16)) + 0.5 * torch.cos(
        (xs + ys) * (2 * torch.pi / 8) + 1.0
    )
    grain = torch.cos(xs * (2 * torch.pi / 8)) * torch.cos(ys * (2 * torch.pi / 8))
    dust = smoothstep(-0.25, 0.35, 0.34 - light + 0.17 * stroke + 0.06 * grain)
    dust = torch.maximum(0.9 * dust, edges(x, 1.8, 18.0))
    return lerp(colour((0.93, 0.9, 0.84), x), colour((0.09, 0.09, 0.1), x), dust).clamp(0, 1)


def oil(x: Tensor) -> Tensor:
    vivid = contrast(saturate(kuwahara(x, 3), 1.8), 1.2)
    stroke, border = cell_colours(vivid, 3, 1.5, 3.0)
    y = lerp(vivid, stroke, 0.7)
    xs, ys = grid(x)
    inside = smoothstep(0.0, 3.0, border)
    bristle = torch.cos((xs + ys) * (2 * torch.pi / 8))
    ridge, _ = gradient(smoothstep(0.0, 4.0, border).expand_as(x[:, :1]))
    return (y * (0.95 + 0.07 * bristle * inside) + 0.5 * ridge * (0.2 + y)).clamp(0, 1)


def watercolor(x: Tensor) -> Tensor:
    wash = saturate(kuwahara(blur(x, 1.0), 4), 1.7)
    wash = 1 - (1 - wash) * 0.68
    wash = lerp(wash, torch.ones_like(wash), 0.85 * smoothstep(0.62, 0.95, luma(wash)))
    stain, _ = cell_colours(luma(wash), 2, 4.0)
    wash = wash * (1 + 0.5 * (stain - blur(luma(wash), 4.0)))
    y = wash * (1 - 0.55 * edges(x, 1.8, 13.0) * (1.2 - wash))
    return lerp(y, colour((0.99, 0.98, 0.96), x), _margin(x)).clamp(0, 1)


def _margin(x: Tensor) -> Tensor:
    """1 on the bare paper around a painting, with a ragged inner border."""
    h, w = x.shape[-2:]
    xs, ys = grid(x)
    inside = torch.minimum(torch.minimum(xs, w - 1 - xs), torch.minimum(ys, h - 1 - ys))
    u, v = xs * (2 * torch.pi / 32), ys * (2 * torch.pi / 32)
    ragged = 1.6 * (torch.cos(u + 1.0) + torch.cos(v + 2.0)) + 1.3 * (
        torch.cos(2 * u) + torch.cos(2 * v + 1.0)
    )
    ragged = ragged + 0.9 * torch.cos(3 * u + 0.5) + 0.9 * torch.cos(3 * v)
    return smoothstep(3.0, -3.0, inside - 12.0 - ragged)


def cartoon(x: Tensor) -> Tensor:
    flat = kuwahara(blur(x, 1.0), 4)
    light = luma(flat)
    stepped = levels(contrast(light, 1.15, 0.45), 4, 0.3) * 0.82 + 0.16
    y = saturate((flat * ((stepped + 0.05) / (light + 0.05)).clamp(0.3, 2.6)).clamp(0, 1), 1.9)
    line = smoothstep(0.45, 0.8, edges(blur(x, 1.2), 1.6, 17.0))
    return (y * (1 - 0.96 * line)).clamp(0, 1)


def comic(x: Tensor) -> Tensor:
    light = luma(blur(x, 2.0))
    flat = saturate(blur(x, 1.5), 2.0)
    flat = (flat * (0.25 + 0.75 * levels(contrast(light, 1.2), 3, 0.4)) / (light + 0.08)).clamp(0, 1)
    flat = 1 - (1 - saturate(flat, 1.2)) * 0.9
    xs, ys = grid(x)
    dot = 0.5 + 0.25 * (torch.cos(xs * (2 * torch.pi / 8)) + torch.cos(ys * (2 * torch.pi / 8)))
    ink = smoothstep(-0.15, 0.15, dot - 0.35 - 1.3 * light)
    paper = colour((1.0, 0.96, 0.84), x)
    y = flat * paper * (1 - ink * colour((0.35, 0.8, 0.7), x))
    return (y * (1 - 0.96 * smoothstep(0.4, 0.8, edges(x, 1.5, 17.0)))).clamp(0, 1)


def halftone(x: Tensor) -> Tensor:
    light = luma(blur(x, 2.0))
    xs, ys = grid(x)
    dot = 0.5 + 0.25 * (torch.cos(xs * (2 * torch.pi / 8)) + torch.cos(ys * (2 * torch.pi / 8)))
    ink = smoothstep(-0.18, 0.18, dot - contrast(light, 1.25))
    return lerp(colour((0.97, 0.94, 0.86), x).expand_as(x), colour((0.1, 0.1, 0.12), x), ink)


def mosaic(x: Tensor) -> Tensor:
    y, border = cell_colours(contrast(saturate(x, 1.6), 1.1), 2, 3.0)
    grout = smoothstep(3.6, 1.2, border)
    y = y * (0.88 + 0.14 * smoothstep(2, 8, border))
    return lerp(y, colour((0.95, 0.92, 0.84), x), grout * 0.9).clamp(0, 1)


def stained_glass(x: Tensor) -> Tensor:
    y, border = cell_colours(contrast(saturate(x, 2.0), 1.2), 2, 3.0)
    lead = smoothstep(3.8, 1.4, border)
    y = 0.1 + y * (0.8 + 0.35 * smoothstep(2, 9, border))
    return (y.clamp(0, 1) * (1 - lead) + 0.04 * lead).clamp(0, 1)


def pixel_art(x: Tensor) -> Tensor:
    y = levels(blocks(contrast(saturate(x, 1.8), 1.25), 8), 4, 0.6)
    xs, ys = grid(x)
    u, v = (torch.remainder(xs, 8) - 3.5).abs(), (torch.remainder(ys, 8) - 3.5).abs()
    return y * (1 - 0.3 * smoothstep(2.0, 3.6, torch.maximum(u, v)))


def bricks(x: Tensor) -> Tensor:
    y = blocks(contrast(saturate(x, 1.6), 1.1), 16)
    xs, ys = grid(x)
    u, v = torch.remainder(xs, 16) - 7.5, torch.remainder(ys, 16) - 7.5
    r = torch.sqrt(u * u + v * v)
    ring = smoothstep(1.6, 0.4, (r - 5.0).abs())
    light = ring * torch.tanh(-(u + v) / 4) * 0.28
    stud = smoothstep(5.4, 4.2, r) * 0.06
    seam = smoothstep(6.2, 7.5, torch.maximum(u.abs(), v.abs())) * 0.3
    return (y * (0.95 - seam) + light * (0.35 + y) + stud).clamp(0, 1)


def blueprint(x: Tensor) -> Tensor:
    line = edges(x, 1.3, 15.0)
    xs, ys = grid(x)
    rule = torch.maximum(
        smoothstep(1.6, 0.4, (torch.remainder(xs, 32) - 1.5).abs()),
        smoothstep(1.6, 0.4, (torch.remainder(ys, 32) - 1.5).abs()),
    )
    paper = colour((0.06, 0.23, 0.55), x) * (0.85 + 0.3 * luma(blur(x, 4.0)))
    paper = lerp(paper, colour((0.35, 0.55, 0.85), x), 0.45 * rule)
    return lerp(paper, colour((0.93, 0.97, 1.0), x), line).clamp(0, 1)


def neon(x: Tensor) -> Tensor:
    gx, gy = gradient(blur(luma(x), 1.5))
    strength = edges(x, 1.5, 17.0)
    turn = gx.abs() / (gx.abs() + gy.abs() + 1e-3)
    hue = lerp(colour((0.1, 0.95, 1.0), x), colour((1.0, 0.15, 0.85), x), blur(turn, 2.0))
    own = saturate(blur(x, 3.0), 3.5)
    light = strength * lerp(hue, own, 0.3)
    base = colour((0.07, 0.03, 0.16), x) + 0.16 * contrast(x, 1.2) * colour((0.6, 0.5, 1.1), x)
    return (base + light + 0.9 * blur(light, 3.0) + 0.7 * blur(light, 9.0)).clamp(0, 1)


def emboss(x: Tensor) -> Tensor:
    gx, gy = gradient(blur(luma(x), 1.2))
    relief = 0.55 + 0.45 * torch.tanh(7.5 * (gx + gy))
    return (relief * colour((0.98, 0.97, 0.93), x)).clamp(0, 1).expand_as(x)


def ink(x: Tensor) -> Tensor:
    light = luma(kuwahara(x, 3))
    black = smoothstep(0.06, -0.06, light - 0.5 * blur(light, 14.0) - 0.18)
    black = torch.maximum(black, _outline(x, 1.5, 30.0))
    return (1 - black * 0.95) * colour((0.99, 0.98, 0.94), x)


def pop_art(x: Tensor) -> Tensor:
    y = kuwahara(x, 4)
    light = contrast(luma(y), 1.3)
    stops = [(0.12, 0.05, 0.35), (0.9, 0.1, 0.5), (1.0, 0.55, 0.1), (1.0, 0.93, 0.3), (0.65, 0.97, 0.95)]
    return (ramp(levels(light, 5, 0.25), stops) * (1 - 0.85 * _outline(x))).clamp(0, 1)


def thermal(x: Tensor) -> Tensor:
    stops = [
        (0.02, 0.0, 0.12),
        (0.2, 0.0, 0.55),
        (0.75, 0.05, 0.5),
        (0.98, 0.4, 0.08),
        (1.0, 0.85, 0.2),
        (1, 1, 0.9),
    ]
    return ramp(contrast(luma(blur(x, 1.0)), 1.15), stops)


def scanlines(x: Tensor) -> Tensor:
    light = luma(contrast(x, 1.25))
    _, ys = grid(x)
    line = 0.72 + 0.28 * torch.cos(ys * (2 * torch.pi / 8))
    glow = (light * 0.85 + 0.5 * edges(x, 1.2, 9.0)).clamp(0, 1) * line
    return ramp(glow, [(0.0, 0.05, 0.02), (0.02, 0.45, 0.12), (0.2, 0.95, 0.35), (0.8, 1.0, 0.8)])


def hologram(x: Tensor) -> Tensor:
    _, ys = grid(x)
    line = 0.75 + 0.25 * torch.cos(ys * (2 * torch.pi / 8))
    glow = (luma(x) * 0.55 + 0.75 * edges(x, 1.4, 13.0)).clamp(0, 1) * line
    return ramp(glow, [(0.01, 0.02, 0.1), (0.05, 0.35, 0.65), (0.3, 0.85, 1.0), (0.95, 1.0, 1.0)])


def negative(x: Tensor) -> Tensor:
    return ramp(1 - luma(x), [(0.02, 0.03, 0.06), (0.3, 0.42, 0.5), (0.93, 0.97, 1.0)])


def sunset(x: Tensor) -> Tensor:
    h = x.shape[2]
    _, ys = grid(x)
    light = luma(x)
    height = (ys / h).expand_as(light)
    toned = ramp(
        light * 0.92 + 0.03, [(0.12, 0.03, 0.14), (0.55, 0.14, 0.2), (0.98, 0.5, 0.18), (1.0, 0.88, 0.55)]
    )
    y = lerp(x * colour((1.12, 0.72, 0.5), x), toned, 0.62)
    glow = ramp(height, [(0.55, 0.1, 0.35), (1.0, 0.42, 0.15), (0.9, 0.45, 0.2), (0.3, 0.05, 0.15)])
    return lerp(y, 1 - (1 - y) * (1 - 0.5 * glow), 0.6).clamp(0, 1)


def night(x: Tensor) -> Tensor:
    light = luma(x)
    y = lerp(light.expand_as(x), contrast(x, 1.15), 0.45) * colour((0.3, 0.42, 0.78), x)
    y = y + colour((0.0, 0.01, 0.06), x)
    lamp = smoothstep(0.72, 0.95, light)
    y = y + blur(lamp, 5.0) * colour((0.28, 0.22, 0.1), x) + lamp * colour((0.3, 0.26, 0.16), x)
    return (y * vignette(x, 0.45)).clamp(0, 1)


def _snowflakes(x: Tensor) -> Tensor:
    """White flakes of three sizes, the same four in every 32-pixel square."""
    xs, ys = grid(x)
    total = torch.zeros_like(x[:, :1])
    for cx, cy, sigma in ((6.0, 8.0, 2.2), (22.0, 4.0, 1.5), (14.0, 21.0, 1.9), (28.0, 26.0, 1.6)):
        u, v = torch.remainder(xs, 32) - cx, torch.remainder(ys, 32) - cy
        total = total + torch.exp(-((u * u + v * v) / (2 * sigma * sigma)))
    return total.clamp(0, 1)


def winter(x: Tensor) -> Tensor:
    light = luma(x)
    y = lerp(light.expand_as(x), x, 0.35) * colour((0.76, 0.88, 1.04), x)
    y = 1 - (1 - y) * 0.8
    _, gy = gradient(blur(light, 2.0))
    snow = torch.tanh((-gy * 34 - 0.2).clamp_min(0))
    snow = torch.maximum(snow, blur(snow, 2.0))
    y = lerp(y, colour((0.97, 0.99, 1.0), x), 0.95 * snow)
    frost = 1 - vignette(x, 0.6)
    y = lerp(y, colour((0.93, 0.97, 1.0), x), frost)
    return lerp(y, torch.ones_like(y), 0.9 * _snowflakes(x)).clamp(0, 1)


def autumn(x: Tensor) -> Tensor:
    r, g, b = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    light = luma(x)
    warm = torch.cat([0.35 + 0.85 * light, 0.1 + 0.68 * light, 0.02 + 0.3 * light], 1)
    cool = smoothstep(-0.05, 0.2, torch.maximum(g, b) - r)
    y = lerp(x * colour((1.12, 0.92, 0.66), x), warm, 0.35 + 0.5 * cool)
    return contrast(saturate(y, 1.35), 1.1).clamp(0, 1)


def vintage(x: Tensor) -> Tensor:
    light = luma(contrast(x, 0.85))
    y = ramp(light, [(0.16, 0.09, 0.04), (0.62, 0.45, 0.27), (0.98, 0.91, 0.74)])
    return (y * vignette(x, 0.5)).clamp(0, 1)


def noir(x: Tensor) -> Tensor:
    return (contrast(luma(x), 1.45, 0.48) * vignette(x, 0.4)).clamp(0, 1).expand_as(x)


def gold(x: Tensor) -> Tensor:
    light = luma(contrast(x, 1.2))
    gx, gy = gradient(blur(luma(x), 1.2))
    light = (light + 0.35 * torch.tanh(6 * (gx + gy))).clamp(0, 1)
    return ramp(light, [(0.1, 0.04, 0.0), (0.5, 0.3, 0.04), (0.93, 0.7, 0.2), (1.0, 0.93, 0.6), (1, 1, 0.95)])


def ice(x: Tensor) -> Tensor:
    light = (luma(contrast(x, 1.15)) + 0.45 * edges(x, 1.5, 11.0)).clamp(0, 1)
    return ramp(light, [(0.02, 0.08, 0.25), (0.1, 0.42, 0.72), (0.5, 0.82, 0.95), (0.97, 1.0, 1.0)])


def fire(x: Tensor) -> Tensor:
    light = (luma(contrast(x, 1.3)) * 0.85 + 0.45 * edges(x, 1.6, 11.0)).clamp(0, 1)
    return ramp(
        light, [(0.03, 0.0, 0.0), (0.45, 0.03, 0.0), (0.95, 0.32, 0.02), (1.0, 0.78, 0.12), (1, 1, 0.8)]
    )


def underwater(x: Tensor) -> Tensor:
    h = x.shape[2]
    _, ys = grid(x)
    y = lerp(luma(x).expand_as(x), blur(x, 1.2), 0.6) * colour((0.3, 0.85, 0.95), x)
    depth = ramp((ys / h).expand_as(x[:, :1]), [(0.25, 0.8, 0.85), (0.04, 0.4, 0.6), (0.0, 0.12, 0.32)])
    return lerp(y, depth, 0.42).clamp(0, 1)


def vaporwave(x: Tensor) -> Tensor:
    light = contrast(luma(x), 1.2)
    y = ramp(
        light, [(0.16, 0.04, 0.36), (0.55, 0.15, 0.75), (1.0, 0.4, 0.75), (0.45, 0.9, 1.0), (0.95, 1.0, 1.0)]
    )
    return lerp(y, x, 0.15).clamp(0, 1)


def fog(x: Tensor) -> Tensor:
    h = x.shape[2]
    _, ys = grid(x)
    amount = (0.78 - 0.4 * ys / h).expand_as(x[:, :1])
    return lerp(saturate(blur(x, 1.2), 0.55), colour((0.84, 0.87, 0.9), x), amount).clamp(0, 1)


def dream(x: Tensor) -> Tensor:
    y = saturate(x, 1.2) * colour((1.06, 0.95, 1.05), x)
    glow = blur(y, 7.0)
    y = 1 - (1 - 0.75 * y) * (1 - 0.75 * glow)
    light = 1 - vignette(x, 0.8)
    return lerp(y, colour((1.0, 0.88, 0.96), x), 0.15 + 0.8 * light).clamp(0, 1)


@dataclass(frozen=True)
class Style:
    """An operator and the words that ask for it.

    Attributes:
        words: phrases; the first is the one that documents and evaluation use.
        keeps_colour: whether a mood is applied to the source before (True) or to the result after (False).
    """

    operator: Operator
    words: tuple[str, ...]
    keeps_colour: bool = False


STYLES: dict[str, Style] = {
    "pencil": Style(
        pencil, ("pencil sketch", "pencil drawing", "sketch", "graphite drawing", "hand drawn sketch")
    ),
    "charcoal": Style(charcoal, ("charcoal drawing", "charcoal", "charcoal sketch")),
    "oil": Style(
        oil, ("oil painting", "oil on canvas", "impressionist painting", "painting", "thick paint"), True
    ),
    "watercolor": Style(watercolor, ("watercolor", "watercolor painting", "watercolour", "aquarelle"), True),
    "cartoon": Style(cartoon, ("cartoon", "anime", "cel shaded", "animated film", "animation"), True),
    "comic": Style(comic, ("comic book", "comic", "graphic novel", "comic strip", "manga"), True),
    "halftone": Style(halftone, ("halftone", "newspaper print", "newsprint", "halftone dots", "newspaper")),
    "mosaic": Style(mosaic, ("mosaic", "mosaic tiles", "roman mosaic", "tiles"), True),
    "stained_glass": Style(stained_glass, ("stained glass", "stained glass window", "church window"), True),
    "pixel_art": Style(pixel_art, ("pixel art", "8-bit game", "retro game", "pixelated", "minecraft"), True),
    "bricks": Style(bricks, ("toy bricks", "building bricks", "plastic bricks", "lego"), True),
    "blueprint": Style(blueprint, ("blueprint", "technical drawing", "architect plan", "cyanotype")),
    "neon": Style(neon, ("neon", "neon lights", "cyberpunk", "neon glow", "synthwave", "tron")),
    "emboss": Style(emboss, ("emboss", "embossed relief", "stone relief", "bas relief", "plaster", "marble")),
    "ink": Style(ink, ("ink drawing", "ink", "woodcut", "linocut", "stencil", "black ink")),
    "pop_art": Style(pop_art, ("pop art", "poster", "screen print", "warhol")),
    "thermal": Style(thermal, ("thermal camera", "heat map", "infrared", "thermal")),
    "scanlines": Style(scanlines, ("matrix", "green terminal", "night vision", "green monitor", "hacker")),
    "hologram": Style(hologram, ("hologram", "holographic", "blue hologram")),
    "negative": Style(negative, ("x-ray", "negative", "xray", "inverted")),
    "gold": Style(gold, ("gold", "golden statue", "made of gold", "golden")),
    "ice": Style(ice, ("ice", "ice sculpture", "made of ice", "frozen")),
    "fire": Style(fire, ("fire", "flames", "made of fire", "lava", "burning")),
    "vaporwave": Style(vaporwave, ("vaporwave", "pink and cyan", "retrowave")),
}

MOODS: dict[str, Style] = {
    "sunset": Style(sunset, ("sunset", "at sunset", "golden hour", "evening light", "sundown", "dusk")),
    "night": Style(night, ("night", "at night", "moonlight", "by night", "midnight", "dark night")),
    "winter": Style(winter, ("winter", "snow", "in the snow", "snowy", "in winter", "frost")),
    "autumn": Style(autumn, ("autumn", "fall colors", "in autumn", "autumn colors")),
    "vintage": Style(vintage, ("vintage photo", "sepia", "old photograph", "vintage", "antique photo")),
    "noir": Style(noir, ("film noir", "black and white", "noir", "monochrome", "black and white photo")),
    "underwater": Style(underwater, ("underwater", "under the sea", "under water", "deep sea")),
    "fog": Style(fog, ("fog", "foggy", "in the fog", "mist", "misty", "haze")),
    "dream": Style(dream, ("dream", "dreamy", "soft glow", "fairy tale", "fantasy")),
}

ALL_STYLES: dict[str, Style] = {**STYLES, **MOODS}


def apply(x: Tensor, style: str | None, mood: str | None) -> Tensor:
    """Draw the picture `x` (B, 3, H, W, in [0, 1]) in a style and a mood; None leaves that part as it is."""
    if style is None and mood is None:
        return x
    if style is None:
        assert mood is not None
        y = MOODS[mood].operator(x)
    elif mood is None:
        y = STYLES[style].operator(x)
    elif STYLES[style].keeps_colour:
        y = STYLES[style].operator(MOODS[mood].operator(x))
    else:
        drawn = STYLES[style].operator(x)
        y = lerp(drawn, MOODS[mood].operator(drawn), 0.7)
    return y.clamp(0, 1)
