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
from selfsame.mannequins.landmarks import COUNT as LANDMARKS
from selfsame.mannequins.landmarks import landmarks
from selfsame.mannequins.people import Person
from selfsame.mannequins.scenes import backdrop
from selfsame.mannequins.solids import FAR, Grid, Slot, Window, melt, slots_of
from selfsame.mannequins.styles import Plate, apply_style
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


def _num(values: ArrayLike, device: torch.device) -> Tensor:
    """One value a picture, b 1 1."""
    return torch.from_numpy(np.asarray(values, dtype=np.float32).reshape(-1, 1, 1)).to(device)


Painter = Callable[[paint.Place], paint.Coat]


class Stage:
    """Buffers of a batch: what is nearest at each supersampled pixel. Bodies are hit first and painted once all stand."""

    def __init__(self, scenes: Sequence[Scene], device: torch.device) -> None:
        first = scenes[0]
        b, h, w = len(scenes), first.height * SUPERSAMPLE, first.width * SUPERSAMPLE
        self.grid = Grid(h, w, device)
        self.z = torch.full((b, h, w), FAR, device=device)
        self.normal = torch.zeros((b, 3, h, w), device=device)
        self.part = torch.zeros((b, h, w), dtype=torch.uint8, device=device)
        self.body = torch.zeros((b, h, w), dtype=torch.uint8, device=device)  # 0 backdrop, i + 1 the i-th body of the stage
        self.bodies: list[tuple[Sequence[Body], Painter, int]] = []

    def add(self, parts: Sequence[tuple[Sequence[Body | None], Painter, Callable | None]], owner: int) -> None:
        """Hit bodies, each given for every picture (None where a picture lacks it), with its painter and what cuts its shells."""
        slots = slots_of([[body.solids if body else {} for body in bodies] for bodies, _, _ in parts], self.grid)
        for (bodies, painter, cutter), named in zip(parts, slots, strict=True):
            self._add(bodies, named, painter, cutter, owner)

    def _add(self, bodies: Sequence[Body | None], slots: list[tuple[str, Slot]], painter: Painter, cutter: Callable | None, owner: int) -> None:
        """Melt one body and keep it where it is nearest."""
        grid = self.grid
        stand_in = next(body for body in bodies if body)
        shells = frozenset().union(*(body.shells for body in bodies if body))
        hits = []
        for name, slot in slots:
            inward = None
            if cutter is None or name not in shells:
                near, _ = slot.depth()
            else:
                near, far = slot.depth(far=True)
                assert far is not None
                inward = cutter(name, slot, near)
                near = torch.where(inward, far.masked_fill(cutter(name, slot, far), FAR), near)
            hits.append((slot, near, inward))
        if not hits:
            return
        windows = [slot.window for slot, _, _ in hits]
        top, bottom = min(w.top for w in windows), max(w.bottom for w in windows)
        left, right = min(w.left for w in windows), max(w.right for w in windows)
        window = Window(top, bottom, left, right, grid.x[..., left:right], grid.y[:, top:bottom])
        blend = np.array([body.blend * body.frame.scale if body else 0.01 for body in bodies])
        surface = melt(hits, window, blend, grid.device)
        rows, cols = window.slices
        z = self.z[:, rows, cols]
        nearer = surface.z > z.clamp_min(FAR + 1)
        z.copy_(torch.where(nearer, surface.z, z))
        normal = self.normal[:, :, rows, cols]
        normal.copy_(torch.where(nearer.unsqueeze(1), surface.normal, normal))
        part = self.part[:, rows, cols]
        part.copy_(torch.where(nearer, surface.part, part))
        self.bodies.append(([body or stand_in for body in bodies], painter, owner))
        self.body[:, rows, cols].masked_fill_(nearer, len(self.bodies))

    def seen(self, at: Tensor) -> Seen:
        """Supersampled pixels, given by their flat numbers, as one row of points."""
        h, w = self.grid.height, self.grid.width
        picture = torch.div(at, h * w, rounding_mode="floor") if len(self.z) > 1 else None
        inner = at if picture is None else at - picture * (h * w)
        row = torch.div(inner, w, rounding_mode="floor")
        x, y = self.grid.x.flatten()[inner - row * w], self.grid.y.flatten()[row]
        return Seen(at, picture, x.view(1, 1, -1), y.view(1, 1, -1))


