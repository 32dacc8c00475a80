"""Solids seen by parallel rays: where each is hit, how its surface faces, how neighbours melt into one skin.

A solid is an affine image of a unit ball, drum (capped cylinder) or cube. Camera space: x right, y up, z towards the
viewer, the picture spans y in [-1, 1]; rays run along z, so a hit is one depth per pixel and the nearest has the
largest z. Shapes: `b` pictures, `h w` supersampled pixels of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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


def _extents(kind: np.ndarray, axes: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Camera rectangles (x, y) that hold solids; axes s b 3 3, centre s b 3, kind s."""
    a = axes[..., :2, :]
    ball = np.sqrt((a**2).sum(-1))
    drum = np.sqrt(a[..., 0] ** 2 + a[..., 2] ** 2) + np.abs(a[..., 1])
    cube = np.abs(a).sum(-1)
    half = np.select([(kind == "ball")[:, None, None], (kind == "drum")[:, None, None]], [ball, drum], cube)
    return centre[..., :2] - half, centre[..., :2] + half


class Numbers:
    """Per-slot coefficients of one body, worked out for all its solids and pictures at once.

    In a batch of one they are plain floats, which are much cheaper than one-element tensors; else tensors b 1 1.
    """

    def __init__(self, kind: np.ndarray, axes: np.ndarray, centre: np.ndarray, present: np.ndarray, device: torch.device) -> None:
        m = np.linalg.inv(np.where(present[..., None, None], axes, np.eye(3)))
        o = -np.einsum("sbij,sbj->sbi", m, centre)
        o[~present] = (99.0, 99.0, 0.0)  # an impossible solid: every ray misses
        # The quadric sum(u_i^2) = 1 along z; a drum's barrel has no second axis.
        keep = np.where(kind == "drum", 0.0, 1.0)[:, None]
        mk, ok = m.copy(), o.copy()
        mk[:, :, 1] *= keep[..., None]
        ok[:, :, 1] *= keep
        ex, ey, d = mk[..., 0], mk[..., 1], mk[..., 2]

        def dot(p: np.ndarray, q: np.ndarray) -> np.ndarray:
            return (p * q).sum(-1)

        a = dot(d, d) + 1e-12
        xd, yd, od = dot(ex, d), dot(ey, d), dot(ok, d)
        quadric = [
            xd * xd - a * dot(ex, ex), 2 * (xd * od - a * dot(ex, ok)), od * od - a * (dot(ok, ok) - 1),
            yd * yd - a * dot(ey, ey), 2 * (yd * od - a * dot(ey, ok)), 2 * (xd * yd - a * dot(ex, ey)),
            -xd / a, -yd / a, -od / a, 1 / a,
        ]  # fmt: skip
        # A ball's normal is M^T (M p + o), here of about unit length: melt() normalises after blending.
        size = np.cbrt(1 / np.abs(np.linalg.det(m)))[..., None]
        g = np.einsum("sbki,sbkj->sbij", m, m) * size[..., None]
        c = np.einsum("sbki,sbk->sbi", m, o) * size
        s, b = present.shape
        table = np.concatenate([m.reshape(s, b, 9), o, np.stack(quadric, -1)], -1)
        if b == 1:
            self.rows: list[list[Any]] = table[:, 0].tolist()
        else:
            rows = torch.from_numpy(table.astype(np.float32)).to(device).permute(0, 2, 1)[..., None, None]
            self.rows = [list(r) for r in rows]
        turns = torch.from_numpy(np.concatenate([g, c[..., None]], -1).astype(np.float32)).to(device)  # s b 3 4
        self.turns = turns.permute(0, 3, 1, 2)[..., None, None]  # s 4 b 3 1 1


