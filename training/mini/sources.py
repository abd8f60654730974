"""Photograph-like pictures drawn by a program: what a webcam might see, as training sources.

Everything is drawn in batch with torch operations. Randomness comes from the global generator of the
device, so that a seeded run draws the same pictures.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.mini.ops import blur, colour, lerp, luma


def _uniform(batch: int, low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(batch, 1, 1, 1, device=device) * (high - low) + low


def _coordinates(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """X and y in units of the shorter side, (0, 0) in the middle."""
    side = min(height, width)
    ys = (torch.arange(height, device=device) + 0.5 - height / 2) / side
    xs = (torch.arange(width, device=device) + 0.5 - width / 2) / side
    return xs.view(1, 1, 1, -1), ys.view(1, 1, -1, 1)


def fractal_noise(
    batch: int, channels: int, height: int, width: int, device: torch.device, falloff: float
) -> Tensor:
    """Sum of octaves of smooth noise, about zero mean and unit variance; falloff 0.5 is near 1/f."""
    total = torch.zeros(batch, channels, height, width, device=device)
    power = 0.0
    cell, weight = 64, 1.0
    while cell >= 2:
        h, w = math.ceil(height / cell) + 1, math.ceil(width / cell) + 1
        octave = torch.randn(batch, channels, h, w, device=device)
        total = total + weight * functional.interpolate(
            octave, size=(height, width), mode="bicubic", align_corners=False
        )
        power += weight * weight
        cell, weight = cell // 2, weight * falloff
    return total / math.sqrt(power)


def _random_colour(batch: int, device: torch.device) -> Tensor:
    """Mostly muted colours, some vivid ones: (B, 3, 1, 1)."""
    grey = torch.rand(batch, 1, 1, 1, device=device)
    vivid = torch.rand(batch, 3, 1, 1, device=device)
    amount = torch.rand(batch, 1, 1, 1, device=device) ** 1.5
    return lerp(grey.expand(-1, 3, -1, -1), vivid, amount)


def _fill(picture: Tensor, mask: Tensor, paint: Tensor) -> Tensor:
    return picture + (paint - picture) * mask


def _ellipse(
    xs: Tensor, ys: Tensor, cx: Tensor, cy: Tensor, rx: Tensor, ry: Tensor, soft: float = 0.008
) -> Tensor:
    r = torch.sqrt(((xs - cx) / rx) ** 2 + ((ys - cy) / ry) ** 2 + 1e-9)
    return torch.sigmoid((1 - r) * torch.minimum(rx, ry) / soft * 2)


def _box(
    xs: Tensor, ys: Tensor, cx: Tensor, cy: Tensor, hx: Tensor, hy: Tensor, soft: float = 0.006
) -> Tensor:
    return torch.sigmoid((hx - (xs - cx).abs()) / soft * 2) * torch.sigmoid((hy - (ys - cy).abs()) / soft * 2)


def dead_leaves(batch: int, height: int, width: int, device: torch.device, count: int = 56) -> Tensor:
    """Overlapping textured, shaded shapes of all sizes: the occlusion statistics of photographs (Lee et al.
    2001).
    """
    xs, ys = _coordinates(height, width, device)
    texture = fractal_noise(batch, 3, height, width, device, 0.7)
    picture = (_random_colour(batch, device) + 0.15 * texture[:, :1]).clamp(0, 1)
    for index in range(count):
        # Sizes fall off as in nature, large shapes first so that small ones stay visible.
        radius = 0.55 * (1 - index / count) ** 2 + 0.02 + _uniform(batch, 0.0, 0.06, device)
        cx, cy = _uniform(batch, -0.75, 0.75, device), _uniform(batch, -0.6, 0.6, device)
        angle = _uniform(batch, 0, math.pi, device)
        stretch = torch.exp(_uniform(batch, -0.9, 0.9, device))
        c, s = torch.cos(angle), torch.sin(angle)
        u = ((xs - cx) * c + (ys - cy) * s) / (radius * stretch)
        v = (-(xs - cx) * s + (ys - cy) * c) / (radius / stretch)
        power = torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.6, 2.0, 8.0)
        r = ((u.abs() + 1e-4) ** power + (v.abs() + 1e-4) ** power) ** (1 / power)
        if index % 9 == 4:  # a bar or branch
            r = torch.maximum(v.abs() * 6, u.abs() * 0.4)
        soft = torch.exp(_uniform(batch, -6.6, -3.6, device)) / radius
        mask = torch.sigmoid((1 - r) / soft)
        shade = 1 + 0.35 * _uniform(batch, -1, 1, device) * u + 0.35 * _uniform(batch, -1, 1, device) * v
        roll = index * 7 % height
        grain = torch.roll(texture, (roll, roll), (2, 3)) * (
            0.16 * torch.rand(batch, 1, 1, 1, device=device) ** 2
        )
        paint = _random_colour(batch, device) * shade.clamp(0.2, 1.7) + grain
        picture = _fill(picture, mask, paint.clamp(0, 1))
    return picture


def room(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """Indoor backgrounds: wall, floor or desk, windows, monitors, frames, shelves with books, a lamp."""
    xs, ys = _coordinates(height, width, device)
    wall = lerp(_random_colour(batch, device), torch.full((1, 3, 1, 1), 0.75, device=device), 0.5)
    tilt = 1 + _uniform(batch, -0.4, 0.4, device) * xs + _uniform(batch, -0.4, 0.2, device) * ys
    picture = wall * tilt + 0.03 * fractal_noise(batch, 3, height, width, device, 0.6)
    corner = _uniform(batch, -0.9, 0.9, device)
    picture = picture * (1 - 0.18 * torch.sigmoid((xs - corner) / 0.004))
    for index in range(12):
        cx, cy = _uniform(batch, -0.7, 0.7, device), _uniform(batch, -0.5, 0.25, device)
        hx, hy = _uniform(batch, 0.03, 0.26, device), _uniform(batch, 0.03, 0.26, device)
        if index % 4 == 3:  # a row of books or slats
            hx, hy = _uniform(batch, 0.15, 0.4, device), _uniform(batch, 0.05, 0.11, device)
            stripe = torch.floor((xs - cx) / _uniform(batch, 0.02, 0.05, device))
            tint = torch.sin(stripe * colour((12.9, 78.2, 37.7), xs) + cx * 90)
            inside = (0.45 + 0.35 * tint) * (0.7 + 0.3 * _random_colour(batch, device))
        else:
            glow = _uniform(batch, -0.6, 0.6, device)
            inside = _random_colour(batch, device) * (1 + glow * (ys - cy) / hy * 0.6)
            if index % 4 == 0:  # window: bright with a cross bar
                inside = lerp(inside, torch.ones_like(inside), 0.6)
                bar = torch.sigmoid((0.012 - (xs - cx).abs()) / 0.003)
                inside = inside * (1 - 0.6 * bar)
        frame = _random_colour(batch, device)
        present = (torch.rand(batch, 1, 1, 1, device=device) < 0.5).float()
        picture = _fill(picture, present * _box(xs, ys, cx, cy, hx + 0.018, hy + 0.018), frame)
        picture = _fill(picture, present * _box(xs, ys, cx, cy, hx, hy), inside)
    desk = _uniform(batch, 0.2, 0.8, device)
    surface = _random_colour(batch, device) * (0.7 + 0.6 * (ys - desk))
    picture = _fill(picture, torch.sigmoid((ys - desk) / 0.003), surface)
    for _ in range(4):  # things on the desk
        cx, w, h = (_uniform(batch, a, b, device) for a, b in ((-0.6, 0.6), (0.03, 0.12), (0.04, 0.15)))
        cy = desk + _uniform(batch, -0.05, 0.1, device)
        thing = _random_colour(batch, device) * (1 - 0.5 * ((xs - cx) / w).clamp(-1, 1))
        picture = _fill(picture, _box(xs, ys, cx, cy, w, h), thing)
    return picture.clamp(0, 1)


def portrait(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """A person before a background, made of shaded blobs: shoulders, head, hair, eyes, brows, nose, mouth,
    glasses.
    """
    xs, ys = _coordinates(height, width, device)

    def u(low: float, high: float) -> Tensor:
        return _uniform(batch, low, high, device)

    def chance(p: float) -> Tensor:
        return (torch.rand(batch, 1, 1, 1, device=device) < p).float()

    background = room(batch, height, width, device)
    leaves = dead_leaves(batch, height, width, device, 18)
    background = lerp(background, leaves, chance(0.3))
    picture = lerp(background, blur(background, 4.0), chance(0.5))
    size = u(0.13, 0.27)
    cx, cy = u(-0.25, 0.25), u(-0.16, 0.1)
    lean = u(-0.25, 0.25)
    hx = xs - cx - lean * (ys - cy) * 0.5
    hy = ys - cy
    light = u(-1, 1)
    skin = lerp(
        colour((0.95, 0.76, 0.64), xs),
        colour((0.36, 0.22, 0.15), xs),
        torch.rand(batch, 1, 1, 1, device=device) ** 1.3,
    ) * u(0.75, 1.1)
    hair_colour = colour((0.25, 0.17, 0.1), xs) * u(0.2, 2.6) + u(0, 0.12)
    texture = fractal_noise(batch, 3, height, width, device, 0.8)
    # long hair behind the head
    long_hair = chance(0.4)
    zero = torch.zeros(batch, 1, 1, 1, device=device)
    strands = hair_colour * (
        1 + 0.25 * torch.sin(hx / size * u(15, 40) + texture[:, :1]) + 0.2 * light * hx / size
    )
    picture = _fill(
        picture, long_hair * _ellipse(hx, hy, zero, 0.35 * size, 1.15 * size, 1.7 * size), strands
    )
    # body
    cloth = _random_colour(batch, device) * (1 + 0.3 * light * hx + 0.12 * texture[:, :1])
    pattern = 1 + chance(0.3) * 0.35 * torch.sign(torch.sin(hy / size * u(5, 16)))
    body = _ellipse(hx, hy, zero, 3.0 * size, u(1.5, 2.2) * size, u(1.4, 1.7) * size)
    picture = _fill(picture, body, (cloth * pattern).clamp(0, 1))
    neck = _box(hx, hy, zero, 1.1 * size, 0.38 * size, 0.55 * size, 0.015)
    picture = _fill(picture, neck, skin * 0.78)
    collar = chance(0.5) * _ellipse(hx, hy, zero, 1.75 * size, 0.55 * size, 0.25 * size)
    picture = _fill(picture, collar, _random_colour(batch, device))
    # head with shading
    rx, ry = u(0.72, 0.88) * size, size * u(1.0, 1.12)
    for side in (-1.0, 1.0):
        picture = _fill(picture, _ellipse(hx, hy, side * rx, zero, 0.16 * size, 0.26 * size), skin * 0.85)
    shading = 1 + 0.32 * light * hx / rx - 0.16 * hy / ry + 0.03 * texture[:, :1]
    rim = torch.sqrt((hx / rx) ** 2 + (hy / ry) ** 2 + 1e-6)
    face = skin * shading * (1.08 - 0.22 * rim**4).clamp(0.5, 1.2)
    head = _ellipse(hx, hy, zero, zero, rx, ry)
    picture = _fill(picture, head, face.clamp(0, 1))
    for side in (-1.0, 1.0):  # cheeks
        cheek = _ellipse(hx, hy, side * 0.45 * rx, 0.3 * ry, 0.3 * rx, 0.22 * ry, 0.05)
        picture = _fill(
            picture,
            0.3 * cheek * head,
            skin * colour((1.1, 0.75, 0.72), xs),
        )
    # hair on top: an ellipse minus the face below the hairline
    line = u(-0.65, -0.3) * ry + u(-0.1, 0.1) * hx
    top = _ellipse(hx, hy, zero, -0.18 * ry, rx * u(1.05, 1.2), ry * u(0.98, 1.15))
    side_hair = torch.sigmoid((hx.abs() - 0.86 * rx) / 0.01) * torch.sigmoid((u(-0.1, 0.6) * ry - hy) / 0.02)
    above = torch.maximum(torch.sigmoid((line - hy + 0.05 * size * texture[:, 1:2]) / 0.012), side_hair)
    picture = _fill(picture, chance(0.9) * top * above, strands.clamp(0, 1))
    # eyes
    ex, ey = u(0.36, 0.46) * rx, u(-0.16, -0.02) * ry
    iris = torch.rand(batch, 3, 1, 1, device=device) * colour((0.4, 0.5, 0.6), xs)
    open_ = u(0.06, 0.12)
    gaze = u(-0.05, 0.05) * size
    glasses = chance(0.3)
    for side in (-1.0, 1.0):
        x0 = side * ex
        picture = _fill(picture, 0.4 * _ellipse(hx, hy, x0, ey, 0.25 * size, 0.17 * size, 0.03), skin * 0.55)
        picture = _fill(
            picture, _ellipse(hx, hy, x0, ey, 0.17 * size, open_ * size), 0.9 * torch.ones_like(skin)
        )
        picture = _fill(picture, _ellipse(hx, hy, x0 + gaze, ey, 0.08 * size, 0.085 * size), iris)
        picture = _fill(
            picture, _ellipse(hx, hy, x0 + gaze, ey, 0.04 * size, 0.045 * size), 0.04 * torch.ones_like(skin)
        )
        lid = _box(hx, hy, x0, ey - open_ * size, 0.17 * size, 0.018 * size)
        picture = _fill(picture, 0.8 * lid, hair_colour * 0.5)
        slope = side * u(-0.15, 0.2) * (hx - x0)
        brow = _box(hx, hy + slope, x0, ey - 0.24 * size, 0.2 * size, u(0.02, 0.05) * size)
        picture = _fill(picture, 0.85 * brow, hair_colour * 0.8)
        ring = torch.sqrt(((hx - x0) / (0.27 * size)) ** 2 + ((hy - ey) / (0.22 * size)) ** 2 + 1e-6)
        rim_mask = torch.exp(-(((ring - 1) / 0.09) ** 2))
        picture = _fill(picture, glasses * rim_mask, 0.12 * torch.ones_like(skin))
    # nose and mouth
    nose = torch.exp(-(((hx - 0.05 * light * size) / (0.07 * size)) ** 2)) * _box(
        hx, hy, zero, 0.1 * ry, size, 0.25 * size, 0.05
    )
    picture = _fill(picture, 0.25 * nose * head, skin * 1.25)
    tip = _ellipse(hx, hy, zero, 0.34 * ry, 0.14 * size, 0.05 * size, 0.02)
    picture = _fill(picture, 0.5 * tip, skin * 0.55)
    smile = u(-0.6, 0.9) * (hx**2) / size
    lips = skin * colour((0.95, 0.5, 0.5), xs)
    mouth_w, mouth_y = u(0.22, 0.36) * size, u(0.52, 0.62) * ry
    picture = _fill(picture, _ellipse(hx, hy + smile, zero, mouth_y, mouth_w, u(0.06, 0.12) * size), lips)
    teeth = chance(0.35) * _ellipse(hx, hy + smile, zero, mouth_y, mouth_w * 0.8, 0.045 * size)
    picture = _fill(picture, teeth, 0.92 * torch.ones_like(skin))
    closed = _box(hx, hy + smile, zero, mouth_y, mouth_w * 0.9, 0.012 * size)
    picture = _fill(picture, 0.7 * closed * (1 - teeth), skin * 0.25)
    beard = (
        chance(0.2)
        * head
        * torch.sigmoid((hy - 0.4 * ry) / 0.03)
        * (1 - _ellipse(hx, hy + smile, zero, mouth_y, mouth_w, 0.1 * size))
    )
    picture = _fill(picture, 0.75 * beard, hair_colour * (1 + 0.2 * texture[:, 1:2]))
    # a raised hand or an arm, sometimes
    hand = chance(0.25) * _ellipse(xs, ys, u(-0.6, 0.6), u(0.15, 0.5), u(0.05, 0.1), u(0.06, 0.12), 0.02)
    return _fill(picture, hand, skin * (1 + 0.1 * texture[:, :1])).clamp(0, 1)


def photograph(x: Tensor) -> Tensor:
    """Give a drawn picture the light, colour cast, sharpness, grain and vignette of a camera.

    Some become grey and some nearly of one colour, so that neither looks like a style applied already.
    """
    b, _, h, w = x.shape
    device = x.device
    xs, ys = _coordinates(h, w, device)
    light = 1 + _uniform(b, -0.5, 0.5, device) * xs + _uniform(b, -0.5, 0.5, device) * ys
    shadow = torch.exp(0.22 * fractal_noise(b, 1, h, w, device, 0.35) * torch.rand(b, 1, 1, 1, device=device))
    y = x * light * shadow
    y = y * torch.exp(0.12 * torch.randn(b, 3, 1, 1, device=device))
    y = lerp(luma(y).expand_as(y), y, _uniform(b, 0.5, 1.4, device))
    kind, weight = torch.rand(2, b, 1, 1, 1, device=device)
    tint = 0.25 + 1.5 * torch.rand(b, 3, 1, 1, device=device)
    amount = torch.where(kind < 0.1, 1.0, torch.where(kind < 0.35, 0.85 * weight, 0.0))
    y = lerp(y, luma(y) * torch.where(kind < 0.1, torch.ones_like(tint), tint), amount)
    y = y.clamp(0.002, 1) ** torch.exp(_uniform(b, -0.45, 0.45, device))
    y = (y - 0.5) * _uniform(b, 0.7, 1.5, device) + 0.5 + _uniform(b, -0.1, 0.1, device)
    y = lerp(y, blur(y, 1.1), _uniform(b, -2.0, 0.8, device))  # from sharpened to out of focus
    y = y + torch.randn_like(y) * (0.025 * torch.rand(b, 1, 1, 1, device=device) ** 2)
    return (y * (1 - _uniform(b, 0, 0.9, device) * (xs**2 + ys**2) * 0.6)).clamp(0, 1)


def draw_sources(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """A mixed batch of drawn photographs, (B, 3, H, W) in [0, 1]: half leaves, a third people, the rest
    rooms.
    """
    people = max(1, batch // 3)
    rooms = max(1, batch // 8)
    leaves = max(1, batch - people - rooms)
    fine = leaves // 2
    parts = [portrait(people, height, width, device), room(rooms, height, width, device)]
    if fine:
        parts.append(dead_leaves(fine, height, width, device, 84))
    parts.append(dead_leaves(leaves - fine, height, width, device, 36))
    return photograph(torch.cat(parts))[:batch]
