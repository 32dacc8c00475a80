"""Ways of making a picture: each takes the lit picture and what is known of it, and returns sRGB in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.mannequins.paint import EYES, GLASSES


@dataclass
class Plate:
    """What is known of a picture before its style: lit colour and bare paint 3 h w in [0, 1], camera normals 3 h w, depth
    h w in [0, 1], labels h w, brightness of the light h w (about 0.5 in shadow, 1.5 in full light).

    A batch of pictures has b in front of all; `of` takes one out, with random numbers of its own.
    """

    image: Tensor
    paint: Tensor
    normal: Tensor
    depth: Tensor
    label: Tensor
    light: Tensor
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    def of(self, i: int, seed: int) -> Plate:
        rng = np.random.default_rng([0x57E1E, seed])
        return Plate(self.image[i], self.paint[i], self.normal[i], self.depth[i], self.label[i], self.light[i], rng)

    def colour(self, r: float, g: float, b: float) -> Tensor:
        return torch.tensor([r, g, b], device=self.image.device).view(3, 1, 1) / 255

    def noise(self, cells: int) -> Tensor:
        h, w = self.depth.shape
        grid = self.rng.uniform(-1, 1, (1, 1, cells + 2, round(cells * w / h) + 2)).astype(np.float32)
        return F.interpolate(torch.from_numpy(grid).to(self.image.device), (h, w), mode="bicubic", align_corners=True)[0, 0]


def blur(t: Tensor, size: int) -> Tensor:
    pad = size // 2
    return F.avg_pool2d(F.pad(t[None], (pad, pad, pad, pad), mode="replicate"), size, 1)[0]


def grey(image: Tensor) -> Tensor:
    return 0.30 * image[0] + 0.59 * image[1] + 0.11 * image[2]


def _gradient(t: Tensor) -> Tensor:
    """Length of the central difference, summed over channels. c h w -> h w."""
    p = F.pad(t[None], (1, 1, 1, 1), mode="replicate")[0]
    dx, dy = p[:, 1:-1, 2:] - p[:, 1:-1, :-2], p[:, 2:, 1:-1] - p[:, :-2, 1:-1]
    return torch.sqrt((dx * dx + dy * dy).sum(0) + 1e-8)


def outlines(p: Plate) -> Tensor:
    """Contours of shape and of tone, 0..1; glasses are lines already and get none of their own."""
    shape = ((_gradient(p.depth[None]) - 0.05) * 5).clamp(0, 1)
    fold = ((_gradient(p.normal) - 0.75) * 0.9).clamp(0, 0.6)
    g = grey(p.paint)
    tones = ((_gradient(g[None]) / (0.35 + 0.65 * g) - 0.14) * 3.0).clamp(0, 1) * torch.where(p.label == EYES, 0.35, torch.where(p.label > 0, 1.0, 0.35))
    lines = torch.maximum(torch.maximum(shape, fold), tones)
    wire = (p.label == GLASSES).float()[None]
    around = F.max_pool2d(wire[None], 3, 1, 1)[0, 0]
    return torch.where(around > 0, torch.maximum(0.9 * wire[0], 0.4 * tones), lines)


def steps_of_light(p: Plate, edges: tuple[float, ...], levels: tuple[float, ...]) -> Tensor:
    """Light in a few flat steps with soft seams, h w: one level more than edges."""
    level = torch.full_like(p.light, levels[0])
    for edge, low, high in zip(edges, levels, levels[1:], strict=False):
        level = level + (high - low) * ((p.light - edge) * 9 + 0.5).clamp(0, 1)
    return level


def photo(p: Plate) -> Tensor:
    return p.image


def pencil(p: Plate) -> Tensor:
    g = grey(p.paint)
    h, w = g.shape
    y, x = torch.meshgrid(torch.arange(h, device=g.device), torch.arange(w, device=g.device), indexing="ij")
    hatch = 0.5 + 0.5 * torch.sin((x + y).float() * 1.05 + 0.6 * p.noise(10))
    here = p.label > 0
    local = 0.60 * (0.92 - g).clamp(0, 1) ** 1.3  # what is dark by itself
    form = torch.where(here, 0.42 * (1.15 - p.light).clamp(0, 1), 0.0)  # what lies in shade
    shade = torch.where(here, local + form * (0.35 + 0.65 * g), 0.5 * local)
    paper = 0.97 - shade * (0.78 + 0.30 * hatch * (shade * 2.5).clamp(0, 1)) - torch.where(here, 0.66, 0.33) * outlines(p)
    return (paper.clamp(0.06, 1)) * p.colour(252, 250, 244)


def watercolour(p: Plate) -> Tensor:
    here = (p.label > 0)[None]
    washed = p.paint * (0.62 + 0.38 * blur(p.light[None], 5)).clamp(0.7, 1.12)
    soft = torch.where(here, 0.55 * washed + 0.45 * blur(washed, 3), blur(p.image, 7))
    g = grey(soft)[None]
    wash = (g + (soft - g) * 1.25).clamp(0, 1)
    wash = wash * 0.88 + 0.12  # paper shines through
    grain = 0.10 * p.noise(30) + 0.08 * p.noise(9)
    pooled = 1 + grain * torch.where(here, 0.5, 1.0) * (1.2 - wash)
    rim = (_gradient(blur(p.paint, 3)) * 0.5).clamp(0, 0.28)
    return wash * pooled * (1 - rim)


def pixel_art(p: Plate) -> Tensor:
    cel = p.paint * steps_of_light(p, (0.72, 1.02, 1.3), (0.66, 0.84, 1.0, 1.1))
    flat = torch.where((p.label > 0)[None], cel, torch.round(blur(p.image, 3) * 10) / 10)
    small = F.avg_pool2d(flat[None], 2)[0]
    edge = F.max_pool2d((((_gradient(p.depth[None]) - 0.08) * 5).clamp(0, 1))[None, None], 2)[0, 0]
    small = torch.round((small * (1 - 0.6 * edge)).clamp(0, 1) * 31) / 31
    return small.repeat_interleave(2, 1).repeat_interleave(2, 2)


def film_noir(p: Plate) -> Tensor:
    g = grey(p.image)
    g = torch.where(p.label > 0, g, 0.55 * blur(g[None], 5)[0])
    g = ((g - 0.05) * 1.12).clamp(0, 1).pow(0.75)
    g = 0.45 * g + 0.55 * g * g * (3 - 2 * g)
    h, w = g.shape
    y = torch.linspace(-1, 1, h, device=g.device).view(-1, 1)
    x = torch.linspace(-1, 1, w, device=g.device).view(1, -1)
    return (g * (1 - 0.28 * (x * x + y * y))).clamp(0, 1) * p.colour(250, 248, 240)


def neon(p: Plate) -> Tensor:
    left, right = p.colour(255, 40, 150), p.colour(40, 210, 255)
    side = (0.5 + 0.6 * p.normal[0]).clamp(0, 1)
    glow = torch.lerp(left.expand(3, *side.shape), right.expand(3, *side.shape), side)
    dim = p.image * p.colour(86, 70, 128) * torch.where(p.label > 0, 1.0, 0.55)
    body = dim + 0.55 * grey(p.image) * glow * torch.where(p.label > 0, 1.0, 0.25)
    lines = outlines(p) * torch.where(p.label > 0, 1.0, 0.45)
    return body + (lines * 0.9 + 0.5 * blur(lines[None], 5)[0]) * glow


def clay(p: Plate) -> Tensor:
    here = p.label > 0
    g = grey(p.image)[None]
    pale = torch.lerp(g.expand_as(p.image), p.image, 0.84)
    matte = 0.05 + 0.95 * pale
    thumb = 1 + 0.07 * p.noise(22) * torch.where(here, 1.0, 0.4)
    smear = blur(matte, 3)
    matte = torch.where(here, 0.75 * matte + 0.25 * smear, smear)
    return matte * thumb * (1 - 0.35 * (_gradient(p.depth[None]) * 1.5).clamp(0, 1)) * p.colour(255, 244, 228)


def comic(p: Plate) -> Tensor:
    here = (p.label > 0)[None]
    flat = torch.where(here, p.paint * steps_of_light(p, (0.80, 1.28), (0.74, 1.0, 1.12)), blur(p.image, 3))
    mean = grey(flat)[None]
    flat = (mean + (flat - mean) * 1.2).clamp(0, 1)
    flat = torch.where(here, flat, 0.35 + 0.65 * torch.round(flat * 7) / 7)
    return flat * (1 - 0.85 * outlines(p))


STYLE_PAINTERS: dict[str, Callable[[Plate], Tensor]] = {
    "photo": photo, "pencil sketch": pencil, "watercolour": watercolour, "pixel art": pixel_art,
    "film noir": film_noir, "neon": neon, "clay": clay, "comic": comic,
}  # fmt: skip


def apply_style(style: str, plate: Plate) -> Tensor:
    """Redo one picture in a style, 3 h w in [0, 1]."""
    return STYLE_PAINTERS[style](plate)
