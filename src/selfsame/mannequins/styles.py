"""Ways of making a picture: each takes the lit picture and what is known of it, and returns sRGB in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Plate:
    """One lit picture: colour 3 h w in [0, 1], camera normals 3 h w, depth h w in [0, 1], labels h w,
    brightness of the light h w (about 0.5 in shadow, 1.5 in full light), and its own random numbers."""

    image: Tensor
    normal: Tensor
    depth: Tensor
    label: Tensor
    light: Tensor
    rng: np.random.Generator

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
    """Contours of shape and of tone, 0..1."""
    shape = ((_gradient(p.depth[None]) - 0.05) * 5).clamp(0, 1)
    fold = ((_gradient(p.normal) - 0.75) * 0.9).clamp(0, 0.6)
    tones = ((_gradient(grey(p.image)[None]) - 0.13) * 3.2).clamp(0, 1)
    return torch.maximum(torch.maximum(shape, fold), tones)


def photo(p: Plate) -> Tensor:
    return p.image


def pencil(p: Plate) -> Tensor:
    g = grey(p.image)
    h, w = g.shape
    y, x = torch.meshgrid(torch.arange(h, device=g.device), torch.arange(w, device=g.device), indexing="ij")
    hatch = 0.5 + 0.5 * torch.sin((x + y).float() * 1.05 + 0.6 * p.noise(10))
    shade = ((0.74 - g) * 1.25).clamp(0, 0.8)
    subject = torch.where(p.label > 0, 1.0, 0.5)
    paper = 0.97 - subject * shade * (0.72 + 0.28 * hatch) - 0.62 * subject * outlines(p)
    return (paper.clamp(0.06, 1)) * p.colour(252, 250, 244)


def watercolour(p: Plate) -> Tensor:
    soft = torch.where((p.label > 0)[None], 0.45 * p.image + 0.55 * blur(p.image, 3), blur(p.image, 7))
    wash = torch.round(soft * 7) / 7 * 0.55 + soft * 0.45
    g = grey(wash)[None]
    wash = g + (wash - g) * 1.35
    paper = 1 - (1 - wash) * (0.80 + 0.14 * p.noise(14))
    darker = (_gradient(blur(p.image, 3)) * 0.55).clamp(0, 0.3)
    return (paper + 0.05) * (1 - darker) + 0.0


def pixel_art(p: Plate) -> Tensor:
    small = F.avg_pool2d(p.image[None], 2)[0]
    small = torch.round((small * 1.06 - 0.03).clamp(0, 1) * 8) / 8
    edge = F.max_pool2d((((_gradient(p.depth[None]) - 0.08) * 5).clamp(0, 1))[None, None], 2)[0, 0]
    small = small * (1 - 0.6 * edge)
    return small.repeat_interleave(2, 1).repeat_interleave(2, 2)


def film_noir(p: Plate) -> Tensor:
    g = grey(p.image)
    g = torch.where(p.label > 0, g, 0.55 * blur(g[None], 5)[0])
    g = ((g - 0.05) * 1.12).clamp(0, 1).pow(0.85)
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
    g = grey(p.image)[None]
    pale = torch.lerp(g.expand_as(p.image), p.image, 0.62)
    matte = 0.14 + 0.80 * pale
    thumb = 1 + 0.05 * p.noise(18) * torch.where(p.label > 0, 1.0, 0.5)
    return matte * thumb * (1 - 0.35 * (_gradient(p.depth[None]) * 1.5).clamp(0, 1)) * p.colour(255, 246, 232)


def comic(p: Plate) -> Tensor:
    flat = p.image / p.light.clamp_min(0.3).sqrt()
    level = 0.72 + 0.20 * ((p.light - 0.74) * 12).clamp(0, 1) + 0.14 * ((p.light - 1.25) * 12).clamp(0, 1)
    flat = torch.where((p.label > 0)[None], flat * level, blur(p.image, 3))
    mean = grey(flat)[None]
    flat = (mean + (flat - mean) * 1.35).clamp(0, 1)
    flat = torch.round(flat * 9) / 9
    flat = torch.where((p.label > 0)[None], flat, 0.35 + 0.65 * flat)
    return flat * (1 - 0.85 * outlines(p))


STYLE_PAINTERS: dict[str, Callable[[Plate], Tensor]] = {
    "photo": photo, "pencil sketch": pencil, "watercolour": watercolour, "pixel art": pixel_art,
    "film noir": film_noir, "neon": neon, "clay": clay, "comic": comic,
}  # fmt: skip


def apply_style(style: str, image: Tensor, normal: Tensor, depth: Tensor, label: Tensor, light: Tensor, seed: int) -> Tensor:
    """Redo one picture in a style, 3 h w in [0, 1]."""
    plate = Plate(image, normal, depth, label, light, np.random.default_rng([0x57E1E, seed]))
    return STYLE_PAINTERS[style](plate)