class Slot:
    """The solids of one name in a batch of pictures, all of one kind; pictures that lack it are missed by every ray."""

    def __init__(self, kind: Kind, part: int, window: Window, numbers: list[Any], turns: Tensor) -> None:
        self.kind, self.part, self.window = kind, part, window
        self._m, self._o, self._q = numbers[:9], numbers[9:12], numbers[12:22]
        self._turns = turns

    def _linear(self, row: Sequence[Any], const: Any, z: Tensor) -> Tensor:
        """row . (x, y, z) + const over the window."""
        w = self.window
        value = (row[0] * w.x + const) + row[1] * w.y
        return value.add_(z, alpha=row[2]) if isinstance(row[2], float) else value.addcmul_(row[2].expand_as(z), z)

    def unit(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position on the unit solid of the points at depth z."""
        m, o = self._m, self._o
        return self._linear(m[0:3], o[0], z), self._linear(m[3:6], o[1], z), self._linear(m[6:9], o[2], z)

    def depth(self, *, far: bool = False) -> tuple[Tensor, Tensor | None]:
        """Near and, if asked for, far depth: FAR where the ray misses. b h w each."""
        if self.kind == "cube":
            return self._cube(far)
        disc, middle, half = self._round()
        if self.kind == "ball":
            miss = disc <= 0
            low = (middle - half).masked_fill_(miss, FAR) if far else None
            return middle.add_(half).masked_fill_(miss, FAR), low
        front, back = self._slab(1)
        top, low = torch.minimum(middle + half, front), torch.maximum(middle.sub_(half), back)
        miss = (disc <= 0) | (top < low)
        return top.masked_fill_(miss, FAR), low.masked_fill_(miss, FAR)

    def _round(self) -> tuple[Tensor, Tensor, Tensor]:
        """Discriminant, middle depth and half chord of the ball or barrel."""
        q, x, y = self._q, self.window.x, self.window.y
        disc = ((q[0] * x + q[1]) * x + q[2]) + (q[3] * y + q[4]) * y
        disc.addcmul_((q[5] * x).expand_as(disc), y.expand_as(disc))
        middle = q[6] * x + (q[7] * y + q[8])
        return disc, middle, disc.clamp_min(0).sqrt_().mul_(q[9])

    def _slab(self, axis: int) -> tuple[Tensor, Tensor]:
        """Depths at which rays enter and leave |u_axis| <= 1."""
        w = self.window
        mx, my, d = self._m[3 * axis : 3 * axis + 3]
        if isinstance(d, float):
            d = d if abs(d) > 1e-6 else 1e-6
            side = 1.0 if d > 0 else -1.0
        else:
            d = torch.where(d.abs() < 1e-6, torch.full_like(d, 1e-6), d)
            side = d.sign()
        near = (-mx / d) * w.x + ((-my / d) * w.y + (side - self._o[axis]) / d)
        return near, near - 2 * side / d

    def _cube(self, far: bool) -> tuple[Tensor, Tensor | None]:
        slabs = [self._slab(i) for i in range(3)]
        top = torch.minimum(torch.minimum(slabs[0][0], slabs[1][0]), slabs[2][0])
        low = torch.maximum(torch.maximum(slabs[0][1], slabs[1][1]), slabs[2][1])
        miss = top < low
        return top.masked_fill_(miss, FAR), low.masked_fill_(miss, FAR) if far else None

    def normals(self, z: Tensor, inward: Tensor | None = None) -> Tensor:
        """Camera normals at depth z, of about unit length; `inward` marks hits on the inside of a shell. b 3 h w."""
        if self.kind != "ball":
            return self._flat_normals(z)
        gx, gy, gz, c = self._turns.unbind()
        n = torch.addcmul((gx * self.window.x + c) + gy * self.window.y, gz, z.unsqueeze(1))
        return n if inward is None else n.mul_((1 - 2 * inward.float()).unsqueeze(1))

    def _flat_normals(self, z: Tensor) -> Tensor:
        """Normals of drums and cubes, with a slightly rounded look at their edges."""

        def tenth(v: Tensor) -> Tensor:
            square = v * v
            fourth = square * square
            return fourth * fourth * square

        u = self.unit(z)
        if self.kind == "drum":
            r = (u[0] * u[0] + u[2] * u[2]).add_(1e-9).sqrt_()
            side = tenth(r) / r
            local = (u[0] * side, tenth(u[1]) * u[1].sign(), u[2] * side)
        else:
            local = tuple(tenth(v) * v.sign() for v in u)
        m = self._m
        n = [m[i] * local[0] + m[3 + i] * local[1] + m[6 + i] * local[2] for i in range(3)]
        together = torch.stack(n, 1)
        return together * torch.rsqrt((together * together).sum(1, keepdim=True) + 1e-12)


Key = tuple[str, Kind, int]  # name, kind, part: what the solids of a slot share; a head may be part 0 here and part 1 there


def _merged_order(lists: Sequence[Sequence[Key]]) -> list[Key]:
    """All keys once, in an order that agrees with each list, so that a batch melts as its pictures do one by one."""
    merged: list[Key] = []
    for names in lists:
        at = 0
        for name in names:
            if name in merged:
                at = merged.index(name) + 1
            else:
                merged.insert(at, name)
                at += 1
    return merged


def slots_of(bodies: Sequence[Sequence[dict[str, Solid]]], grid: Grid) -> list[list[tuple[str, Slot]]]:
    """The named solids in sight of several bodies, all worked out together.

    Args:
        bodies: for each body its solids in each picture of the batch, empty where a picture lacks it.
    """
    keys, chosen = [], []
    for i, pictures in enumerate(bodies):
        for name, kind, part in _merged_order([[(name, solid.kind, solid.part) for name, solid in solids.items()] for solids in pictures]):
            keys.append((i, name, kind, part))
            chosen.append([s if (s := solids.get(name)) is not None and (s.kind, s.part) == (kind, part) else None for solids in pictures])
    slots: list[list[tuple[str, Slot]]] = [[] for _ in bodies]
    if not keys:
        return slots
    present = np.array([[s is not None for s in row] for row in chosen])
    axes = np.array([[s.axes if s is not None else np.eye(3) for s in row] for row in chosen])
    centre = np.array([[s.centre if s is not None else np.zeros(3) for s in row] for row in chosen])
    kinds = np.array([kind for _, _, kind, _ in keys])
    low, high = _extents(kinds, axes, centre)
    low, high = np.where(present[..., None], low, np.inf).min(1), np.where(present[..., None], high, -np.inf).max(1)
    numbers = Numbers(kinds, axes, centre, present, grid.device)
    for at, (i, name, kind, part) in enumerate(keys):
        window = grid.window(low[at], high[at])
        if window is not None:
            slots[i].append((name, Slot(kind, part, window, numbers.rows[at], numbers.turns[at])))
    return slots


@dataclass
class Surface:
    """The melted surface of one body over its window."""

    window: Window
    z: Tensor  # b h w, FAR where missed
    normal: Tensor  # 3 entries stacked: b 3 h w, of about unit length
    part: Tensor  # b h w uint8: the part that is nearest


def melt(hits: list[tuple[Slot, Tensor, Tensor | None]], window: Window, blend: np.ndarray, device: torch.device) -> Surface:
    """Join solids into one surface with rounded seams of depth `blend` (b, camera units).

    The polynomial smooth maximum of depths: z = lerp(z1, z2, h) + k h (1 - h), h = clamp(1/2 + (z2 - z1) / 2k), applied
    solid by solid; normals follow the same h.

    Args:
        hits: each slot with its depth and, for shells, where the hit is on the inside.
    """
    b = len(blend)
    h, w = window.bottom - window.top, window.right - window.left
    z = torch.full((b, h, w), FAR, device=device)
    normal = torch.zeros((b, 3, h, w), device=device)
    part = torch.zeros((b, h, w), dtype=torch.uint8, device=device)
    k = float(blend[0]) if b == 1 else torch.from_numpy(np.asarray(blend, dtype=np.float32)).to(device).view(-1, 1, 1)
    touched = False
    for slot, depth, inward in hits:
        rows, cols = slot.window.inside(window)
        old = z[:, rows, cols]
        step = depth - old
        if slot.part or touched:
            part[:, rows, cols].masked_fill_(step > 0, slot.part)
            touched = True
        share = step.mul_(0.5 / k).add_(0.5).clamp_(0, 1)
        normal[:, :, rows, cols].lerp_(slot.normals(depth, inward), share.unsqueeze(1))
        rest = (share - share * share).mul_(k)
        old.lerp_(depth, share).add_(rest)
    return Surface(window, z, normal, part)
