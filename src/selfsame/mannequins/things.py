"""Things with named parts and textures: toys, mugs, shoes and animals, built like people and painted part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from selfsame.mannequins.anatomy import Body
from selfsame.mannequins.attributes import COLOUR_NAMES, View, rgb
from selfsame.mannequins.paint import FIRST_PART, TEXTURES, Coat, Place, texture
from selfsame.mannequins.solids import Frame, Kind, Solid, rotation


@dataclass(frozen=True)
class Thing:
    """A thing's identity: what it is, its proportions and the paint of each part."""

    kind: str
    texture: str  # of the main part
    colours: tuple[str, ...]  # one a part; the first is the one captions speak of
    second: str  # the texture's other colour
    sizes: tuple[float, ...]  # eight numbers u in [-1, 1] that builders read as they like
    repeat: float  # texture repeats per unit


class Builder:
    """Collects solids of one thing; mirrored parts by name."""

    def __init__(self, frame: Frame, sizes: tuple[float, ...]) -> None:
        self.frame, self.sizes = frame, sizes
        self.solids: dict[str, Solid] = {}

    def grow(self, i: int, amount: float) -> float:
        return 1 + amount * self.sizes[i]

    def add(self, name: str, part: int, centre: tuple[float, float, float], radii: tuple[float, float, float], *,
            kind: Kind = "ball", yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> None:  # fmt: skip
        self.solids[name] = self.frame.solid(centre, radii, turn=rotation(yaw, pitch, roll), kind=kind, part=part)

    def pair(self, name: str, part: int, centre: tuple[float, float, float], radii: tuple[float, float, float], *,
             kind: Kind = "ball", yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> None:  # fmt: skip
        for word, side in (("left", -1.0), ("right", 1.0)):
            at = (side * centre[0], centre[1], centre[2])
            self.add(f"{name}_{word}", part, at, radii, kind=kind, yaw=side * yaw, pitch=pitch, roll=-side * roll)

    def chain(self, name: str, part: int, points: np.ndarray, r: float) -> None:
        """Balls along a path, melted into a tube."""
        for i, p in enumerate(points):
            self.add(f"{name}_{i}", part, (float(p[0]), float(p[1]), float(p[2])), (r, r, r))


def _arc(cx: float, cy: float, rx: float, ry: float, start_deg: float, end_deg: float, count: int) -> np.ndarray:
    a = np.deg2rad(np.linspace(start_deg, end_deg, count))
    return np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a), np.zeros(count)], 1)


def mug(b: Builder) -> None:
    w, h = 0.52 * b.grow(0, 0.2), 0.62 * b.grow(1, 0.2)
    b.chain("handle", 1, _arc(w, 0.0, 0.36 * b.grow(2, 0.2), 0.36 * b.grow(3, 0.2), -78, 78, 13), 0.085 * b.grow(4, 0.25))
    b.add("body", 0, (0, 0, 0), (w, h, w), kind="drum")
    b.add("inside", 2, (0, h - 0.01, 0), (w * 0.86, 0.02, w * 0.86), kind="drum")


def teapot(b: Builder) -> None:
    w = 0.62 * b.grow(0, 0.15)
    b.chain("handle", 1, _arc(-w * 0.9, 0.02, 0.34, 0.34, 100, 260, 13), 0.08)
    spout = np.stack([np.linspace(w * 0.8, w + 0.42, 9), np.linspace(-0.12, 0.36, 9), np.zeros(9)], 1)
    b.chain("spout", 2, spout, 0.10 * b.grow(4, 0.2))
    b.add("body", 0, (0, -0.1, 0), (w, 0.55 * b.grow(1, 0.15), w))
    b.add("lid", 3, (0, 0.36 * b.grow(1, 0.15), 0), (w * 0.52, 0.12, w * 0.52))
    b.add("knob", 3, (0, 0.52 * b.grow(1, 0.15), 0), (0.1, 0.1, 0.1))
    b.add("foot", 1, (0, -0.64, 0), (w * 0.6, 0.09, w * 0.6), kind="drum")


def sneaker(b: Builder) -> None:
    long = 0.78 * b.grow(0, 0.12)
    b.add("sole", 1, (0.05, -0.62, 0), (long + 0.08, 0.12 * b.grow(1, 0.3), 0.34))
    b.add("sole_heel", 1, (-0.42, -0.60, 0), (0.34, 0.15 * b.grow(1, 0.3), 0.32))
    b.add("toe", 0, (0.42, -0.42, 0), (0.42, 0.24 * b.grow(2, 0.2), 0.31))
    b.add("heel", 0, (-0.42, -0.26, 0), (0.34, 0.42 * b.grow(3, 0.2), 0.30))
    b.add("bridge", 0, (0.02, -0.32, 0), (0.50, 0.34, 0.28))
    b.add("collar", 3, (-0.40, 0.10 * b.grow(3, 0.4), 0), (0.27, 0.09, 0.24))
    for i in range(3):
        b.add(f"lace_{i}", 2, (0.02 + 0.15 * i, 0.01 - 0.075 * i, 0), (0.035, 0.045, 0.25), roll=20)