@dataclass
class Seen:
    """Points of a batch in one row: 1 1 n each; `at` and `picture` are n."""

    at: Tensor
    picture: Tensor | None  # which picture each lies in; None when there is only one
    x: Tensor
    y: Tensor

    def take(self, buffer: Tensor) -> Tensor:
        """b h w -> 1 1 n."""
        return buffer.flatten()[self.at].view(1, 1, -1)

    def take_vectors(self, buffer: Tensor) -> Tensor:
        """b 3 h w -> 3 1 n."""
        b, _, h, w = buffer.shape
        if self.picture is None:
            return buffer.view(3, h * w)[:, self.at].view(3, 1, -1)
        return buffer.permute(1, 0, 2, 3).reshape(3, b * h * w)[:, self.at].view(3, 1, -1)

    def spread(self, values: ArrayLike) -> Tensor:
        """One value a picture -> 1 1 n (1 1 1 when there is only one picture)."""
        per_picture = torch.from_numpy(np.asarray(values, dtype=np.float32)).to(self.at.device).flatten()
        return (per_picture if self.picture is None else per_picture[self.picture]).view(1, 1, -1)

    def spread_colours(self, values: ArrayLike) -> Tensor:
        """One triple a picture -> 1 3 1 n (1 3 1 1 when there is only one picture)."""
        per_picture = torch.from_numpy(np.asarray(values, dtype=np.float32)).to(self.at.device).view(-1, 3)
        return (per_picture if self.picture is None or len(per_picture) == 1 else per_picture[self.picture]).T.reshape(1, 3, 1, -1)


def _place(bodies: Sequence[Body], stage: Stage, seen: Seen) -> paint.Place:
    """Body coordinates of the points: local = rotation^T (camera - origin) / scale."""
    m = np.stack([b.frame.rotation.T / b.frame.scale for b in bodies])
    o = np.stack([-(r @ b.frame.origin) for r, b in zip(m, bodies, strict=True)])
    z = seen.take(stage.z)

    def along(i: int) -> Tensor:
        return seen.spread(m[:, i, 0]) * seen.x + seen.spread(m[:, i, 1]) * seen.y + (seen.spread(m[:, i, 2]) * z + seen.spread(o[:, i]))

    soft = seen.spread(3.2 / stage.grid.height / np.array([b.frame.scale for b in bodies]))
    return paint.Place(along(0), along(1), along(2), seen.take(stage.part), soft, seen.spread, seen.spread_colours)


@dataclass
class Paintwork:
    """What all painters left on the points of a stage where something stands: n points in one row."""

    seen: Seen
    albedo: Tensor  # 3 1 n
    gloss: Tensor  # 1 1 n
    wrap: Tensor  # 1 1 n
    label: Tensor  # b h w uint8
    owner: Tensor  # b h w uint8


