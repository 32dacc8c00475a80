"""From scenes to pictures with their ground truth: bodies are hit, painted, lit, averaged down and given a style.

The same code draws one picture on a CPU in tight windows or a batch on a GPU: windows are the union over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from selfsame.mannequins import paint
from selfsame.mannequins.anatomy import Body, face_box, face_plan, head_frame, key_points, mannequin
from selfsame.mannequins.attributes import Light, Look, View
from selfsame.mannequins.people import Person
from selfsame.mannequins.scenes import backdrop
from selfsame.mannequins.solids import FAR, Grid, Slot, Window, melt
from selfsame.mannequins.styles import apply_style
from selfsame.mannequins.things import Thing, paint_thing, thing_bodies

SUPERSAMPLE = 2
BACK = -3.0  # depth of the backdrop


@dataclass(frozen=True)
class PersonIn:
    """A person standing in a scene."""

    person: Person
    look: Look
    view: View


@dataclass(frozen=True)
class ThingIn:
    """A thing standing in a scene."""

    thing: Thing
    view: View


@dataclass(frozen=True)
class Scene:
    """A whole picture before it is drawn."""

    subjects: tuple[PersonIn | ThingIn, ...]
    place: str = "studio"
    style: str = "photo"
    light: Light = field(default_factory=Light)
    seed: int = 0  # of the backdrop and the style's grain
    height: int = 128
    width: int = 128


@dataclass
class Picture:
    """One drawn picture and everything that is exactly known of it."""

    image: np.ndarray  # h w 3 uint8
    labels: np.ndarray  # h w uint8, indices of paint.LABELS
    owner: np.ndarray  # h w uint8, 0 backdrop, i + 1 the i-th subject
    depth: np.ndarray  # h w uint8, 255 nearest, 0 backdrop
    kps: np.ndarray  # people 5 2 float32, pixels (x, y)
    boxes: np.ndarray  # people 4 float32, pixels xyxy


def _frames(bodies: Sequence[Body], grid: Grid) -> tuple[Tensor, Tensor]:
    """local = matrix @ camera + offset, per picture."""
    m = np.stack([b.frame.rotation.T / b.frame.scale for b in bodies])
    o = np.stack([-(r @ b.frame.origin) for r, b in zip(m, bodies, strict=True)])
    return torch.tensor(m, dtype=torch.float32, device=grid.device), torch.tensor(o, dtype=torch.float32, device=grid.device)


def _place(bodies: Sequence[Body], window: Window, z: Tensor, part: Tensor, grid: Grid) -> paint.Place:
    m, o = _frames(bodies, grid)

    def along(i: int) -> Tensor:
        row = m[:, i]
        flat = row[:, 0].view(-1, 1, 1) * window.x + (row[:, 1].view(-1, 1, 1) * window.y + o[:, i].view(-1, 1, 1))
        return flat + row[:, 2].view(-1, 1, 1) * z

    soft = 3.2 / grid.height / np.array([b.frame.scale for b in bodies])
    width = float(soft[0]) if len(soft) == 1 else torch.tensor(soft, dtype=torch.float32, device=grid.device).view(-1, 1, 1)
    return paint.Place(along(0), along(1), along(2), part, width)


class Stage:
    """Buffers of a batch: what is nearest at each supersampled pixel."""

    def __init__(self, scenes: Sequence[Scene], device: torch.device) -> None:
        first = scenes[0]
        b, h, w = len(scenes), first.height * SUPERSAMPLE, first.width * SUPERSAMPLE
        self.grid = Grid(h, w, device)
        self.z = torch.full((b, h, w), FAR, device=device)
        self.normal = torch.zeros((b, 3, h, w), device=device)
        self.albedo = torch.zeros((b, 3, h, w), device=device)
        self.gloss = torch.zeros((b, h, w), device=device)
        self.wrap = torch.zeros((b, h, w), device=device)
        self.label = torch.zeros((b, h, w), dtype=torch.uint8, device=device)
        self.owner = torch.zeros((b, h, w), dtype=torch.uint8, device=device)

    def add(self, bodies: Sequence[Body | None], painter: Callable[[paint.Place], paint.Coat], cutter: Callable | None, owner: int) -> None:
        """Hit, paint and keep one body of each picture (None where a picture lacks it)."""
        grid = self.grid
        names = list(dict.fromkeys(name for body in bodies if body for name in body.solids))
        stand_in = next(body for body in bodies if body)
        shells = frozenset().union(*(body.shells for body in bodies if body))
        slots = []
        for name in names:
            solids = [body.solids.get(name) if body else None for body in bodies]
            for kind in dict.fromkeys(s.kind for s in solids if s):  # the same name may be a drum here and a cube there
                slot = Slot([s if s is not None and s.kind == kind else None for s in solids], grid)
                if slot.window is None:
                    continue
                near, far = slot.depth()
                inward = None
                if name in shells and cutter is not None:
                    gone = cutter(name, slot, near)
                    gone_far = cutter(name, slot, far)
                    inward = gone
                    near = torch.where(gone, far.masked_fill(gone_far, FAR), near)
                slots.append((slot, near, inward))
        if not slots:
            return
        windows = [slot.window for slot, _, _ in slots]
        top, bottom = min(w.top for w in windows), max(w.bottom for w in windows)
        left, right = min(w.left for w in windows), max(w.right for w in windows)
        window = Window(top, bottom, left, right, grid.x[..., left:right], grid.y[:, top:bottom])
        blend = np.array([body.blend * body.frame.scale if body else 0.01 for body in bodies])
        surface = melt(slots, window, blend, grid.device)
        rows, cols = window.slices
        nearer = (surface.z > self.z[:, rows, cols]) & (surface.z > FAR + 1)
        place = _place([body or stand_in for body in bodies], window, surface.z, surface.part, grid)
        coat = painter(place)
        wide = nearer.unsqueeze(1)

        def keep(buffer: Tensor, value: Tensor | float) -> None:
            old = buffer[:, rows, cols]
            new = value if isinstance(value, Tensor) else torch.full_like(old, value)
            buffer[:, rows, cols] = torch.where(nearer, new, old)

        keep(self.z, surface.z)
        keep(self.gloss, coat.gloss)
        keep(self.wrap, coat.wrap)
        keep(self.label, coat.label)
        keep(self.owner, torch.full_like(coat.label, owner))
        for buffer, value in ((self.normal, surface.normal), (self.albedo, coat.albedo)):
            buffer[:, :, rows, cols] = torch.where(wide, value, buffer[:, :, rows, cols])


PAINTERS: dict[str, Callable[[paint.Place, list[paint.Sitter]], paint.Coat]] = {
    "skin": paint.paint_neck,
    "ear": paint.paint_ear,
    "face": paint.paint_face,
    "hair": paint.paint_hair,
    "cloth": paint.paint_cloth,
    "glasses": paint.paint_glasses,
    "hat": paint.paint_hat,
}


def _add_people(stage: Stage, subjects: Sequence[PersonIn], owner: int) -> None:
    sitters = [paint.Sitter(s.person, s.look, face_plan(s.person, s.look)) for s in subjects]
    sets = [{body.painter: body for body in mannequin(s.person, s.look, s.view)} for s in subjects]

    def num(values: ArrayLike) -> Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float32), device=stage.grid.device).view(-1, 1, 1)

    def cut(painter: str) -> Callable | None:
        if painter == "hair":
            return lambda name, slot, z: paint.cut_hair(slot.unit(z), num, sitters)
        if painter == "glasses":
            return lambda name, slot, z: paint.cut_glasses(slot.unit(z), slot.kind)
        if painter == "hat":
            return lambda name, slot, z: paint.cut_hat(slot.unit(z), slot.kind, [s.look.hat for s in subjects], num)
        return None

    for painter, coat in PAINTERS.items():
        bodies = [bodies.get(painter) for bodies in sets]
        if any(bodies):
            stage.add(bodies, lambda place, coat=coat: coat(place, sitters), cut(painter), owner)


def _add_things(stage: Stage, subjects: Sequence[ThingIn], owner: int) -> None:
    bodies: list[Any] = [thing_bodies(s.thing, s.view) for s in subjects]
    stage.add(bodies, lambda place: paint_thing(place, [s.thing for s in subjects]), None, owner)


def _light(stage: Stage, scenes: Sequence[Scene], ground: Tensor) -> tuple[Tensor, Tensor]:
    """Shade: one warm key light with a soft cast shadow, an even sky, occlusion in the creases, a rim.

    Returns:
        Linear light b 3 h w, and how brightly each pixel's surface is lit, b h w (1 on the backdrop).
    """
    device = stage.grid.device

    def num(values: ArrayLike) -> Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float32), device=device).view(-1, 1, 1)

    lights = [s.light for s in scenes]
    az, up = np.deg2rad([lt.azimuth_deg for lt in lights]), np.deg2rad([lt.height_deg for lt in lights])
    direction = np.stack([np.sin(az) * np.cos(up), np.sin(up), np.cos(az) * np.cos(up)], 1)
    half = direction + np.array([0, 0, 1.0])
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    n = [stage.normal[:, i] for i in range(3)]

    def facing(v: np.ndarray) -> Tensor:
        return num(v[:, 0]) * n[0] + num(v[:, 1]) * n[1] + num(v[:, 2]) * n[2]

    # Occlusion and shadow from the depth buffer, at a quarter of its size.
    depth = stage.z.clamp_min(BACK)
    small = F.avg_pool2d(depth.unsqueeze(1), 4)
    near = F.avg_pool2d(F.pad(small, (4, 4, 4, 4), mode="replicate"), 9, 1)
    hidden = (near - small).clamp(0, 0.5)
    b, _, h, _w = small.shape
    steps = []
    for reach in (0.10, 0.2, 0.32):
        moved = []
        for i in range(b):
            dx = round(float(direction[i, 0]) * reach * h / 2)
            dy = round(float(direction[i, 1]) * reach * h / 2)
            moved.append(_shift(small[i : i + 1], dx, -dy))
        blocker = torch.cat(moved)
        climb = num(direction[:, 2] * reach).unsqueeze(1)
        steps.append(((blocker - small - climb - 0.04) / 0.10).clamp(0, 1))
    shadow = torch.stack(steps).amax(0)
    soft = F.interpolate(torch.cat([hidden, shadow], 1), depth.shape[1:], mode="bilinear", align_corners=False)
    occlusion = 1 - 1.5 * soft[:, 0].clamp(0, 0.34)
    lit = 1 - 0.62 * soft[:, 1]

    lam = facing(direction)
    diffuse = ((lam + stage.wrap) / (1 + stage.wrap)).clamp_min(0)
    sky = 0.72 + 0.28 * n[1]
    warm = np.array([[1 + 0.12 * lt.warmth, 1.0, 1 - 0.16 * lt.warmth] for lt in lights]) * np.array([[lt.key] for lt in lights])
    cool = np.array([[1 - 0.06 * lt.warmth, 1.0, 1 + 0.10 * lt.warmth] for lt in lights]) * np.array([[lt.fill] for lt in lights])

    def rgb(v: np.ndarray) -> Tensor:
        return torch.tensor(np.asarray(v, dtype=np.float32), device=device).view(-1, 3, 1, 1)

    key = (diffuse * lit).unsqueeze(1) * rgb(warm)
    fill = (sky * occlusion).unsqueeze(1) * rgb(cool)
    shine = facing(half).clamp(0, 1).pow(24) * stage.gloss * lit
    rim = (1 - n[2].clamp(0, 1)).pow(3) * (0.3 + 0.7 * n[1].clamp_min(0)) * 0.16
    colour = stage.albedo * (key + fill) + (0.55 * shine).unsqueeze(1) * rgb(warm) + rim.unsqueeze(1) * rgb(cool)
    here = stage.owner > 0
    strength = torch.where(here, diffuse * lit * num([lt.key for lt in lights]) + 0.5, torch.ones_like(diffuse))
    return torch.where(here.unsqueeze(1), colour, ground), strength


def _shift(t: Tensor, dx: int, dy: int) -> Tensor:
    """t[y + dy, x + dx], edges repeated."""
    h, w = t.shape[-2:]
    ys = (torch.arange(h, device=t.device) + dy).clamp(0, h - 1)
    xs = (torch.arange(w, device=t.device) + dx).clamp(0, w - 1)
    return t[..., ys, :][..., xs]


def _ground(scenes: Sequence[Scene], device: torch.device) -> Tensor:
    """Backdrops at picture size, with a contact shadow under things."""
    clothes = []
    for s in scenes:
        cloth = backdrop(s.place, s.height, s.width, s.seed, device)
        for subject in s.subjects:
            if isinstance(subject, ThingIn):
                v = subject.view
                y = (1 - (torch.arange(s.height, device=device) + 0.5) * 2 / s.height).view(-1, 1)
                x = ((torch.arange(s.width, device=device) + 0.5 - s.width / 2) * 2 / s.height).view(1, -1)
                r = ((x - v.x) / (0.85 * v.scale)) ** 2 + ((y - v.y + 0.86 * v.scale) / (0.17 * v.scale)) ** 2
                cloth = cloth * (1 - 0.55 * torch.exp(-(r**2)))
        clothes.append(cloth)
    return torch.stack(clothes)


def tone(linear: Tensor) -> Tensor:
    """Linear light to sRGB-like [0, 1] with a soft shoulder."""
    x = linear.clamp_min(0)
    x = torch.where(x > 0.7, 0.7 + 0.3 * torch.tanh((x - 0.7) / 0.45), x)
    return x.clamp(0, 1).sqrt()


@torch.no_grad()
def draw(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> list[Picture]:
    """Draw scenes of one size and one sequence of subject kinds.

    Args:
        scenes: all of the same height and width, people and things in the same order.
        device: where to compute; pictures of different devices agree within one grey level.

    Raises:
        ValueError: the scenes differ in size or in the kinds of their subjects.
    """
    if len({signature(s) for s in scenes}) != 1:
        raise ValueError("scenes drawn together must share size and the kinds of their subjects: group them by signature()")
    dev = torch.device(device)
    stage = Stage(scenes, dev)
    for i, kind in enumerate(type(s) for s in scenes[0].subjects):
        subjects: list[Any] = [s.subjects[i] for s in scenes]
        (_add_people if kind is PersonIn else _add_things)(stage, subjects, i + 1)
    _h, _w = scenes[0].height, scenes[0].width
    ground = _ground(scenes, dev)
    linear, light = _light(stage, scenes, F.interpolate(ground, scale_factor=SUPERSAMPLE, mode="nearest"))
    light = F.avg_pool2d(light.unsqueeze(1), SUPERSAMPLE)[:, 0]
    image = F.avg_pool2d(tone(linear), SUPERSAMPLE)
    normal = F.avg_pool2d(stage.normal, SUPERSAMPLE)
    label = stage.label[:, 1::2, 1::2]
    owner = stage.owner[:, 1::2, 1::2]
    z = F.max_pool2d(stage.z.clamp_min(BACK).unsqueeze(1), SUPERSAMPLE)[:, 0]
    depth = torch.where(z <= BACK + 1e-3, torch.zeros_like(z), ((z + 1.8) / 3.0).clamp(0.02, 1))
    pictures = []
    for i, s in enumerate(scenes):
        styled = apply_style(s.style, image[i], normal[i], depth[i], label[i], light[i], s.seed)
        pixels = (styled.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
        kps, boxes = faces_of(s)
        pictures.append(
            Picture(
                image=pixels.cpu().numpy(),
                labels=label[i].cpu().numpy(),
                owner=owner[i].cpu().numpy(),
                depth=(depth[i] * 255).round().to(torch.uint8).cpu().numpy(),
                kps=kps,
                boxes=boxes,
            )
        )
    return pictures


def signature(scene: Scene) -> tuple[object, ...]:
    """What scenes drawn in one batch must share."""
    return (scene.height, scene.width, *(type(s).__name__ for s in scene.subjects))


def _to_pixels(points: np.ndarray, scene: Scene) -> np.ndarray:
    half = scene.height / 2
    return np.stack([points[..., 0] * half + scene.width / 2 - 0.5, half - points[..., 1] * half - 0.5], -1)


def faces_of(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Key points (people 5 2) and boxes (people 4) in pixels, pixel centres at whole numbers."""
    kps, boxes = [], []
    for s in scene.subjects:
        if isinstance(s, PersonIn):
            plan, frame = face_plan(s.person, s.look), head_frame(s.view)
            kps.append(_to_pixels(key_points(plan, frame), scene))
            box = face_box(plan, frame)
            corners = _to_pixels(np.array([[box[0], box[3]], [box[2], box[1]]]), scene)
            boxes.append(corners.reshape(4))
    return (
        np.asarray(kps, dtype=np.float32).reshape(-1, 5, 2),
        np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
    )