def boot(b: Builder) -> None:
    tall = 0.66 * b.grow(0, 0.2)
    b.add("shaft", 0, (-0.22, 0.12, 0), (0.31 * b.grow(1, 0.2), tall, 0.31), kind="drum")
    b.add("heel_ball", 0, (-0.2, -0.46, 0), (0.36, 0.28, 0.31))
    b.add("foot", 0, (0.22, -0.50, 0), (0.52 * b.grow(2, 0.15), 0.25, 0.30))
    b.add("sole", 1, (0.1, -0.76, 0), (0.66, 0.07, 0.31), kind="cube")
    b.add("heel", 1, (-0.34, -0.84, 0), (0.2, 0.12, 0.27), kind="cube")
    b.add("cuff", 2, (-0.22, 0.12 + tall, 0), (0.35 * b.grow(1, 0.2), 0.10, 0.35), kind="drum")
    b.add("pull", 3, (0.11, 0.16 + tall, 0), (0.04, 0.14, 0.07), kind="cube")


def _face_dots(b: Builder, y: float, z: float, spread: float, part_eye: int = 4, nose_z: float = 0.0) -> None:
    b.pair("eye", part_eye, (spread, y, z), (0.07, 0.085, 0.06))
    b.add("nose", part_eye, (0, y - 0.14, z + 0.10 + nose_z), (0.085, 0.06, 0.06))


def teddy(b: Builder) -> None:
    fat = b.grow(0, 0.15)
    b.add("body", 0, (0, -0.36, 0), (0.46 * fat, 0.48, 0.40 * fat))
    b.add("belly", 1, (0, -0.36, 0.13), (0.30 * fat, 0.32, 0.30 * fat))
    b.add("head", 0, (0, 0.36, 0.05), (0.44 * b.grow(1, 0.12), 0.40, 0.38))
    b.add("snout", 1, (0, 0.24, 0.36), (0.19, 0.15, 0.16))
    b.pair("ear", 2, (0.35, 0.70, 0), (0.16 * b.grow(2, 0.3), 0.16 * b.grow(2, 0.3), 0.10))
    b.pair("arm", 3, (0.50 * fat, -0.22, 0.12), (0.16, 0.34 * b.grow(3, 0.15), 0.17), roll=-28)
    b.pair("leg", 3, (0.31, -0.76, 0.22), (0.19, 0.19, 0.32))
    _face_dots(b, 0.42, 0.38, 0.16)


def robot(b: Builder) -> None:
    w = 0.44 * b.grow(0, 0.2)
    b.add("body", 0, (0, -0.28, 0), (w, 0.42, 0.30), kind="cube")
    b.add("head", 1, (0, 0.42, 0), (0.34 * b.grow(1, 0.2), 0.26, 0.26), kind="cube")
    b.add("panel", 2, (0, -0.2, 0.29), (w * 0.6, 0.18, 0.03), kind="cube")
    b.add("neck", 3, (0, 0.14, 0), (0.12, 0.1, 0.12), kind="drum")
    b.pair("arm", 3, (w + 0.14, -0.26, 0), (0.09, 0.40 * b.grow(2, 0.15), 0.09), kind="drum", roll=-8)
    b.pair("leg", 3, (w * 0.5, -0.80, 0), (0.12, 0.16, 0.13), kind="drum")
    b.add("antenna", 3, (0, 0.80, 0), (0.025, 0.16, 0.025), kind="drum")
    b.add("bulb", 2, (0, 0.98, 0), (0.08, 0.08, 0.08))
    b.pair("eye", 4, (0.15, 0.46, 0.25), (0.08 * b.grow(3, 0.3), 0.08 * b.grow(3, 0.3), 0.05))
    b.add("mouth", 4, (0, 0.27, 0.25), (0.16, 0.025, 0.03), kind="cube")


def duck(b: Builder) -> None:
    b.add("body", 0, (-0.06, -0.36, 0), (0.66 * b.grow(0, 0.12), 0.42, 0.46))
    b.add("tail", 0, (-0.62, -0.10, 0), (0.24, 0.16, 0.20), roll=-35)
    b.add("head", 1, (0.30, 0.30, 0), (0.34 * b.grow(1, 0.15), 0.33, 0.32))
    b.add("beak", 2, (0.66, 0.20, 0), (0.20 * b.grow(2, 0.25), 0.075, 0.17))
    for word, side in (("near", 1.0), ("far", -1.0)):
        b.add(f"wing_{word}", 3, (-0.14, -0.28, side * 0.40), (0.34, 0.24, 0.12), roll=-12)
        b.add(f"eye_{word}", 4, (0.46, 0.40, side * 0.235), (0.06, 0.075, 0.06))


