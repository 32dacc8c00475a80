"""Solids seen by parallel rays: where each is hit, how its surface faces, how neighbours melt into one skin.

A solid is an affine image of a unit ball, drum (capped cylinder) or cube. Camera space: x right, y up, z towards the
viewer, the picture spans y in [-1, 1]; rays run along z, so a hit is one depth per pixel and the nearest has the
largest z. Shapes: `b` pictures, `h w` supersampled pixels of a window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

FAR = -50.0  # depth of "nothing here": far behind any scene, small enough to keep float32 steps fine

Kind = Literal["ball", "drum", "cube"]


@dataclass
class Solid:
    """One solid in one picture: camera = axes @ unit + centre."""

    kind: Kind
    axes: np.ndarray  # 3 3, columns are the images of the unit axes
    centre: np.ndarray  # 3
    part: int = 0  # what it is called within its body


@dataclass
class Frame:
    """A place in camera space to build in: camera = origin + scale * rotation @ local."""

    origin: np.ndarray
    rotation: np.ndarray
    scale: float

    def solid(
        self,
        centre: tuple[float, float, float],
        radii: tuple[float, float, float],
        *,
        turn: np.ndarray | None = None,
        kind: Kind = "ball",
        part: int = 0,
    ) -> Solid:
        """A solid from local centre and half-axes, optionally turned about its own centre first."""
        turned = self.rotation if turn is None else self.rotation @ turn
        axes = self.scale * turned * np.asarray(radii, dtype=np.float64)
        return Solid(kind, axes, self.origin + self.scale * self.rotation @ np.asarray(centre), part)

    def point(self, local: np.ndarray) -> np.ndarray:
        """Camera coordinates of local points, (..., 3)."""
        return self.origin + self.scale * np.asarray(local) @ self.rotation.T


def rotation(yaw_deg: float = 0.0, pitch_deg: float = 0.0, roll_deg: float = 0.0) -> np.ndarray:
    """Turn right (yaw), look up (pitch), lean (roll), as a person does: R = roll @ pitch @ yaw order applied to columns."""
    y, p, r = np.deg2rad([yaw_deg, pitch_deg, roll_deg])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


@dataclass
class Window:
    """A rectangle of supersampled pixels and the camera coordinates of their centres."""

    top: int
    bottom: int
    left: int
    right: int
    x: Tensor  # 1 1 w
    y: Tensor  # 1 h 1

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def inside(self, other: Window) -> tuple[slice, slice]:
        """This window's slices within a window that contains it."""
        return (
            slice(self.top - other.top, self.bottom - other.top),
            slice(self.left - other.left, self.right - other.left),
        )


@dataclass
class Grid:
    """The supersampled pixel grid of a batch."""

    height: int
    width: int
    device: torch.device
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)

    def __post_init__(self) -> None:
        half = self.height / 2
        self.x = ((torch.arange(self.width, device=self.device) + 0.5 - self.width / 2) / half).view(1, 1, -1)
        self.y = ((half - torch.arange(self.height, device=self.device) - 0.5) / half).view(1, -1, 1)

    def window(self, low: np.ndarray, high: np.ndarray) -> Window | None:
        """Pixels whose centres may lie in the camera rectangle low..high (x, y); None when it misses the picture."""
        half = self.height / 2
        left = max(0, int(np.floor(low[0] * half + self.width / 2)) - 1)
        right = min(self.width, int(np.ceil(high[0] * half + self.width / 2)) + 1)
        top = max(0, int(np.floor(half - high[1] * half)) - 1)
        bottom = min(self.height, int(np.ceil(half - low[1] * half)) + 1)
        if left >= right or top >= bottom:
            return None
        return Window(top, bottom, left, right, self.x[..., left:right], self.y[:, top:bottom])


def extent(solid: Solid) -> tuple[np.ndarray, np.ndarray]:
    """Camera rectangle (x, y) that holds the solid."""
    a = solid.axes[:2]
    if solid.kind == "ball":
        half = np.sqrt((a**2).sum(1))
    elif solid.kind == "drum":
        half = np.sqrt(a[:, 0] ** 2 + a[:, 2] ** 2) + np.abs(a[:, 1])
    else:
        half = np.abs(a).sum(1)
    return solid.centre[:2] - half, solid.centre[:2] + half


