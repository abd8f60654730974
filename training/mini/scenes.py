"""Landscapes and shapes drawn as a function of a noise map: what the model paints in video mode.

A regression from pure noise to a picture that the noise does not determine can only learn the average, a fog.
Here the noise *is* the picture's plan: ridges, clouds, waves, windows and stars are read from the noise
latent at the place where they are drawn, at several scales, and a few numbers (where the sun stands, how
large a shape is) from its means. So noise and prompt determine the picture, other seeds give other pictures,
and a network with a wide enough view can learn the map in one step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.mini.ops import blur, colour, lerp, luma, ramp, smoothstep, upload

KINDS = ("mountains", "sea", "beach", "lake", "forest", "desert", "city", "meadow", "space")
TIMES = ("day", "sunset", "night", "dawn")
WEATHERS = ("clear", "clouds", "rain", "snow", "fog")
SEASONS = ("summer", "autumn", "winter", "spring")
LIGHTS = ("none", "sun", "moon")
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.11, 0.1),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.99, 0.87, 0.12),
    "green": (0.12, 0.65, 0.2),
    "cyan": (0.1, 0.8, 0.85),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.5, 0.15, 0.7),
    "pink": (0.98, 0.5, 0.7),
    "brown": (0.45, 0.27, 0.12),
    "black": (0.05, 0.05, 0.06),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.5, 0.5, 0.52),
}


@dataclass(frozen=True)
class Scene:
    """What a prompt asks to see. `kind` is one of KINDS or SHAPES; colours name entries of COLOURS."""

    kind: str
    time: str = "day"
    weather: str = "clear"
    season: str = "summer"
    light: str = "none"
    colour: str = "red"
    background: str | None = None


# Sky from zenith to horizon, and the tint of what the light falls on.
_SKY = {
    "day": [(0.16, 0.42, 0.8), (0.42, 0.68, 0.93), (0.8, 0.91, 0.97)],
    "sunset": [(0.2, 0.14, 0.4), (0.85, 0.35, 0.35), (1.0, 0.76, 0.38)],
    "night": [(0.01, 0.015, 0.07), (0.03, 0.05, 0.17), (0.1, 0.15, 0.33)],
    "dawn": [(0.42, 0.5, 0.78), (0.9, 0.72, 0.78), (1.0, 0.88, 0.74)],
}
_TINT = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (0.85, 0.52, 0.42),
    "night": (0.3, 0.36, 0.58),
    "dawn": (0.95, 0.82, 0.86),
}


class _Canvas:
    """The noise as a source of smooth fields, and the coordinates of the picture drawn from it."""

    def __init__(self, noise: Tensor, factor: int) -> None:
        self.noise = noise.float()
        self.batch, _, h, w = noise.shape
        self.height, self.width = h * factor, w * factor
        self.factor = factor
        d = noise.device
        self.y = ((torch.arange(self.height, device=d) + 0.5) / self.height).view(1, 1, -1, 1)
        self.x = ((torch.arange(self.width, device=d) + 0.5) / self.height).view(1, 1, 1, -1)
        self.aspect = self.width / self.height
        self.px = torch.arange(self.width, device=d).view(1, 1, 1, -1).float()
        self.py = torch.arange(self.height, device=d).view(1, 1, -1, 1).float()

    def cells(self, channel: int, tall: int, wide: int) -> Tensor:
        """Means of noise cells (in latent pixels), scaled to unit variance: (B, 1, h / tall, w / wide)."""
        plane = self.noise[:, channel : channel + 1]
        tall, wide = min(tall, plane.shape[2]), min(wide, plane.shape[3])
        return functional.avg_pool2d(plane, (tall, wide)) * math.sqrt(tall * wide)

    def field(self, channel: int, tall: int, wide: int | None = None) -> Tensor:
        """The same, interpolated smoothly to the picture's size."""
        cells = self.cells(channel, tall, tall if wide is None else wide)
        size = (self.height, self.width)
        return functional.interpolate(cells, size=size, mode="bicubic", align_corners=False)

    def strips(self, channel: int, wide: int) -> Tensor:
        """One value of unit variance per strip of `wide` latent columns, from the rows in the middle:
        (B, 1, 1, w / wide).
        """
        h = self.noise.shape[2]
        band = self.noise[:, channel : channel + 1, 3 * h // 8 : 5 * h // 8]
        wide = min(wide, band.shape[3])
        return functional.avg_pool2d(band, (band.shape[2], wide)) * math.sqrt(band.shape[2] * wide)

    def columns(self, channel: int, wide: int) -> Tensor:
        """The strips as steps: constant inside a strip, (B, 1, 1, W)."""
        strips = self.strips(channel, wide)
        index = (torch.arange(self.width, device=strips.device) // (wide * self.factor)).clamp(
            max=strips.shape[3] - 1
        )
        return strips[:, :, :, index]

    def curve(self, channel: int, wide: int) -> Tensor:
        """The strips as a smooth line, (B, 1, 1, W)."""
        strips = self.strips(channel, wide)
        return functional.interpolate(strips, (1, self.width), mode="bicubic", align_corners=False)

    def peaks(self, channel: int, even: bool) -> Tensor:
        """A zigzag line in [0, 1] with a peak over every second strip, as high as the strip's noise says."""
        height = torch.tanh(self.strips(channel, self.noise.shape[2] // 8))
        index = torch.arange(height.shape[3], device=height.device)
        knots = torch.where(index % 2 == (0 if even else 1), 0.68 + 0.32 * height, 0.14 + 0.1 * height)
        return functional.interpolate(knots, (1, self.width), mode="bilinear", align_corners=False)

    def lots(self, channel: int, low: float = -0.3, high: float = 0.3) -> Tensor:
        """One value in [0, 1] in every 16-pixel block, as its noise says: 0 below `low`, 1 above `high`."""
        lots = smoothstep(low, high, self.cells(channel, 4, 4))
        return functional.interpolate(lots, size=(self.height, self.width), mode="nearest")

    def dots(self, sigma: float) -> Tensor:
        """A soft dot of radius `sigma` pixels at a fixed place in every 16-pixel block."""
        right, below = torch.remainder(self.px, 32) // 16, torch.remainder(self.py, 32) // 16
        u = torch.remainder(self.px, 16) - (4.5 + 7 * right * (1 - below) + 3 * below)
        v = torch.remainder(self.py, 16) - (4.5 + 6 * right + 2 * below * (1 - right))
        return torch.exp(-((u * u + v * v) / (2 * sigma * sigma)))

    def specks(self, channel: int, low: float, high: float, sigma: float) -> Tensor:
        """The dots, each as bright as its noise says."""
        return self.lots(channel, low, high) * self.dots(sigma)

    def rain(self) -> Tensor:
        """Slanting streaks in [0, 1], two in every 32-pixel square and the same for every seed: streaks that
        depend on the noise are left out, as they are more often absent than present at any place.
        """
        lower = torch.remainder(self.py, 32) // 16
        v = torch.remainder(self.py, 16) - 7.5
        u = torch.remainder(self.px + 0.35 * v + 13 * lower, 32) - 15.5
        return smoothstep(7.8, 5.0, v.abs()) * torch.exp(-(u * u) / (2 * 1.6 * 1.6))

    def slope(self, shape: Tensor, reach: int = 3) -> Tensor:
        """Difference of `shape` between `reach` pixels to the left and to the right."""
        padded = functional.pad(shape, (reach, reach, 0, 0), mode="replicate")
        return padded[..., : self.width] - padded[..., 2 * reach :]

    def above(self, level: Tensor, soft: float = 1.3) -> Tensor:
        """1 below the line y = level (from the top), 0 above it, with a soft border of some pixels."""
        return torch.sigmoid((self.y - level) * (self.height / soft))

    def rgb(self, value: tuple[float, float, float]) -> Tensor:
        return colour(value, self.noise)


def _light_position(c: _Canvas, scene: Scene) -> tuple[float, float]:
    """Where sun and moon stand: the same place for every seed, which is learned in minutes, a free one is
    not.
    """
    return 0.69 * c.aspect, {"sunset": 0.32, "dawn": 0.3}.get(scene.time, 0.2)


def _sky(c: _Canvas, scene: Scene, horizon: float = 0.58) -> Tensor:
    t = (c.y / horizon).clamp(0, 1).expand(c.batch, 1, c.height, c.width)
    t = (t + 0.05 * c.field(0, 16)).clamp(0, 1)
    sky = ramp(t, _SKY[scene.time])
    grey = luma(sky)
    if scene.weather in ("rain", "snow"):
        sky = lerp(sky, (grey * 0.75 + 0.08) * c.rgb((0.93, 0.98, 1.06)), 0.8)
    if scene.weather == "fog":
        sky = lerp(sky, (grey * 0.5 + 0.4 * sum(_TINT[scene.time]) / 3) * c.rgb((1, 1, 1)), 0.7)
    if scene.time == "night" and scene.weather == "clear":
        sky = sky + c.specks(2, 0.0, 1.0, 1.7) * (1.2 - t) * c.rgb((0.95, 0.97, 1.0))
    lx, ly = _light_position(c, scene)
    distance = torch.sqrt((c.x - lx) ** 2 + (c.y - ly) ** 2 + 1e-9)
    if scene.light == "sun":
        disc = {"day": (1.0, 0.97, 0.78), "sunset": (1.0, 0.86, 0.45), "dawn": (1.0, 0.93, 0.75)}
        tone = c.rgb(disc.get(scene.time, (1.0, 0.95, 0.7)))
        sky = lerp(sky, tone, 0.65 * torch.exp(-distance / 0.13))
        sky = lerp(sky, tone * 1.02, torch.sigmoid((0.1 - distance) * c.height / 1.5))
    elif scene.light == "moon":
        tone = c.rgb((0.95, 0.95, 0.88))
        sky = lerp(sky, tone * 0.7, 0.4 * torch.exp(-distance / 0.1))
        crater = 0.06 * torch.tanh(c.field(1, 4))
        sky = lerp(sky, tone + crater, torch.sigmoid((0.09 - distance) * c.height / 1.5))
    cover = {"clouds": 0.35, "rain": 0.9, "snow": 0.7, "fog": 0.2}.get(scene.weather, -0.9)
    if scene.weather in ("clouds", "rain", "snow"):
        f = 0.85 * c.field(1, 8, 16) + 0.42 * c.field(1, 4, 8) + 0.22 * c.field(1, 2, 4)
        body = smoothstep(0.15, 1.05, f + cover - 0.7 * (c.y / horizon - 0.45).abs())
        lit = 0.5 + 0.5 * torch.tanh(1.1 * c.field(1, 4, 8) - 0.5 * f + 0.5)
        white = {
            "day": (0.99, 0.99, 1.0),
            "sunset": (1.0, 0.66, 0.5),
            "night": (0.2, 0.23, 0.36),
            "dawn": (1.0, 0.88, 0.86),
        }
        shade = {
            "day": (0.68, 0.75, 0.84),
            "sunset": (0.5, 0.27, 0.42),
            "night": (0.08, 0.1, 0.2),
            "dawn": (0.7, 0.62, 0.74),
        }
        cloud = lerp(c.rgb(shade[scene.time]), c.rgb(white[scene.time]), lit)
        if scene.weather != "clouds":
            cloud = lerp(cloud, luma(cloud) * 0.8 * c.rgb((0.95, 1, 1.05)), 0.75)
        sky = lerp(sky, cloud, body * 0.92)
    return sky.clamp(0, 1)


def _haze(c: _Canvas, scene: Scene) -> Tensor:
    haze = c.rgb(_SKY[scene.time][2])
    if scene.weather in ("rain", "snow"):
        return luma(haze) * 0.8 * c.rgb((0.95, 1.0, 1.05))
    if scene.weather == "fog":
        return luma(haze) * c.rgb((0.98, 1.0, 1.0))
    return haze


def _lit(c: _Canvas, scene: Scene, paint: Tensor, far: float) -> Tensor:
    """Tint a surface by the time of day and fade it into the haze; `far` is 0 (near) to 1."""
    tint = c.rgb(_TINT[scene.time])
    if scene.weather in ("rain", "snow"):
        paint = lerp(luma(paint).expand(-1, 3, -1, -1), paint, 0.7) * 0.85
    fog = 0.45 + 0.5 * far if scene.weather == "fog" else 0.75 * far
    return lerp(paint * tint, _haze(c, scene), fog).clamp(0, 1)


def _ground(c: _Canvas, scene: Scene) -> Tensor:
    base = {
        "summer": (0.27, 0.5, 0.14),
        "autumn": (0.66, 0.46, 0.14),
        "winter": (0.9, 0.94, 0.99),
        "spring": (0.4, 0.66, 0.2),
    }
    key = "winter" if scene.weather == "snow" else scene.season
    texture = 1 + 0.1 * c.field(0, 1, 2) * smoothstep(0.5, 1.0, c.y) + 0.1 * c.field(2, 4, 8)
    return (c.rgb(base[key]) * texture).clamp(0, 1)


def _mountain_range(
    c: _Canvas, scene: Scene, picture: Tensor, channel: int, level: float, height: float, far: float
) -> Tensor:
    """Peaks between `level` and `level - height`, lit from the left, with caps of snow."""
    shape = c.peaks(channel, even=far < 0.4)
    line = level - height * (shape + 0.035 * torch.tanh(c.curve(channel, 2)))
    side = torch.tanh(-60 * c.slope(shape, 2))
    depth = (c.y - line).clamp_min(0)
    rock = {
        "summer": (0.42, 0.4, 0.43),
        "autumn": (0.48, 0.38, 0.32),
        "winter": (0.5, 0.55, 0.64),
        "spring": (0.38, 0.43, 0.42),
    }
    cold = scene.season == "winter" or scene.weather == "snow"
    light = 1 + 0.36 * side * (1 - 1.6 * depth).clamp_min(0.3)
    paint = c.rgb(rock[scene.season]) * light
    zigzag = (torch.remainder(c.px, 16) - 8).abs() / 8 - 0.5
    snowline = level - (0.1 if cold else 0.52) * height + 0.05 * zigzag
    cap = smoothstep(0.012, -0.012, c.y - snowline)
    paint = lerp(paint, c.rgb((0.97, 0.98, 1.0)) * (0.84 + 0.16 * side), cap)
    return lerp(picture, _lit(c, scene, paint, far), c.above(line))


def _mountains(c: _Canvas, scene: Scene) -> Tensor:
    picture = _sky(c, scene)
    picture = _mountain_range(c, scene, picture, 0, 0.66, 0.3, 0.55)
    picture = _mountain_range(c, scene, picture, 3, 0.78, 0.46, 0.12)
    line = 0.79 + 0.02 * torch.tanh(c.curve(2, 8))
    return lerp(picture, _lit(c, scene, _ground(c, scene), 0.05), c.above(line, 2.0))


def _water(c: _Canvas, scene: Scene, horizon: float) -> Tensor:
    depth = ((c.y - horizon) / (1 - horizon)).clamp(0, 1)
    near = {
        "day": (0.03, 0.28, 0.45),
        "sunset": (0.24, 0.12, 0.3),
        "night": (0.01, 0.04, 0.12),
        "dawn": (0.35, 0.4, 0.58),
    }
    far = {
        "day": (0.35, 0.66, 0.8),
        "sunset": (0.95, 0.55, 0.38),
        "night": (0.08, 0.14, 0.3),
        "dawn": (0.93, 0.78, 0.77),
    }
    water = lerp(c.rgb(far[scene.time]), c.rgb(near[scene.time]), depth**0.7)
    if scene.weather in ("rain", "snow", "fog"):
        water = lerp(water, luma(water) * c.rgb((0.92, 1.0, 1.08)), 0.7)
    wave = lerp(c.field(0, 1, 8), 0.8 * c.field(0, 2, 16) + 0.5 * c.field(0, 1, 4), depth)
    water = water * (1 + (0.1 + 0.14 * depth) * wave)
    crest = smoothstep(1.3, 2.1, wave) * (0.25 + 0.6 * depth) * (0.25 if scene.time == "night" else 0.7)
    water = lerp(water, c.rgb((1, 1, 1)) * c.rgb(_TINT[scene.time]), crest)
    if scene.light != "none":
        lx, _ = _light_position(c, scene)
        width = 0.05 + 0.12 * depth
        glitter = torch.exp(-(((c.x - lx) / width) ** 2)) * smoothstep(-0.6, 1.2, wave)
        tone = {
            "day": (1, 1, 0.93),
            "sunset": (1.0, 0.8, 0.42),
            "night": (0.75, 0.8, 0.9),
            "dawn": (1, 0.93, 0.8),
        }
        water = lerp(water, c.rgb(tone[scene.time]), 0.8 * glitter)
    if scene.weather == "fog":
        water = lerp(water, _haze(c, scene), 0.8 * (1 - depth))
    return water.clamp(0, 1)


def _sea(c: _Canvas, scene: Scene) -> Tensor:
    return lerp(_sky(c, scene, 0.52), _water(c, scene, 0.52), c.above(torch.full_like(c.y, 0.52)))


def _beach(c: _Canvas, scene: Scene) -> Tensor:
    picture = lerp(_sky(c, scene, 0.45), _water(c, scene, 0.45), c.above(torch.full_like(c.y, 0.45)))
    line = 0.72 + 0.05 * torch.tanh(c.curve(2, 16)) + 0.12 * (c.x / c.aspect - 0.5)
    sand = c.rgb((0.93, 0.82, 0.6)) * (1 + 0.05 * c.field(3, 1, 2) + 0.05 * c.field(3, 4))
    wet = smoothstep(0.12, 0.0, c.y - line)
    sand = _lit(c, scene, sand * (1 - 0.3 * wet), 0.0)
    foam = torch.exp(-(((c.y - line) * c.height / 5) ** 2))
    picture = lerp(picture, sand, c.above(line, 1.5))
    return lerp(picture, c.rgb((1, 1, 1)) * c.rgb(_TINT[scene.time]) ** 0.5, 0.85 * foam)


def _lake(c: _Canvas, scene: Scene) -> Tensor:
    picture = _sky(c, scene)
    picture = _mountain_range(c, scene, picture, 0, 0.58, 0.2, 0.5)
    picture = _mountain_range(c, scene, picture, 3, 0.63, 0.26, 0.2)
    shore = 0.62
    rows = (2 * shore - c.y[0, 0, :, 0]).clamp(0, shore) * c.height
    mirror = blur(picture[:, :, rows.long().clamp(0, c.height - 1)], 2.5)
    water = lerp(mirror * 0.8, _water(c, scene, shore), 0.4)
    return lerp(picture, water, c.above(torch.full_like(c.y, shore)))


def _tree_line(c: _Canvas, channel: int, level: float, period: int, tall: float) -> Tensor:
    """The outline of a row of conifers, one every `period` pixels."""
    strips = c.columns(channel, period // c.factor)
    t = (torch.remainder(c.px, period) / period - 0.5).abs() * 2
    size = tall * (1 + 0.28 * torch.tanh(strips))
    return level - size * (1 - t)


def _forest(c: _Canvas, scene: Scene) -> Tensor:
    picture = _sky(c, scene)
    leaf = {
        "summer": (0.1, 0.32, 0.14),
        "autumn": (0.72, 0.34, 0.08),
        "winter": (0.32, 0.42, 0.45),
        "spring": (0.28, 0.52, 0.18),
    }
    cold = scene.season == "winter" or scene.weather == "snow"
    rows = ((1, 0.6, 16, 0.16, 0.6), (3, 0.72, 32, 0.3, 0.32), (0, 0.88, 32, 0.42, 0.0))
    for channel, level, period, tall, far in rows:
        line = _tree_line(c, channel, level, period, tall)
        vary = torch.tanh(c.columns(channel, period // c.factor))
        paint = c.rgb(leaf["winter" if cold else scene.season]) * (1 + 0.25 * vary)
        if scene.season == "autumn" and not cold:
            paint = paint + vary * c.rgb((0.12, 0.14, -0.02))
        branch = torch.cos(
            c.py * (2 * torch.pi / 16) + (torch.remainder(c.px, period) - period / 2).abs() * 0.5
        )
        paint = paint * (1 + 0.22 * branch)
        if cold:
            paint = lerp(paint, c.rgb((0.93, 0.96, 1.0)), 0.75 * smoothstep(0.1, 0.8, branch))
        picture = lerp(picture, _lit(c, scene, paint.clamp(0, 1), far), c.above(line, 1.6))
    floor = _lit(c, scene, _ground(c, scene) * (1.0 if cold else 0.7), 0.0)
    return lerp(picture, floor, c.above(0.9 + 0.01 * torch.tanh(c.curve(2, 8)), 3.0))


def _capsule(c: _Canvas, x: float, top: float, bottom: float, radius: float) -> Tensor:
    """Inside of an upright rounded bar, in units of the picture's height."""
    dy = c.y - c.y.clamp(top, bottom)
    distance = torch.sqrt((c.x - x) ** 2 + dy * dy + 1e-9)
    return torch.sigmoid((radius - distance) * c.height / 1.2)


def _cactus(c: _Canvas, scene: Scene, picture: Tensor) -> Tensor:
    x = 0.25
    green = c.rgb((0.16, 0.42, 0.2)) * (1 + 0.3 * torch.cos(c.px * (2 * torch.pi / 8)))
    inside = _capsule(c, x, 0.42, 0.86, 0.034)
    for side, top in ((-1.0, 0.52), (1.0, 0.48)):
        arm = torch.maximum(
            _capsule(c, x + side * 0.085, top, 0.64, 0.024),
            torch.sigmoid((0.024 - (c.y - 0.65).abs()) * c.height / 1.2)
            * torch.sigmoid((0.045 - (c.x - x - side * 0.042).abs()) * c.height / 1.2),
        )
        inside = torch.maximum(inside, arm)
    return lerp(picture, _lit(c, scene, green.clamp(0, 1), 0.0), inside)


def _desert(c: _Canvas, scene: Scene) -> Tensor:
    picture = _sky(c, scene, 0.55)
    sand = c.rgb((0.93, 0.7, 0.4))
    if scene.season == "winter" or scene.weather == "snow":
        sand = c.rgb((0.92, 0.94, 0.98))
    for channel, level, height, far in ((1, 0.58, 0.05, 0.45), (3, 0.68, 0.07, 0.2), (0, 0.82, 0.08, 0.0)):
        shape = torch.tanh(c.curve(channel, c.noise.shape[2] // 4))
        side = torch.tanh(-14 * c.slope(shape, 2))
        line = level - height * shape
        depth = (c.y - line).clamp_min(0)
        paint = sand * (1 + 0.24 * side * (1 - 3 * depth).clamp_min(0)) * (1.08 - 0.6 * depth)
        ripple = torch.cos(c.py * (2 * torch.pi / 8) + 1.2 * c.field(2, 4, 8))
        paint = paint * (1 + 0.05 * ripple * (1 - far))
        picture = lerp(picture, _lit(c, scene, paint.clamp(0, 1), far), c.above(line))
    return _cactus(c, scene, picture)


def _city(c: _Canvas, scene: Scene) -> Tensor:
    picture = _sky(c, scene, 0.75)
    dark = scene.time in ("night", "sunset")
    far_line = 0.5 - 0.13 * torch.tanh(c.columns(1, 4))
    blue = _lit(c, scene, c.rgb((0.5, 0.56, 0.66)), 0.55)
    picture = lerp(picture, blue.expand_as(picture), c.above(far_line, 1.0))
    for channel, width, level, vary, far in ((3, 32, 0.64, 0.2, 0.0),):
        strips = c.columns(channel, width // c.factor)
        line = level - vary * torch.tanh(0.9 * strips) - 0.06
        tone = 0.5 + 0.5 * torch.tanh(c.columns(2, width // c.factor))
        wall = lerp(c.rgb((0.34, 0.4, 0.5)), c.rgb((0.66, 0.56, 0.48)), tone)
        u, v = torch.remainder(c.px, 8) - 3.5, torch.remainder(c.py, 8) - 3.5
        pane = smoothstep(3.2, 1.8, u.abs()) * smoothstep(3.6, 2.2, v.abs())
        lamp = functional.interpolate(c.cells(0, 2, 2), size=(c.height, c.width), mode="nearest")
        lamp = smoothstep(-0.35, 0.45, lamp)
        if dark:
            paint = wall * (0.32 if scene.time == "night" else 0.45) * c.rgb((0.85, 0.85, 1.1))
            paint = lerp(paint, c.rgb((1.0, 0.84, 0.45)), pane * lamp * (0.95 - 0.55 * far))
            paint = lerp(paint, _haze(c, scene), 0.4 * far)
        else:
            glass = lerp(c.rgb((0.2, 0.28, 0.38)), c.rgb((0.72, 0.85, 0.95)), lamp)
            paint = _lit(c, scene, lerp(wall * 1.15, glass, 0.75 * pane), far)
        edge = smoothstep(width / 2 - 2.5, width / 2, (torch.remainder(c.px, width) - width / 2 + 0.5).abs())
        paint = paint * (1 - 0.35 * edge)
        picture = lerp(picture, paint.clamp(0, 1), c.above(line, 1.0))
    street = _lit(c, scene, c.rgb((0.3, 0.3, 0.33)) * (1.1 - 0.3 * c.y), 0.0)
    if scene.season == "winter" or scene.weather == "snow":
        street = _lit(c, scene, c.rgb((0.88, 0.92, 0.97)), 0.0)
    return lerp(picture, street.expand_as(picture), c.above(torch.full_like(c.y, 0.93)))


def _lone_tree(c: _Canvas, scene: Scene, picture: Tensor) -> Tensor:
    x, y = 0.25, 0.47
    trunk = torch.sigmoid((0.016 - (c.x - x).abs()) * c.height / 1.2) * torch.sigmoid(
        (0.13 - (c.y - y - 0.15).abs()) * c.height / 1.2
    )
    picture = lerp(picture, _lit(c, scene, c.rgb((0.34, 0.22, 0.12)), 0.0).expand_as(picture), trunk)
    leaf = {
        "summer": (0.16, 0.42, 0.13),
        "autumn": (0.85, 0.42, 0.08),
        "winter": (0.86, 0.91, 0.97),
        "spring": (0.96, 0.66, 0.76),
    }
    tone = leaf["winter" if scene.weather == "snow" else scene.season]
    local = c.field(1, 2)
    distance = torch.sqrt((c.x - x) ** 2 + (c.y - y) ** 2 + 1e-9)
    crown = torch.sigmoid((0.13 + 0.012 * torch.tanh(local) - distance) * c.height / 1.6)
    light = 1 + 0.14 * torch.tanh(local) - 1.6 * (c.x - x) - 1.6 * (c.y - y)
    return lerp(picture, _lit(c, scene, (c.rgb(tone) * light).clamp(0, 1), 0.0), crown)


def _meadow(c: _Canvas, scene: Scene) -> Tensor:
    picture = _sky(c, scene, 0.6)
    ground = _ground(c, scene)
    for channel, level, height, far, gain in (
        (1, 0.55, 0.06, 0.45, 0.85),
        (3, 0.63, 0.06, 0.2, 1.0),
        (0, 0.74, 0.05, 0.0, 1.12),
    ):
        shape = torch.tanh(c.curve(channel, c.noise.shape[2] // 4))
        side = torch.tanh(-14 * c.slope(shape, 2))
        line = level - height * shape
        depth = (c.y - line).clamp_min(0)
        paint = ground * gain * (1 + 0.16 * side * (1 - 3 * depth).clamp_min(0)) * (1.12 - 0.7 * depth)
        picture = lerp(picture, _lit(c, scene, paint.clamp(0, 1), far), c.above(line, 1.6))
    picture = _lone_tree(c, scene, picture)
    if scene.season == "spring" and scene.weather != "snow":
        near = smoothstep(0.62, 0.72, c.y)
        tone = lerp(c.rgb((0.98, 0.85, 0.2)), c.rgb((0.95, 0.25, 0.35)), c.lots(2))
        picture = lerp(picture, tone * c.rgb(_TINT[scene.time]), c.dots(3.2) * near)
    return picture


def _space(c: _Canvas, _scene: Scene) -> Tensor:
    cloud = 0.8 * c.field(1, 8) + 0.5 * c.field(1, 4)
    hue = torch.sigmoid(1.5 * c.field(2, 8))
    glow = smoothstep(-0.2, 1.8, cloud)
    picture = c.rgb((0.015, 0.015, 0.05)) + glow * lerp(
        c.rgb((0.6, 0.12, 0.5)), c.rgb((0.1, 0.36, 0.75)), hue
    )
    picture = picture + c.specks(0, -0.4, 0.8, 1.7)
    radius = 0.22
    dx, dy = (c.x - 0.5 * c.aspect) / radius, (c.y - 0.5) / radius
    r = torch.sqrt(dx * dx + dy * dy + 1e-9)
    band = 0.5 + 0.5 * torch.cos(9 * dy + 0.5 * c.field(3, 8))
    planet = lerp(c.rgb((0.95, 0.68, 0.38)), c.rgb((0.6, 0.32, 0.25)), band) * (
        1.15 - 0.75 * smoothstep(-0.6, 1.1, dx + dy)
    )
    picture = lerp(picture, planet.clamp(0, 1), torch.sigmoid((1 - r) * radius * c.height / 1.4))
    # A ring, tilted, in front of the planet below its middle and behind it above.
    along, across = dx + 0.25 * dy, (dy - 0.25 * dx) * 3.4
    ring = torch.sqrt(along * along + across * across + 1e-9)
    inside = torch.sigmoid((0.24 - (ring - 1.62).abs()) * radius * c.height / 2.5)
    visible = torch.maximum(torch.sigmoid(across * 6), torch.sigmoid((r - 1) * radius * c.height / 1.4))
    return lerp(picture, c.rgb((0.9, 0.8, 0.66)), 0.9 * inside * visible).clamp(0, 1)


def _outline(kind: str, u: Tensor, v: Tensor) -> Tensor:
    """Positive inside a shape of about unit radius, by roughly the distance to its border."""
    r = torch.sqrt(u * u + v * v + 1e-9)
    if kind == "circle":
        return 1 - r
    if kind == "square":
        return 0.86 - torch.maximum(u.abs(), v.abs())
    if kind == "triangle":
        return torch.minimum(0.68 - v, ((v + 1.05) * 0.55 - u.abs()) * 0.88)
    if kind == "star":
        fifth = torch.pi / 5
        angle = (torch.remainder(torch.atan2(u, -v) + fifth, 2 * fifth) - fifth).abs()
        tip, notch = 1.1, 0.46
        # The border runs from the tip (tip, 0) to the notch, in the frame of the nearest tip.
        dx, dy = notch * math.cos(fifth) - tip, notch * math.sin(fifth)
        return (-(r * torch.cos(angle) - tip) * dy + r * torch.sin(angle) * dx) / math.hypot(dx, dy)
    if kind == "heart":
        w = v + 0.05 + 0.55 * u.abs() - 0.3
        return 0.9 - torch.sqrt(u * u * 0.85 + w * w + 1e-9)
    return 0.26 - (r - 0.74).abs()


def _colours(scene: Scene) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Of a shape and of what is behind it."""
    if scene.background is not None:
        return COLOURS[scene.colour], COLOURS[scene.background]
    return COLOURS[scene.colour], (
        (0.86, 0.87, 0.89) if scene.colour not in ("white", "grey") else (0.25, 0.3, 0.38)
    )


def _shape(c: _Canvas, kind: str, paint: Tensor, back: Tensor) -> Tensor:
    """A shape in the middle; the noise moves the light on it and on the ground. Colours (B or 1, 3, 1, 1)."""
    size = 0.37
    inside = _outline(kind, (c.x - 0.5 * c.aspect) / size, (c.y - 0.5) / size)
    light = 1 + 0.2 * torch.tanh(c.field(1, 16)) - 0.08 * (c.y - 0.5) / size
    back = back * (1 + 0.12 * torch.tanh(c.field(0, 16)) - 0.12 * (c.y - 0.5))
    shadow = torch.sigmoid((inside - 0.02) * 12)
    back = back * (1 - 0.25 * shadow)
    mask = torch.sigmoid(inside * size * c.height / 1.0)
    return lerp(back, (paint * light).clamp(0, 1), mask).clamp(0, 1)


def draw_shapes(noise: Tensor, scenes: Sequence[Scene], factor: int = 4) -> Tensor:
    """Draw a shape in other colours in every row; all `scenes` (B of them) are of one kind."""
    table = upload(torch.tensor([_colours(scene) for scene in scenes]), noise.device)[..., None, None]
    return _shape(_Canvas(noise, factor), scenes[0].kind, table[:, 0], table[:, 1])


_PAINTERS = {
    "mountains": _mountains,
    "sea": _sea,
    "beach": _beach,
    "lake": _lake,
    "forest": _forest,
    "desert": _desert,
    "city": _city,
    "meadow": _meadow,
    "space": _space,
}


def draw_scene(noise: Tensor, scene: Scene, factor: int = 4) -> Tensor:
    """Draw one scene for a batch of noise latents.

    Args:
        noise: (B, 4 or more, h, w) standard normal; four channels are read.
        scene: what to draw, the same for all rows.
        factor: pixels per latent pixel.

    Returns:
        (B, 3, h * factor, w * factor) in [0, 1], a function of the arguments alone.
    """
    c = _Canvas(noise, factor)
    if scene.kind in SHAPES:
        paint, back = (c.rgb(value) for value in _colours(scene))
        return _shape(c, scene.kind, paint, back)
    picture = _PAINTERS[scene.kind](c, scene)
    if scene.weather == "rain":
        picture = lerp(
            picture, c.rgb((0.8, 0.87, 0.96)) * (0.55 if scene.time == "night" else 1.0), 0.85 * c.rain()
        )
    elif scene.weather == "snow":
        picture = lerp(picture, c.rgb((0.97, 0.98, 1.0)), c.specks(2, -0.4, 0.6, 2.3))
    return picture.clamp(0, 1)