def car(b: Builder) -> None:
    b.add("body", 0, (0, -0.36, 0), (0.86 * b.grow(0, 0.08), 0.22 * b.grow(1, 0.2), 0.40), kind="cube")
    b.add("hood", 0, (0.0, -0.22, 0), (0.84, 0.18, 0.38))
    b.add("cabin", 1, (-0.08, 0.02, 0), (0.46 * b.grow(2, 0.2), 0.25 * b.grow(3, 0.2), 0.34), kind="cube")
    b.add("window", 4, (-0.08, 0.05, 0), (0.36 * b.grow(2, 0.2), 0.15, 0.355), kind="cube")
    for word, x in (("front", 0.48), ("rear", -0.48)):
        for far, side in (("near", 1.0), ("far", -1.0)):
            b.add(f"wheel_{word}_{far}", 2, (x, -0.60, side * 0.36), (0.23, 0.09, 0.23), kind="drum", pitch=90)
            b.add(f"hub_{word}_{far}", 3, (x, -0.60, side * 0.40), (0.11, 0.08, 0.11), kind="drum", pitch=90)


def _four_legs(b: Builder, part: int, y: float = -0.72, r: float = 0.13) -> None:
    for word, x in (("front", 0.34), ("rear", -0.46)):
        for far, side in (("near", 1.0), ("far", -1.0)):
            b.add(f"leg_{word}_{far}", part, (x, y, side * 0.2), (r, 0.27, r))


def _animal(b: Builder, snout: float) -> None:
    """Body, legs and a head that looks along +x and half towards us."""
    b.add("body", 0, (-0.08, -0.36, 0), (0.60 * b.grow(0, 0.12), 0.34 * b.grow(1, 0.12), 0.34))
    _four_legs(b, 0)
    b.add("head", 0, (0.46, 0.20, 0.08), (0.34, 0.32 * b.grow(2, 0.1), 0.32))
    b.add("snout", 1, (0.60 + 0.3 * snout, 0.10, 0.26 + 0.1 * snout), (0.15 + snout * 0.5, 0.12, 0.15), yaw=35)
    b.add("eye_a", 4, (0.44, 0.30, 0.38), (0.06, 0.075, 0.05))
    b.add("eye_b", 4, (0.70, 0.30, 0.28), (0.05, 0.075, 0.06))
    b.add("nose", 4, (0.70 + 0.55 * snout, 0.15, 0.40 + 0.22 * snout), (0.065, 0.05, 0.05))


def cat(b: Builder) -> None:
    _animal(b, 0.0)
    b.add("ear_a", 2, (0.30, 0.52, 0.10), (0.10, 0.20 * b.grow(3, 0.2), 0.06), roll=-18)
    b.add("ear_b", 2, (0.62, 0.50, 0.02), (0.10, 0.20 * b.grow(3, 0.2), 0.06), roll=18)
    b.chain("tail", 3, _arc(-0.66, -0.02, 0.20, 0.42, 250, 80, 13), 0.075 * b.grow(4, 0.2))


def dog(b: Builder) -> None:
    _animal(b, 0.30 * b.grow(5, 0.3))
    b.add("ear_a", 2, (0.22, 0.18, 0.26), (0.11, 0.26 * b.grow(3, 0.25), 0.10), roll=10)
    b.add("ear_b", 2, (0.72, 0.24, -0.14), (0.10, 0.24 * b.grow(3, 0.25), 0.10), roll=-14)
    b.chain("tail", 3, _arc(-0.80, -0.16, 0.16, 0.34, 330, 200, 6)[::-1], 0.07)


def rabbit(b: Builder) -> None:
    _animal(b, 0.0)
    tall = 0.36 * b.grow(3, 0.25)
    b.add("ear_a", 2, (0.34, 0.48 + 0.6 * tall, 0.06), (0.09, tall, 0.07), roll=8 + 6 * b.sizes[4])
    b.add("ear_b", 2, (0.56, 0.46 + 0.6 * tall, 0.02), (0.09, tall, 0.07), roll=-8)
    b.add("tail", 3, (-0.70, -0.28, 0), (0.16, 0.16, 0.16))