@dataclass
class Hits:
    """Where a slot of solids is hit: depth (FAR where missed), unit position u and camera normal, per pixel."""

    z: Tensor  # b h w
    normal: tuple[Tensor, Tensor, Tensor]  # each b h w, about unit length


class Slot:
    """The solids of one name in a batch of pictures (None where a picture lacks it), all of one kind."""

    def __init__(self, solids: list[Solid | None], grid: Grid) -> None:
        present = [s for s in solids if s is not None]
        self.kind: Kind = present[0].kind
        self.part = present[0].part
        lows, highs = zip(*(extent(s) for s in present), strict=True)
        self.window = grid.window(np.min(lows, axis=0), np.max(highs, axis=0))
        b = len(solids)
        to_unit, offset = np.zeros((b, 3, 3)), np.zeros((b, 3))
        for i, s in enumerate(solids):
            if s is not None:
                to_unit[i] = np.linalg.inv(s.axes)
                offset[i] = -to_unit[i] @ s.centre
            else:  # an impossible solid: every ray misses
                to_unit[i], offset[i] = np.eye(3), (99.0, 99.0, 0.0)
        self._m, self._o = to_unit, offset
        self._device = grid.device

    def _t(self, values: np.ndarray) -> Tensor | float:
        if len(values) == 1:  # one picture: plain numbers are much cheaper than one-element tensors
            return float(values[0])
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self._device).view(-1, 1, 1)

    def linear(self, row: np.ndarray, const: np.ndarray, w: Window, z: Tensor | None = None) -> Tensor:
        """row . (x, y, z) + const over a window; row is b 3, const b."""
        value = (self._t(row[:, 0]) * w.x + self._t(const)) + self._t(row[:, 1]) * w.y
        if z is None:
            return value
        depth = self._t(row[:, 2])
        return value.add(z, alpha=depth) if isinstance(depth, float) else value + depth * z

    def unit(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position on the unit solid of the points at depth z."""
        assert self.window is not None
        m, o, w = self._m, self._o, self.window
        return (
            self.linear(m[:, 0], o[:, 0], w, z),
            self.linear(m[:, 1], o[:, 1], w, z),
            self.linear(m[:, 2], o[:, 2], w, z),
        )

    def _round(self, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Quadric sum(u_i^2, i in axes) = 1 along z: discriminant, middle depth, half chord."""
        assert self.window is not None
        axes_list = list(axes)
        m, o, w = self._m[:, axes_list], self._o[:, axes_list], self.window
        ex, ey, d = m[:, :, 0], m[:, :, 1], m[:, :, 2]

        def dot(p: np.ndarray, q: np.ndarray) -> np.ndarray:
            return (p * q).sum(1)

        a = dot(d, d) + 1e-12
        xd, yd, od = dot(ex, d), dot(ey, d), dot(o, d)
        row = self._t(xd * xd - a * dot(ex, ex)) * w.x**2 + self._t(2 * (xd * od - a * dot(ex, o))) * w.x
        row = row + self._t(od * od - a * (dot(o, o) - 1))
        col = self._t(yd * yd - a * dot(ey, ey)) * w.y**2 + self._t(2 * (yd * od - a * dot(ey, o))) * w.y
        disc = row + col + (self._t(2 * (xd * yd - a * dot(ex, ey))) * w.x) * w.y
        middle = self._t(-xd / a) * w.x + (self._t(-yd / a) * w.y + self._t(-od / a))
        half = disc.clamp_min(0).sqrt() * self._t(1 / a)
        return disc, middle, half

    def depth(self) -> tuple[Tensor, Tensor]:
        """Near and far depth, FAR where the ray misses. b h w each."""
        if self.kind == "cube":
            return self._cube()
        if self.kind == "ball":
            disc, middle, half = self._round((0, 1, 2))
            miss = disc <= 0
            return (middle + half).masked_fill(miss, FAR), (middle - half).masked_fill(miss, FAR)
        disc, middle, half = self._round((0, 2))
        near, far = self._slab(1)
        top = torch.minimum(middle + half, near)
        low = torch.maximum(middle - half, far)
        miss = (disc <= 0) | (top < low)
        return top.masked_fill(miss, FAR), low.masked_fill(miss, FAR)

    def _slab(self, axis: int) -> tuple[Tensor, Tensor]:
        assert self.window is not None
        d = self._m[:, axis, 2]
        d = np.where(np.abs(d) < 1e-6, 1e-6, d)
        sign = np.sign(d)
        row, o = -self._m[:, axis] / d[:, None], self._o[:, axis]
        near = self.linear(row, (sign - o) / d, self.window)
        return near, near - self._t(2 * sign / d)

    def _cube(self) -> tuple[Tensor, Tensor]:
        slabs = [self._slab(i) for i in range(3)]
        top = torch.minimum(torch.minimum(slabs[0][0], slabs[1][0]), slabs[2][0])
        low = torch.maximum(torch.maximum(slabs[0][1], slabs[1][1]), slabs[2][1])
        miss = top < low
        return top.masked_fill(miss, FAR), low.masked_fill(miss, FAR)

    def hits(self, z: Tensor, inward: Tensor | None = None) -> Hits:
        """Normals in camera space at depth z, of about unit length; `inward` marks hits on the inside of a shell."""
        m = self._m
        if self.kind == "ball":
            # n = M^T (M p + o), about unit length: melt() normalises after blending
            size = np.cbrt(1 / np.abs(np.linalg.det(m)))[:, None]
            g = np.einsum("bki,bkj->bij", m, m) * size[..., None]
            c = np.einsum("bki,bk->bi", m, self._o) * size
        else:
            return Hits(z, self._flat_normals(z))
        assert self.window is not None
        n = [self.linear(g[:, i], c[:, i], self.window, z) for i in range(3)]
        if inward is not None:
            scale = 1 - 2 * inward.float()
            n = [v * scale for v in n]
        return Hits(z, (n[0], n[1], n[2]))

    def _flat_normals(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normals of drums and cubes, with a slightly rounded look at their edges."""
        u = self.unit(z)
        p = 10.0
        if self.kind == "drum":
            r = torch.sqrt(u[0] * u[0] + u[2] * u[2] + 1e-9)
            side, cap = r**p / r, u[1].abs() ** p * u[1].sign()
            local = (u[0] * side, cap, u[2] * side)
        else:
            local = tuple(v.abs() ** p * v.sign() for v in u)
        m = self._m
        n = [self._t(m[:, 0, i]) * local[0] + self._t(m[:, 1, i]) * local[1] + self._t(m[:, 2, i]) * local[2] for i in range(3)]
        scale = torch.rsqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2] + 1e-12)
        return n[0] * scale, n[1] * scale, n[2] * scale


@dataclass
class Surface:
    """The melted surface of one body over its window."""

    window: Window
    z: Tensor  # b h w, FAR where missed
    normal: Tensor  # 3 entries stacked: b 3 h w
    part: Tensor  # b h w int16: the part that is nearest


def melt(slots: list[tuple[Slot, Tensor, Tensor | None]], window: Window, blend: np.ndarray, device: torch.device) -> Surface:
    """Join solids into one surface with rounded seams of depth `blend` (b, camera units).

    The polynomial smooth maximum of depths: z = lerp(z1, z2, h) + k h (1 - h), h = clamp(1/2 + (z2 - z1) / 2k), applied
    solid by solid; normals follow the same h.

    Args:
        slots: each slot with its depth and, for shells, where the hit is on the inside.
    """
    b = len(blend)
    h, w = window.bottom - window.top, window.right - window.left
    z = torch.full((b, h, w), FAR, device=device)
    normal = torch.zeros((b, 3, h, w), device=device)
    part = torch.zeros((b, h, w), dtype=torch.int16, device=device)
    k = float(blend[0]) if b == 1 else torch.from_numpy(np.asarray(blend, dtype=np.float32)).to(device).view(-1, 1, 1)
    touched = False
    for slot, depth, inward in slots:
        assert slot.window is not None
        rows, cols = slot.window.inside(window)
        hit = slot.hits(depth, inward)
        old = z[:, rows, cols]
        step = depth - old
        share = (step * (0.5 / k)).add_(0.5).clamp_(0, 1)
        z[:, rows, cols] = torch.lerp(old, depth, share).add_((share - share * share).mul_(k))
        for i in range(3):
            normal[:, i, rows, cols].lerp_(hit.normal[i], share)
        if slot.part:
            part[:, rows, cols].masked_fill_(step > 0, slot.part)
        elif touched:
            part[:, rows, cols].masked_fill_(step > 0, 0)
        touched = touched or slot.part > 0
    normal *= torch.rsqrt((normal * normal).sum(1, keepdim=True) + 1e-12)
    return Surface(window, z, normal, part)