def _paint(stage: Stage) -> Paintwork:
    """Paint each body where it is seen."""
    device, body = stage.grid.device, stage.body.flatten()
    here = body.nonzero()[:, 0]
    which, count = body[here], len(here)
    albedo = torch.zeros((3, count), device=device)
    gloss, wrap = torch.zeros(count, device=device), torch.zeros(count, device=device)
    label, owner = (torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2))
    for i, (bodies, painter, who) in enumerate(stage.bodies):
        mine = (which == i + 1).nonzero()[:, 0]
        n = len(mine)
        if not n:
            continue
        coat = painter(_place(bodies, stage, stage.seen(here[mine])))
        albedo.index_copy_(1, mine, coat.albedo.expand(1, 3, 1, n).view(3, n))
        gloss[mine] = coat.gloss.expand(1, 1, n).flatten() if isinstance(coat.gloss, Tensor) else torch.full((n,), coat.gloss, device=device)
        wrap.index_fill_(0, mine, coat.wrap)
        label[mine] = coat.label.flatten()
        owner.index_fill_(0, mine, who)
    planes = [torch.zeros_like(body).index_copy_(0, here, v).view(stage.body.shape) for v in (label, owner)]
    return Paintwork(stage.seen(here), albedo.unsqueeze(1), gloss.view(1, 1, -1), wrap.view(1, 1, -1), planes[0], planes[1])


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
        return _num(values, stage.grid.device)

    def cut(painter: str) -> Callable | None:
        if painter == "hair":
            return lambda name, slot, z: paint.cut_hair(slot.unit(z), num, sitters)
        if painter == "glasses":
            return lambda name, slot, z: paint.cut_glasses(slot.unit(z), slot.kind)
        if painter == "hat":
            return lambda name, slot, z: paint.cut_hat(slot.unit(z), slot.kind, [s.look.hat for s in subjects], num)
        return None

    parts = []
    for painter, coat in PAINTERS.items():
        bodies = [bodies.get(painter) for bodies in sets]
        if any(bodies):
            parts.append((bodies, lambda place, coat=coat: coat(place, sitters), cut(painter)))
    stage.add(parts, owner)


def _add_things(stage: Stage, subjects: Sequence[ThingIn], owner: int) -> None:
    bodies: list[Any] = [thing_bodies(s.thing, s.view) for s in subjects]
    stage.add([(bodies, lambda place: paint_thing(place, [s.thing for s in subjects]), None)], owner)