def elephant(b: Builder) -> None:
    b.add("body", 0, (-0.14, -0.22, 0), (0.62 * b.grow(0, 0.1), 0.46 * b.grow(1, 0.1), 0.42))
    _four_legs(b, 0, y=-0.70, r=0.16)
    b.add("head", 0, (0.48, 0.22, 0.10), (0.34, 0.36, 0.33))
    trunk = np.stack([0.74 + 0.16 * np.sin(np.linspace(0, 2.6, 11)), np.linspace(0.16, -0.52, 11), np.full(11, 0.24)], 1)
    b.chain("trunk", 1, trunk, 0.10 * b.grow(4, 0.2))
    b.add("ear_a", 2, (0.18, 0.26, 0.34), (0.28 * b.grow(3, 0.2), 0.34 * b.grow(3, 0.2), 0.06), yaw=-20)
    b.add("tusk", 3, (0.66, -0.02, 0.40), (0.045, 0.16, 0.045), roll=24)
    b.add("eye_a", 4, (0.56, 0.34, 0.40), (0.05, 0.06, 0.05))
    b.chain("tail", 3, np.stack([np.full(4, -0.78), np.linspace(-0.05, -0.42, 4), np.zeros(4)], 1), 0.05)


BUILDERS: dict[str, tuple[Callable[[Builder], None], tuple[str, ...]]] = {
    "mug": (mug, ("body", "handle", "inside")),
    "teapot": (teapot, ("body", "handle", "spout", "lid")),
    "sneaker": (sneaker, ("upper", "sole", "laces", "collar")),
    "boot": (boot, ("shaft", "sole", "cuff", "pull")),
    "teddy bear": (teddy, ("body", "belly", "ears", "limbs", "eyes")),
    "robot": (robot, ("body", "head", "panel", "limbs", "eyes")),
    "rubber duck": (duck, ("body", "head", "beak", "wings", "eyes")),
    "toy car": (car, ("body", "cabin", "wheels", "hubs", "windows")),
    "cat": (cat, ("body", "snout", "ears", "tail", "eyes")),
    "dog": (dog, ("body", "snout", "ears", "tail", "eyes")),
    "rabbit": (rabbit, ("body", "snout", "ears", "tail", "eyes")),
    "elephant": (elephant, ("body", "trunk", "ears", "tail", "eyes")),
}
THING_KINDS = tuple(BUILDERS)


def thing_of(seed: int) -> Thing:
    """The thing of a seed."""
    rng = np.random.default_rng([0x7419, seed])
    kind = THING_KINDS[int(rng.integers(len(THING_KINDS)))]
    colours = [COLOUR_NAMES[int(i)] for i in rng.choice(len(COLOUR_NAMES) - 1, 5, replace=False)]
    colours[4] = "black"
    second = str(rng.choice([c for c in ("white", "yellow", "black", "red", "blue") if c != colours[0]]))
    return Thing(
        kind=kind,
        texture=TEXTURES[int(rng.integers(len(TEXTURES)))],
        colours=tuple(colours),
        second=second,
        sizes=tuple(float(v) for v in rng.uniform(-1, 1, 8)),
        repeat=float(rng.uniform(2.6, 4.2)),
    )


def paint_label(part: int) -> int:
    """What a thing's part is called in a picture's labels."""
    return part + FIRST_PART


def thing_frame(view: View) -> Frame:
    return Frame(np.array([view.x, view.y, 0.0]), rotation(view.yaw_deg, view.pitch_deg, view.roll_deg), view.scale)


def thing_bodies(thing: Thing, view: View) -> Body:
    """One melted body whose parts keep their names."""
    builder = Builder(thing_frame(view), thing.sizes)
    BUILDERS[thing.kind][0](builder)
    return Body("thing", builder.frame, builder.solids, 0.05)


def paint_thing(place: Place, things: list[Thing]) -> Coat:
    """Each part its colour; the main part also its texture, wrapped around the upright axis."""
    albedo = place.full(place.colour([rgb(t.colours[0]) for t in things]))
    repeat = place.num([t.repeat for t in things])
    around = torch.atan2(place.x, place.z + 0.001) * 0.55
    flat = place.num([float(t.kind not in ("mug", "boot", "teapot")) for t in things])
    u = (flat * place.x + (1 - flat) * around) * repeat
    v = (place.y + flat * 0.35 * place.z) * repeat
    second = place.colour([rgb(t.second) for t in things])
    for kind in dict.fromkeys(t.texture for t in things):
        chosen = place.num([float(t.texture == kind) for t in things])
        show = chosen * texture(kind, u, v, place.soft * 4.5) * (place.part == 0)
        albedo = torch.lerp(albedo, second.expand_as(albedo), show.unsqueeze(1))
    for part in range(1, 5):
        colour = place.colour([rgb(t.colours[part]) for t in things])
        albedo = torch.where((place.part == part).unsqueeze(1), colour, albedo)
    animal = place.num([float(t.kind in ("teddy bear", "cat", "dog", "rabbit", "elephant")) for t in things])
    gloss = 0.42 - 0.36 * animal + 0.4 * (place.part == 4)
    label = (place.part + FIRST_PART).to(torch.uint8)
    return Coat(albedo, gloss.expand_as(place.x), label, wrap=0.3)
