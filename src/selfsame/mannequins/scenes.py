"""Where pictures happen: twelve painted backdrops, and the light and contact shadow that go with them.

A backdrop is a function of pixel coordinates and a few random numbers; it returns linear light. Coordinates are camera
units (x right, y up, y in [-1, 1]).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.mannequins.attributes import Light

Rgb = tuple[float, float, float]


class Backcloth:
    """One picture's canvas and its random numbers."""

    def __init__(self, height: int, width: int, rng: np.random.Generator, device: torch.device) -> None:
        self.rng, self.device = rng, device
        self.y = (1 - (torch.arange(height, device=device) + 0.5) * 2 / height).view(-1, 1).expand(height, width)
        self.x = ((torch.arange(width, device=device) + 0.5 - width / 2) * 2 / height).view(1, -1).expand(height, width)
        self.soft = 2.5 / height

    def colour(self, value: Rgb, jitter: float = 0.0) -> Tensor:
        c = np.asarray(value) / 255 * (1 + jitter * self.rng.uniform(-1, 1, 3))
        return torch.tensor(np.clip(c, 0, 1) ** 2, dtype=torch.float32, device=self.device).view(3, 1, 1)

    def u(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def noise(self, cells_y: int, cells_x: int) -> Tensor:
        """Smooth noise in [-1, 1] with about that many bumps, h w."""
        grid = self.rng.uniform(-1, 1, (1, 1, cells_y + 2, cells_x + 2)).astype(np.float32)
        return F.interpolate(torch.from_numpy(grid).to(self.device), self.x.shape, mode="bicubic", align_corners=True)[0, 0]

    def edge(self, inside: Tensor, width: float = 1.0) -> Tensor:
        return (inside / (self.soft * width) + 0.5).clamp(0, 1)

    def sky(self, top: Rgb, low: Rgb, horizon: float = 0.0) -> Tensor:
        t = ((self.y - horizon) / (1 - horizon)).clamp(0, 1)
        return torch.lerp(self.colour(low, 0.08), self.colour(top, 0.08), t)

    def lay(self, picture: Tensor, colour: Tensor, weight: Tensor) -> Tensor:
        return torch.lerp(picture, colour.expand_as(picture), weight)

    def disc(self, x: float, y: float, r: float, soft: float = 1.0) -> Tensor:
        return self.edge(r - torch.sqrt((self.x - x) ** 2 + (self.y - y) ** 2 + 1e-9), soft)

    def dot(self, picture: Tensor, colour: Tensor, x: float, y: float, r: float, hollow: float = 0.0) -> None:
        """Paint a small disc (or ring of that half width) into the picture in place, touching only the pixels around it."""
        half, (h, w) = self.x.shape[0] / 2, self.x.shape
        reach = r + hollow + self.soft
        left, right = max(0, int((x - reach) * half + w / 2)), min(w, int((x + reach) * half + w / 2) + 2)
        top, bottom = max(0, int((1 - y - reach) * half)), min(h, int((1 - y + reach) * half) + 2)
        if left >= right or top >= bottom:
            return
        away = torch.sqrt((self.x[top:bottom, left:right] - x) ** 2 + (self.y[top:bottom, left:right] - y) ** 2 + 1e-9)
        weight = 0.8 * self.edge(hollow - (away - r).abs()) if hollow else self.edge(r - away)
        picture[:, top:bottom, left:right].lerp_(colour.expand_as(picture[:, top:bottom, left:right]), weight)

    def row_of(self, widths: tuple[float, float], gap: tuple[float, float], start: float, end: float) -> tuple[Tensor, Tensor, int]:
        """Boxes of random widths side by side: per column, which box it lies in and how far inside its sides it is; how many boxes."""
        lefts, rights = [], []
        x = start
        while x < end:
            width = self.u(*widths)
            lefts.append(x)
            rights.append(x + width)
            x += width + self.u(*gap)
        columns = self.x[0]
        a, c = (torch.tensor(v, dtype=torch.float32, device=self.device) for v in (lefts, rights))
        which = (torch.searchsorted(a, columns.contiguous(), right=True) - 1).clamp(0, len(lefts) - 1)
        return which, torch.minimum(columns - a[which], c[which] - columns), len(lefts)

    def tones(self, choices: tuple[Rgb, ...], count: int, jitter: float) -> Tensor:
        """`count` colours drawn from some, each jittered: count 3."""
        picked = np.asarray(choices)[self.rng.integers(len(choices), size=count)] / 255 * (1 + jitter * self.rng.uniform(-1, 1, (count, 3)))
        return torch.tensor(np.clip(picked, 0, 1) ** 2, dtype=torch.float32, device=self.device)

    def draws(self, low: float, high: float, count: int) -> Tensor:
        return torch.tensor(self.rng.uniform(low, high, count), dtype=torch.float32, device=self.device)

    def ridge(self, level: float, rough: float, cells: int) -> Tensor:
        """Signed height below a rolling outline: positive inside the hills."""
        return level + rough * self.noise(1, cells)[:1] - self.y


def studio(b: Backcloth) -> Tensor:
    hue = np.clip(np.array([b.u(70, 225), b.u(70, 225), b.u(70, 225)]), 0, 255)
    glow = torch.exp(-((b.x - b.u(-0.5, 0.5)) ** 2 + (b.y - b.u(-0.2, 0.6)) ** 2) / 1.1)
    return b.colour(tuple(hue)) * (0.45 + 0.65 * glow)


def beach(b: Backcloth) -> Tensor:
    horizon = b.u(-0.15, 0.15)
    p = b.sky((72, 148, 226), (206, 232, 246), horizon)
    p = b.lay(p, b.colour((250, 250, 250)), 0.8 * (b.noise(4, 5) + 0.8 * (b.y - horizon) - 0.55).clamp(0, 1) * b.edge(b.y - horizon - 0.1, 9))
    sea = b.colour((24, 126, 168), 0.08) * (1 + 0.18 * torch.sin(b.y * 60 + 2 * b.noise(3, 4)))
    p = b.lay(p, sea, b.edge(horizon - b.y))
    shore = horizon - 0.34 + 0.05 * torch.sin(b.x * b.u(1.5, 3) + b.u(0, 6))
    p = b.lay(p, b.colour((240, 246, 246)), b.edge(shore + 0.05 - b.y, 2))
    p = b.lay(p, b.colour((232, 206, 152), 0.05) * (1 + 0.07 * b.noise(20, 26)), b.edge(shore - b.y, 3))
    side = 1 if b.u(-1, 1) > 0 else -1
    trunk_x = side * (0.78 + 0.12 * (b.y - horizon) ** 2)
    p = b.lay(p, b.colour((120, 84, 54)), b.edge(0.045 - (b.x - trunk_x).abs()) * b.edge(b.y - shore) * b.edge(0.72 - b.y))
    for i in range(5):
        a = np.deg2rad(18 + 36 * i)
        dx, dy = b.x - side * 0.82, b.y - 0.70
        along, across = dx * np.cos(a) + dy * np.sin(a), -dx * np.sin(a) + dy * np.cos(a) + 0.55 * (dx * np.cos(a) + dy * np.sin(a)) ** 2
        leaf = torch.minimum(0.075 - across.abs() - 0.08 * along.abs(), torch.minimum(along, 0.52 - along))
        p = b.lay(p, b.colour((46, 128, 62)), b.edge(leaf))
    return p


def forest(b: Backcloth) -> Tensor:
    p = b.sky((150, 196, 150), (206, 224, 170), -0.4) * (1 + 0.15 * b.noise(6, 8))
    for depth, (tone, width, count) in enumerate((((92, 128, 86), 0.05, 7), ((62, 82, 52), 0.08, 5), ((58, 46, 36), 0.12, 3))):
        for _ in range(count):
            x0, lean = b.u(-1.3, 1.3), b.u(-0.06, 0.06)
            p = b.lay(p, b.colour(tone, 0.1), b.edge(width * b.u(0.6, 1.1) - (b.x - x0 - lean * b.y).abs()))
        leaves = b.noise(7 + 2 * depth, 9 + 2 * depth) + 1.2 * (b.y - 0.45 - 0.12 * depth)
        p = b.lay(p, b.colour((64 - 8 * depth, 138 - 24 * depth, 62 - 8 * depth), 0.1), b.edge(leaves, 10))
    return b.lay(p, b.colour((84, 112, 50), 0.08) * (1 + 0.25 * b.noise(14, 16)), b.edge(-0.55 - b.y + 0.05 * b.noise(1, 5), 3))


def city(b: Backcloth) -> Tensor:
    p = b.sky((128, 176, 220), (226, 214, 196), -0.6)
    for layer, tone in enumerate(((168, 176, 192), (116, 124, 146), (82, 84, 104))):
        which, inset, count = b.row_of((0.22, 0.46), (0.0, 0.10), -1.6 - b.u(0, 0.3), 2.2)
        tops, walls = b.draws(-0.1, 0.95 - 0.28 * layer, count)[which], b.tones((tone,), count, 0.12)[which]
        inside = torch.minimum(inset[None], tops[None] - b.y)
        p = b.lay(p, walls.T[:, None], b.edge(inside))
        lit = ((b.x * 15 + 7 * which) % 1 > 0.42) & (b.y * 11 % 1 > 0.46) & (inside > 0.035)
        p = b.lay(p, b.colour((250, 226, 150), 0.1), lit * (0.25 + 0.2 * layer))
    return b.lay(p, b.colour((92, 92, 100)), b.edge(-0.78 - b.y))


def mountains(b: Backcloth) -> Tensor:
    p = b.sky((88, 150, 222), (220, 234, 246), -0.3)
    for level, tone, rough in ((0.35, (150, 170, 202), 0.45), (0.02, (98, 120, 152), 0.5)):
        outline = level + rough * b.noise(1, 4)[:1] + 0.10 * b.noise(1, 13)[:1]
        p = b.lay(p, b.colour(tone, 0.06), b.edge(outline - b.y))
        snow = torch.minimum(outline - b.y, b.y - outline + 0.26 + 0.08 * b.noise(1, 11)[:1])
        p = b.lay(p, b.colour((248, 250, 252)), b.edge(snow))
    return b.lay(p, b.colour((236, 242, 250)) * (1 + 0.05 * b.noise(5, 6)), b.edge(-0.5 + 0.1 * b.noise(1, 3)[:1] - b.y, 2))


def desert(b: Backcloth) -> Tensor:
    p = b.sky((86, 158, 216), (250, 222, 168), -0.1)
    p = b.lay(p, b.colour((255, 246, 214)), b.disc(b.u(-0.9, 0.9), b.u(0.55, 0.85), 0.13, 3))
    for level, tone in ((0.02, (230, 176, 108)), (-0.22, (216, 152, 84)), (-0.5, (196, 128, 66))):
        outline = level + 0.16 * torch.sin(b.x * b.u(1.2, 2.6) + b.u(0, 6))
        p = b.lay(p, b.colour(tone, 0.05) * (1 + 0.10 * (b.y - outline + 0.2)), b.edge(outline - b.y))
    x0 = b.u(0.55, 0.95) * (1 if b.u(-1, 1) > 0 else -1)
    stem = torch.maximum(torch.minimum(0.055 - (b.x - x0).abs(), 0.34 - b.y), torch.minimum(0.04 - (b.x - x0 - 0.13).abs(), 0.07 - (b.y - 0.1).abs()))
    stem = torch.maximum(stem, torch.minimum(0.035 - (b.y - 0.04).abs(), 0.075 - (b.x - x0 - 0.075).abs()))
    return b.lay(p, b.colour((70, 128, 66)), b.edge(stem) * b.edge(b.y + 0.4))


def library(b: Backcloth) -> Tensor:
    p = b.colour((98, 62, 40), 0.06) * (0.75 + 0.2 * b.noise(3, 3)) + torch.zeros_like(b.x)
    tones = ((150, 46, 44), (46, 92, 120), (206, 168, 88), (60, 112, 72), (122, 70, 120), (214, 198, 170), (70, 60, 66))
    for row in range(4):
        low = -1.0 + row * 0.52
        which, inset, count = b.row_of((0.07, 0.16), (0.0, 0.0), -2.1, 2.1)
        high, spine = low + b.draws(0.32, 0.43, count)[which], b.tones(tones, count, 0.15)[which]
        inside = torch.minimum((inset - 0.006)[None], torch.minimum(b.y - low, high[None] - b.y))
        p = b.lay(p, spine.T[:, None], b.edge(inside))
        p = b.lay(p, b.colour((134, 88, 54)), b.edge(0.035 - (b.y - low + 0.03).abs()))
    return p * 0.85


def space(b: Backcloth) -> Tensor:
    p = b.colour((12, 12, 34)) + torch.zeros_like(b.x)
    cloud = (b.noise(4, 5) + 0.5 * b.noise(9, 11)).clamp(0, 1)
    p = p + cloud * b.colour((112, 48, 140), 0.25) * 0.9
    stars = torch.from_numpy(b.rng.random(tuple(b.x.shape)).astype(np.float32)).to(b.device)
    p = p + ((stars - 0.992) / 0.008).clamp(0, 1) * 0.9
    x0, y0, r = b.u(0.5, 0.95) * (1 if b.u(-1, 1) > 0 else -1), b.u(0.35, 0.8), b.u(0.2, 0.36)
    ball = b.disc(x0, y0, r)
    shade = (0.35 + 0.9 * ((b.x - x0) * -0.6 + (b.y - y0) * 0.7 + r * 0.3) / r).clamp(0.05, 1.2)
    band = 1 + 0.25 * torch.sin((b.y - y0 + 0.3 * (b.x - x0)) * 34)
    return b.lay(p, b.colour((226, 150, 98), 0.25) * shade * band, ball)


def kitchen(b: Backcloth) -> Tensor:
    tile = b.colour((226, 232, 226), 0.06)
    p = tile * (0.82 + 0.10 * b.noise(3, 3))
    line = torch.maximum(0.012 - ((b.x * 3.4) % 1 - 0.5).abs() / 3.4, 0.012 - ((b.y * 3.4) % 1 - 0.5).abs() / 3.4)
    p = b.lay(p, b.colour((168, 180, 178)), b.edge(line))
    door = b.colour((120, 168, 170), 0.2)
    p = b.lay(p, door, b.edge(b.y - 0.62))
    p = b.lay(p, door * 0.5, b.edge(0.014 - ((b.x * 1.3) % 1 - 0.5).abs() / 1.3) * b.edge(b.y - 0.62))
    p = b.lay(p, b.colour((150, 104, 66), 0.08), b.edge(-0.42 - b.y))
    p = b.lay(p, b.colour((206, 170, 128), 0.08), b.edge(0.05 - (b.y + 0.44).abs()))
    x0 = b.u(0.5, 0.9) * (1 if b.u(-1, 1) > 0 else -1)
    pot = torch.minimum(0.19 - (b.x - x0).abs(), torch.minimum(b.y + 0.40, -0.10 - b.y))
    return b.lay(p, b.colour((196, 70, 56), 0.2) * (1.2 - 1.5 * (b.x - x0).abs()), b.edge(pot, 2))


def garden(b: Backcloth) -> Tensor:
    p = b.sky((120, 186, 232), (214, 236, 240), -0.1)
    p = b.lay(p, b.colour((74, 142, 66), 0.08) * (1 + 0.25 * b.noise(10, 12)), b.edge(b.ridge(0.22, 0.12, 6), 3))
    p = b.lay(p, b.colour((120, 182, 76), 0.06) * (1 + 0.12 * b.noise(12, 12)), b.edge(b.ridge(-0.30, 0.05, 4), 2))
    tones = ((238, 92, 120), (250, 214, 84), (250, 250, 246), (176, 108, 214), (244, 136, 60))
    for _ in range(34):
        y0 = b.u(-1, 0.2)
        b.dot(p, b.colour(tones[int(b.rng.integers(len(tones)))]), b.u(-1.9, 1.9), y0, 0.03 + 0.035 * max(0.0, -y0))
    return p


def sunset(b: Backcloth) -> Tensor:
    horizon = b.u(-0.25, 0.0)
    p = b.sky((74, 62, 130), (250, 156, 92), horizon)
    p = b.lay(p, b.colour((255, 204, 130)), 0.7 * torch.exp(-(((b.y - horizon) / 0.22) ** 2)))
    x0 = b.u(-0.8, 0.8)
    p = b.lay(p, b.colour((255, 240, 186)), b.disc(x0, horizon + 0.16, 0.19, 2))
    p = b.lay(p, b.colour((224, 112, 110)), 0.65 * (b.noise(7, 3) - 0.1).clamp(0, 1) * b.edge(b.y - horizon - 0.15, 8))
    sea = torch.lerp(b.colour((196, 104, 96)), b.colour((58, 44, 92)), ((horizon - b.y) / 0.8).clamp(0, 1))
    p = b.lay(p, sea * (1 + 0.2 * torch.sin(b.y * 55 + 2 * b.noise(4, 4))), b.edge(horizon - b.y))
    glint = torch.exp(-(((b.x - x0) / 0.13) ** 2)) * (0.5 + 0.5 * torch.sin(b.y * 70)) * b.edge(horizon - b.y)
    return b.lay(p, b.colour((255, 214, 150)), 0.8 * glint)


def underwater(b: Backcloth) -> Tensor:
    p = b.sky((92, 206, 220), (10, 66, 120), -1.0)
    rays = torch.sin((b.x + 0.35 * (1 - b.y)) * b.u(5, 8) + b.u(0, 6)) * torch.sin((b.x + 0.3 * (1 - b.y)) * 13)
    p = p * (1 + 0.22 * rays.clamp(0, 1) * (b.y * 0.5 + 0.6).clamp(0, 1))
    p = b.lay(p, b.colour((206, 192, 146), 0.06) * (0.7 + 0.1 * b.noise(6, 8)), b.edge(b.ridge(-0.68, 0.08, 4), 3))
    for _ in range(5):
        x0, height = b.u(-1.7, 1.7), b.u(0.3, 0.8)
        weed = 0.035 - (b.x - x0 - 0.06 * torch.sin(b.y * 9 + x0 * 5)).abs()
        p = b.lay(p, b.colour((36, 130, 84), 0.2), b.edge(weed) * b.edge(-0.75 + height - b.y))
    for _ in range(9):
        x0, y0, r = b.u(-1.6, 1.6), b.u(-0.5, 0.95), b.u(0.02, 0.055)
        b.dot(p, b.colour((220, 246, 250)), x0, y0, r, hollow=0.012)
    return p


BACKDROPS: dict[str, Callable[[Backcloth], Tensor]] = {
    "studio": studio, "beach": beach, "forest": forest, "city": city, "mountains": mountains, "desert": desert,
    "library": library, "space": space, "kitchen": kitchen, "garden": garden, "sunset": sunset, "underwater": underwater,
}  # fmt: skip

# Warmth, key and fill of the light of each scene; the direction is drawn per picture.
SCENE_LIGHTS = {
    "studio": (0.1, 1.0, 0.50), "beach": (0.2, 1.1, 0.60), "forest": (-0.1, 0.9, 0.52), "city": (0.0, 0.95, 0.55),
    "mountains": (-0.3, 1.1, 0.62), "desert": (0.5, 1.15, 0.52), "library": (0.5, 0.95, 0.42), "space": (-0.4, 1.05, 0.40),
    "kitchen": (0.2, 0.95, 0.58), "garden": (0.1, 1.05, 0.58), "sunset": (0.8, 1.0, 0.45), "underwater": (-0.9, 0.85, 0.52),
}  # fmt: skip


def draw_light(scene: str, rng: np.random.Generator) -> Light:
    """A light that suits the scene."""
    warmth, key, fill = SCENE_LIGHTS[scene]
    return Light(
        azimuth_deg=float(rng.uniform(20, 60)) * (1 if rng.random() < 0.5 else -1),
        height_deg=float(rng.uniform(25, 55)),
        warmth=float(np.clip(warmth + rng.uniform(-0.15, 0.15), -1, 1)),
        key=key * float(rng.uniform(0.92, 1.08)),
        fill=fill * float(rng.uniform(0.9, 1.1)),
    )


def backdrop(scene: str, height: int, width: int, seed: int, device: torch.device) -> Tensor:
    """Linear light of an empty scene, 3 h w, softened as by a lens focused on the subject."""
    cloth = Backcloth(height, width, np.random.default_rng([0x5CE4E, seed]), device)
    picture = BACKDROPS[scene](cloth).clamp(0, 1.2)
    padded = F.pad(picture[None], (1, 1, 1, 1), mode="replicate")[0]
    across = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4  # sums, not a convolution: some devices round those
    return (across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]) / 4