def _light(stage: Stage, work: Paintwork, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Shade: one warm key light with a soft cast shadow, an even sky, occlusion in the creases, a rim.

    Returns:
        Linear light of the points, 3 1 n, and how brightly each is lit, 1 1 n (about 0.5 in shadow, 1.5 in full light).
    """
    seen, lights = work.seen, [s.light for s in scenes]
    az, up = np.deg2rad([lt.azimuth_deg for lt in lights]), np.deg2rad([lt.height_deg for lt in lights])
    direction = np.stack([np.sin(az) * np.cos(up), np.sin(up), np.cos(az) * np.cos(up)], 1)
    half = direction + np.array([0, 0, 1.0])
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    n = seen.take_vectors(stage.normal)
    n = n * torch.rsqrt((n * n).sum(0) + 1e-12)

    def facing(v: np.ndarray) -> Tensor:
        return seen.spread(v[:, 0]) * n[0] + seen.spread(v[:, 1]) * n[1] + seen.spread(v[:, 2]) * n[2]

    hidden, shadow = (seen.take(t) for t in _shade_maps(stage, direction))
    occlusion = 1 - 1.5 * hidden.clamp(0, 0.34)
    lit = 1 - 0.62 * shadow
    diffuse = ((facing(direction) + work.wrap) / (1 + work.wrap)).clamp_min_(0) * lit
    sky = 0.72 + 0.28 * n[1]
    warm = np.array([[1 + 0.12 * lt.warmth, 1.0, 1 - 0.16 * lt.warmth] for lt in lights]) * np.array([[lt.key] for lt in lights])
    cool = np.array([[1 - 0.06 * lt.warmth, 1.0, 1 + 0.10 * lt.warmth] for lt in lights]) * np.array([[lt.fill] for lt in lights])
    warm_c, cool_c = seen.spread_colours(warm)[0], seen.spread_colours(cool)[0]
    s = facing(half).clamp_(0, 1)
    s = (s * s) ** 2
    s8 = s * s
    shine = 0.7 * s * s8 + 0.35 * (s8 * s8) ** 2  # a broad sheen and a small spark, so that no cheek wears a disc
    rim = (1 - n[2].clamp(0, 1)) ** 3 * (0.3 + 0.7 * n[1].clamp_min(0)) * 0.16
    colour = work.albedo * (diffuse * warm_c + (sky * occlusion) * cool_c) + (0.5 * shine * work.gloss * lit) * warm_c + rim * cool_c
    return colour, diffuse * seen.spread([lt.key for lt in lights]) + 0.5


def _shade_maps(stage: Stage, direction: np.ndarray) -> tuple[Tensor, Tensor]:
    """How hidden in creases and how shadowed by what stands towards the light, from the depth at a quarter of its size. b h w each."""
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
        climb = _num(direction[:, 2] * reach, depth.device).unsqueeze(1)
        steps.append(((torch.cat(moved) - small - climb - 0.04) / 0.10).clamp(0, 1))
    shadow = torch.stack(steps).amax(0)
    soft = F.interpolate(torch.cat([hidden, shadow], 1), depth.shape[1:], mode="bilinear", align_corners=False)
    return soft[:, 0].contiguous(), soft[:, 1].contiguous()


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
    """Linear light to sRGB-like [0, 1] with a soft shoulder above 0.7."""
    over = ((linear - 0.7) / 0.45).clamp_min_(0)
    return (linear.clamp(0, 0.7) + 0.3 * over * torch.rsqrt(1 + over * over)).clamp_max_(1).sqrt_()


@torch.no_grad()
def draw(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> list[Picture]:
    """Draw scenes of one size and one sequence of subject kinds.

    Args:
        scenes: all of the same height and width, people and things in the same order.
        device: where to compute; pictures of different devices agree within one grey level, but for single pixels at the
            edges of solids and where a style rounds to few colours (pixel art, backdrops of comics).

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
    work = _paint(stage)
    colour, light = _light(stage, work, scenes)
    ground = _ground(scenes, dev)
    back = F.interpolate(tone(ground), scale_factor=SUPERSAMPLE, mode="nearest")

    def onto(background: Tensor, points: Tensor) -> Tensor:
        """Points (c 1 n) laid over a background (b c h w at supersampled size), averaged to picture size."""
        b, c, h, w = background.shape
        full = background.permute(1, 0, 2, 3).reshape(c, b * h * w)
        full.index_copy_(1, work.seen.at, points[:, 0])
        return F.avg_pool2d(full.view(c, b, h, w).transpose(0, 1), SUPERSAMPLE)

    image = onto(back, tone(colour))
    label = work.label[:, 1::2, 1::2]
    owner = work.owner[:, 1::2, 1::2]
    z = F.max_pool2d(stage.z.clamp_min(BACK).unsqueeze(1), SUPERSAMPLE)[:, 0]
    depth = torch.where(z <= BACK + 1e-3, torch.zeros_like(z), ((z + 1.8) / 3.0).clamp(0.02, 1))
    if any(s.style != "photo" for s in scenes):
        plates = Plate(
            image, onto(back, tone(work.albedo)), F.avg_pool2d(stage.normal, SUPERSAMPLE), depth, label, onto(torch.ones_like(back[:, :1]), light)[:, 0]
        )
    else:
        plates = None
    pictures = []
    for i, s in enumerate(scenes):
        styled = image[i] if plates is None else apply_style(s.style, plates.of(i, s.seed))
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


def landmarks_of(scene: Scene) -> np.ndarray:
    """Dense points, people 68 2 float32 in pixels."""
    plans = [(face_plan(s.person, s.look), head_frame(s.view)) for s in scene.subjects if isinstance(s, PersonIn)]
    points = [_to_pixels(landmarks(plan, frame), scene) for plan, frame in plans]
    return np.asarray(points, dtype=np.float32).reshape(-1, LANDMARKS, 2)
