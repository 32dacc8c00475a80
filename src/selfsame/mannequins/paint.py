"""Paint for mannequins: colours, gloss and labels as functions of the place on the body, in local units.

Because paint is a function of the surface point, features can never float off the face, whatever the pose. A painter sees
the points of one body that are in sight, of all pictures of a batch; `num` and `colour` bring one value per picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from selfsame.mannequins.anatomy import FacePlan
from selfsame.mannequins.attributes import Look, rgb
from selfsame.mannequins.people import BEARDS, HAIR_STYLES, Person

LABELS = (
    "background", "skin", "hair", "eyes", "brows", "nose", "mouth", "ears", "neck", "cloth", "hat", "glasses",
    "part 1", "part 2", "part 3", "part 4", "part 5", "part 6",
)  # fmt: skip
FIRST_PART = LABELS.index("part 1")
SKIN, HAIR, EYES, BROWS, NOSE, MOUTH, EARS, NECK, CLOTH, HAT, GLASSES = range(1, 12)


@dataclass
class Place:
    """Surface points of one body in one row, 1 1 n each: local coordinates, which part.

    `num` brings one value per picture to the points (1 1 n, or 1 1 1 when all lie in one picture).
    """

    x: Tensor
    y: Tensor
    z: Tensor
    part: Tensor
    soft: Tensor  # width of a soft edge, local units
    num: Callable[[ArrayLike], Tensor]
    spread_colours: Callable[[ArrayLike], Tensor]

    def colour(self, values: ArrayLike) -> Tensor:
        """Linear-light colours (1 3 1 n or 1 3 1 1) from sRGB triples, one a picture or one for all."""
        return self.spread_colours(np.asarray(values, dtype=np.float32) ** 2)

    def edge(self, inside: Tensor, width: float = 1.0) -> Tensor:
        """0..1 coverage of signed distance `inside` (positive within)."""
        return (inside / (self.soft * width)).add_(0.5).clamp_(0, 1)

    def full(self, value: Tensor) -> Tensor:
        return value.expand(1, 3, 1, self.x.shape[-1]).contiguous()


@dataclass
class Coat:
    """What a painter leaves: linear albedo (1 3 1 n), gloss (1 1 n or float), labels (1 1 n uint8)."""

    albedo: Tensor
    gloss: Tensor | float
    label: Tensor
    wrap: float = 0.2  # how far light creeps round the edge: skin is soft, metal hard


def over(albedo: Tensor, colour: Tensor, weight: Tensor) -> Tensor:
    """Lay a colour over the coat with a weight per pixel."""
    return torch.lerp(albedo, colour.expand_as(albedo), weight.unsqueeze(1))


def _labels(place: Place, value: int) -> Tensor:
    return torch.full(place.x.shape, value, dtype=torch.uint8, device=place.x.device)


# ------------------------------------------------------------------------------------------------- textures

TEXTURES = ("plain", "stripes", "dots", "checks", "spots", "plaid")


def texture(kind: str, u: Tensor, v: Tensor, soft: float | Tensor) -> Tensor:
    """How much of the second colour shows at (u, v), one repeat per unit. 0..1."""

    def edge(d: Tensor) -> Tensor:
        return (d / soft + 0.5).clamp(0, 1)

    if kind == "stripes":
        return edge(0.25 - (v - v.floor() - 0.5).abs())
    if kind == "dots":
        row = v.floor()
        uu = u + 0.5 * (row - 2 * torch.floor(row / 2))
        return edge(0.29 - torch.sqrt((uu - uu.floor() - 0.5) ** 2 + (v - row - 0.5) ** 2 + 1e-9))
    if kind == "checks":
        a, b = (u - u.floor() - 0.5).abs() - 0.25, (v - v.floor() - 0.5).abs() - 0.25
        return edge(torch.where(a * b > 0, torch.minimum(a.abs(), b.abs()), -torch.minimum(a.abs(), b.abs())))
    if kind == "spots":
        wave = torch.sin(u * 4.3 + 1.3 * torch.sin(v * 3.1)) + torch.sin(v * 4.9 + 1.7 * torch.sin(u * 2.7 + 1))
        return edge((wave - 0.55) * 0.2)
    if kind == "plaid":
        a = edge(0.16 - (u - u.floor() - 0.5).abs())
        b = edge(0.16 - (v - v.floor() - 0.5).abs())
        return 0.5 * a + 0.5 * b
    return torch.zeros_like(u)


def by_kind(kinds: Sequence[str], place: Place, paint: Callable[[str], Tensor]) -> Tensor:
    """paint(kind) where that picture has the kind; kinds absent from the batch cost nothing."""
    result: Tensor | None = None
    for kind in dict.fromkeys(kinds):
        value = paint(kind)
        result = value if result is None else torch.where(place.num([float(k == kind) for k in kinds]) > 0.5, value, result)
    assert result is not None
    return result


# ------------------------------------------------------------------------------------------------- people


@dataclass
class Sitter:
    """A person of one picture, as painters need them."""

    person: Person
    look: Look
    plan: FacePlan


def paint_neck(place: Place, sitters: list[Sitter]) -> Coat:
    skin = place.full(place.colour([s.person.skin_rgb() for s in sitters]))
    return Coat(skin, 0.12, _labels(place, NECK), wrap=0.45)


def paint_ear(place: Place, sitters: list[Sitter]) -> Coat:
    base = place.colour([s.person.skin_rgb() for s in sitters])
    hollow = torch.exp(-(((place.y + 0.03) / 0.11) ** 2) - ((place.z - 0.03) / 0.07) ** 2)
    albedo = over(place.full(base), base * place.colour([(0.80, 0.66, 0.62)]), 0.55 * hollow)
    return Coat(albedo, 0.12, _labels(place, EARS), wrap=0.45)


def paint_face(place: Place, sitters: list[Sitter]) -> Coat:
    """The face: skin, marks, beard, brows, eyes, nostrils, mouth, in that order."""
    x, y, ax = place.x, place.y, place.x.abs()
    front = place.edge(place.z - 0.05, 8)
    plans = [s.plan for s in sitters]
    people = [s.person for s in sitters]

    def plan(name: str) -> Tensor:
        return place.num([getattr(p, name) for p in plans])

    def last(name: str) -> Tensor:
        return place.num([getattr(p.last, name) for p in people])

    skin_c = place.colour([p.skin_rgb() for p in people])
    hair_c = place.colour([p.hair_rgb() for p in people])
    label = _labels(place, SKIN)
    albedo = place.full(skin_c)
    gloss = torch.full_like(x, 0.14)
    rosy = skin_c * place.colour([(1.0, 0.62, 0.58)])
    dark = skin_c * place.colour([(0.62, 0.50, 0.48)])

    nose_y, nose_w = plan("nose_y"), plan("nose_w")
    eye_x, eye_y, eye_w, eye_h = plan("eye_x"), plan("eye_y"), plan("eye_w"), plan("eye_h")
    mouth_y, mouth_w = plan("mouth_y"), plan("mouth_w")

    # Skin: warm cheeks and nose, shade in the eye sockets.
    blush = 0.34 + 0.26 * last("blush")
    albedo = over(albedo, rosy, front * blush * torch.exp(-(((ax - 0.43) / 0.17) ** 2) - ((y + 0.22) / 0.14) ** 2))
    albedo = over(albedo, rosy, front * 0.35 * torch.exp(-((x / nose_w) ** 2) - ((y - nose_y) / 0.1) ** 2))
    socket = torch.exp(-(((ax - eye_x + 0.04) / (eye_w * 1.15)) ** 2) - ((y - eye_y - 0.03) / (eye_h * 1.6)) ** 2)
    albedo = over(albedo, dark, front * 0.35 * socket)

    # Marks.
    freckled = [p.last.freckles > 0.35 for p in people]
    if any(freckled):
        grain = torch.sin(x * 61 + 2 * torch.sin(y * 23)) * torch.sin(y * 57 + 2 * torch.sin(x * 19))
        where = torch.exp(-(((ax - 0.34) / 0.24) ** 2) - ((y + 0.17) / 0.12) ** 2)
        albedo = over(albedo, dark, place.num(freckled) * front * 0.8 * place.edge(grain - 0.55, 30) * where)
    marked = [abs(p.last.mole_x) > 0.55 for p in people]
    if any(marked):
        at_x = place.num([np.sign(p.last.mole_x) * (0.30 + 0.5 * (abs(p.last.mole_x) - 0.55)) for p in people])
        r = torch.sqrt((x - at_x) ** 2 + (y + 0.40 - 0.13 * last("mole_y")) ** 2)
        albedo = over(albedo, dark * 0.25, place.num(marked) * front * place.edge(0.036 - r))
    aged = np.clip([(p.last.age - 0.2) / 0.8 for p in people], 0, 1)
    if aged.any():
        fold = (ax - (nose_w * 1.5 + 0.55 * (nose_y + 0.02 - y))).abs()
        lines = place.edge(0.016 - fold) * place.edge(nose_y + 0.02 - y, 4) * place.edge(y - mouth_y, 4)
        brow_lines = place.edge((torch.sin((y + 0.03 * torch.cos(x * 5)) * 52) - 0.82) * 0.02) * torch.exp(-((x / 0.36) ** 4) - ((y - 0.56) / 0.11) ** 4)
        albedo = over(albedo, dark, place.num(aged) * front * 0.7 * torch.maximum(lines, brow_lines))

    # Mouth curves are needed by the beard too.
    u = (x / mouth_w).clamp(-1.2, 1.2)
    bow = (1 - u * u).clamp_min(0)
    line = mouth_y + plan("smile") * (u * u - 0.35)
    arch = bow.sqrt()
    top_in = line + 0.55 * plan("mouth_open") * arch
    low_in = line - 1.15 * plan("mouth_open") * arch
    top_out = top_in + plan("lip_upper") * bow.sqrt() * (1 - 0.28 * torch.exp(-((u * 5) ** 2)))
    low_out = low_in - plan("lip_lower") * arch
    within = place.edge((1 - u.abs()) * mouth_w)

    kinds = [BEARDS[p.last.beard] for p in people]
    if set(kinds) != {"none"}:

        def beard(kind: str) -> Tensor:
            if kind == "none":
                return torch.zeros_like(x)
            tache = torch.minimum(0.062 - (y - top_out.clamp_max(9) - 0.03 + 0.5 * ax * 0.2).abs(), mouth_w * 1.12 - ax)
            if kind == "moustache":
                return place.edge(tache, 1.5)
            chin = torch.minimum(0.23 - ax, low_out - 0.0 - y)
            if kind == "goatee":
                return place.edge(
                    torch.maximum(torch.maximum(chin, tache), 0.05 - (ax - mouth_w - 0.02).abs() + 0 * y).where(y < top_out, torch.maximum(chin, tache)), 2
                )
            jaw = mouth_y + 0.15 + 0.62 * (ax - 0.30).clamp_min(0) - y
            full = place.edge(jaw, 6)
            return 0.34 * full if kind == "stubble" else full

        weight = front * by_kind(kinds, place, beard)
        grain = 1 + 0.22 * torch.sin(x * 47 + 3 * torch.sin(y * 13)) * torch.sin(y * 39)
        albedo = torch.lerp(albedo, hair_c * grain.unsqueeze(1), weight.unsqueeze(1))
        gloss = gloss * (1 - 0.7 * weight)
        label = label.masked_fill(weight > 0.5, HAIR)

    # Brows.
    bu = (ax - eye_x) / plan("brow_w")
    middle = plan("brow_y") + plan("brow_tilt") * (ax - eye_x) + plan("brow_arch") * (1 - bu * bu) - plan("inner_brow") * bu
    thick = plan("brow_t") * (1.05 - 0.35 * bu)
    brow = torch.minimum(thick - (y - middle).abs(), (1 - bu.abs()) * plan("brow_w"))
    weight = front * place.edge(brow, 1.5)
    albedo = over(albedo, hair_c * 0.55, 0.92 * weight)
    label = label.masked_fill(weight > 0.5, BROWS)

    # Eyes: both at once, `out` runs from nose to ear.
    out = (ax - eye_x) / eye_w
    v = y - eye_y - plan("eye_tilt") * (ax - eye_x)
    almond = (1 - out * out).clamp_min(0)
    lid, floor = eye_h * almond.pow(0.75), -0.78 * eye_h * almond
    opened = front * place.edge(torch.minimum(lid - v, v - floor)) * place.edge((1.0 - out.abs()) * eye_w)
    rim = torch.maximum(place.edge(0.026 - (v - lid).abs()), 0.45 * place.edge(0.012 - (v - floor).abs()))
    rim = front * rim * place.edge((1.06 - out.abs()) * eye_w)
    crease = front * place.edge(0.012 - (v - lid - 0.052).abs()) * place.edge((0.9 - out.abs()) * eye_w, 3)
    albedo = over(albedo, dark, 0.6 * crease)
    white = place.colour([(0.97, 0.97, 0.98)]) * (1 - 0.42 * ((v - 0.25 * lid) / (lid + 0.02)).clamp(0, 1)).unsqueeze(1)
    albedo = torch.lerp(albedo, white, opened.unsqueeze(1))
    side = torch.sign(x)
    gaze_x = place.num([s.look.gaze_x for s in sitters]) * side * 0.34 * eye_w
    gaze_y = place.num([s.look.gaze_y for s in sitters]) * 0.22 * eye_h
    iris_r = 0.098 * (0.75 + 0.25 * eye_w / 0.175)
    ix, iy = out * eye_w - gaze_x, v - gaze_y
    r = torch.sqrt(ix * ix + iy * iy + 1e-9)
    iris_c = place.colour([p.eye_rgb() for p in people])
    iris = iris_c * (0.75 + 0.9 * (-iy / iris_r).clamp(-0.4, 1)).unsqueeze(1)
    albedo = torch.lerp(albedo, iris, (opened * place.edge(iris_r - r)).unsqueeze(1))
    albedo = over(albedo, iris_c * 0.25, opened * 0.8 * place.edge(0.014 - (r - iris_r).abs()))
    albedo = over(albedo, place.colour([(0.06, 0.05, 0.06)]), opened * place.edge(0.46 * iris_r - r))
    spark = torch.sqrt((ix * side + 0.032) ** 2 + (iy - 0.036) ** 2 + 1e-9)
    albedo = over(albedo, place.colour([(1.0, 1.0, 1.0)]) * 1.3, opened * place.edge(0.026 - spark))
    albedo = over(albedo, place.colour([(0.13, 0.09, 0.09)]), 0.95 * rim)
    gloss = torch.where(opened > 0.5, torch.full_like(gloss, 0.5), gloss)
    label = label.masked_fill(torch.maximum(opened, rim) > 0.5, EYES)

    # Nose.
    nostril = 1 - ((ax - 0.52 * nose_w) / 0.042) ** 2 - ((y - nose_y + 0.058) / 0.024) ** 2
    albedo = over(albedo, dark * 0.3, front * 0.85 * place.edge(nostril * 0.03))
    taper = nose_w * 1.45 - 0.32 * (y - nose_y).clamp_min(0) - ax
    is_nose = (torch.minimum(taper, torch.minimum(y - nose_y + 0.1, nose_y + 0.36 - y)) > 0) & (place.z > 0.5) & (label == SKIN)
    label = label.masked_fill(is_nose, NOSE)

    # Mouth.
    lip = front * within * place.edge(torch.minimum(top_out - y, y - low_out))
    tone = 0.80 + 0.16 * last("lip_colour")
    lip_c = skin_c * place.colour([(0.86, 0.50, 0.50)]) * tone.unsqueeze(1)
    albedo = over(albedo, lip_c, 0.92 * lip)
    gap = torch.maximum(torch.minimum(top_in - y, y - low_in), 0.011 - (y - line).abs())
    mouth = front * within * place.edge(gap)
    albedo = over(albedo, place.colour([(0.30, 0.09, 0.10)]), mouth)
    opening = plan("mouth_open")
    teeth = torch.minimum(torch.minimum(top_in - y, y - (top_in - 0.45 * opening)), 0.86 * mouth_w - ax)
    albedo = over(albedo, place.colour([(0.95, 0.94, 0.92)]), mouth * place.edge(teeth - 0.004) * (opening > 0.02))
    tongue = 0.09 * opening / 0.15 - torch.sqrt((x * 0.7) ** 2 + (y - low_in) ** 2 + 1e-9)
    albedo = over(albedo, place.colour([(0.80, 0.36, 0.38)]), mouth * place.edge(tongue, 2) * (opening > 0.02))
    gloss = torch.where(lip > 0.5, torch.full_like(gloss, 0.3), gloss)
    label = label.masked_fill(torch.maximum(lip, mouth) > 0.5, MOUTH)
    return Coat(albedo, gloss, label, wrap=0.45)


def paint_hair(place: Place, sitters: list[Sitter]) -> Coat:
    people = [s.person for s in sitters]
    base = place.colour([p.hair_rgb() for p in people])
    x, y, z = place.x, place.y, place.z
    curly = place.num([float(HAIR_STYLES[p.first.hair_style] in ("afro", "curly")) for p in people])
    strand = torch.sin(x * 26 + 2.2 * torch.sin(y * 2.4 + z * 1.7)) * 0.6 + torch.sin(x * 11 - z * 13 + y * 1.5) * 0.4
    coil = torch.sin(x * 21 + 1.5 * torch.sin(y * 17)) * torch.sin(y * 22 + 1.5 * torch.sin(z * 19)) + 0.5 * torch.sin(z * 23)
    grain = 1 + 0.17 * strand * (1 - curly) + 0.24 * coil * curly
    buzz = place.num([float(HAIR_STYLES[p.first.hair_style] == "buzz") for p in people])
    skin = place.colour([p.skin_rgb() for p in people])
    albedo = torch.lerp(base * grain.unsqueeze(1), skin.expand(-1, -1, *x.shape[1:]), 0.28 * buzz.unsqueeze(1))
    gloss = 0.38 * (1 - 0.8 * curly) * (1 - 0.8 * buzz) * (0.7 + 0.3 * strand)
    return Coat(albedo, gloss, _labels(place, HAIR), wrap=0.25)


def cut_hair(u: tuple[Tensor, Tensor, Tensor], place_num: Callable[[ArrayLike], Tensor], sitters: list[Sitter]) -> Tensor:
    """Where the cap of hair is cut away for the face: below the hairline, by direction from the middle of the head."""
    firsts = [s.person.first for s in sitters]
    ux, uy, uz = u
    ahead = uz * torch.rsqrt(ux * ux + uz * uz + 1e-9)  # 1 in front, 0 at the ears, -1 behind

    def ramp(a: float, b: float) -> Tensor:
        t = ((ahead - a) / (b - a)).clamp(0, 1)
        return t * t * (3 - 2 * t)

    def front_line(f: Any) -> float:
        style = HAIR_STYLES[f.hair_style]
        fringe = f.fringe > 0.2 and style in ("bob", "long", "pigtails", "short", "curly")
        return 0.20 if fringe else 0.47 + 0.11 * f.hairline

    top = place_num([front_line(f) for f in firsts])
    sides = {"mohawk": -0.05, "buzz": -0.05, "bun": -0.05, "ponytail": -0.05, "afro": -0.36}
    side = place_num([sides.get(HAIR_STYLES[f.hair_style], -0.24) for f in firsts])
    peak = place_num([0.10 * f.hairline for f in firsts]) * torch.exp(-((ux * 5) ** 2))
    lean = place_num([0.16 * f.parting for f in firsts]) * ux * ramp(0.2, 0.6)
    line = torch.lerp(side, top - peak + lean, ramp(0.28, 0.74))
    line = torch.lerp(line, place_num([-0.78] * len(firsts)), ramp(-0.1, -0.65))
    return uy < line


def paint_cloth(place: Place, sitters: list[Sitter]) -> Coat:
    x, y = place.x, place.y - 0.24
    main = place.colour([rgb(s.look.clothes_colour) for s in sitters])
    light_cloth = [s.look.clothes_colour in ("white", "yellow", "pink") for s in sitters]
    second = place.colour([rgb("blue" if pale else "white") for pale in light_cloth])
    skin = place.colour([s.person.skin_rgb() for s in sitters])
    ax = x.abs()
    soft = place.soft * 6

    def garment(kind: str) -> Tensor:
        coat = place.full(main)
        if kind == "t-shirt":
            neck = 0.54 - torch.sqrt((x / 1.05) ** 2 + ((y + 1.28) / 0.62) ** 2)
            coat = over(coat, main * 0.62, place.edge(0.045 - (neck + 0.03).abs(), 2))
            return over(coat, skin, place.edge(neck, 2))
        if kind == "striped sweater":
            band = texture("stripes", x, y * 3.6 + 0.1 * ax, soft * 3.6)
            coat = over(coat, second, band)
            return over(coat, main * 0.7, place.edge(y + 1.52 + 0.15 * ax, 2))
        if kind == "suit":
            wide = 0.40 + 0.42 * (y + 1.5)
            shirt = place.edge(wide - ax, 2)
            lapel = place.edge(0.035 - (wide + 0.16 - ax).abs(), 2)
            coat = over(coat, main * 0.45, torch.maximum(lapel, place.edge(0.02 - (wide - ax).abs())))
            coat = over(coat, place.colour([(0.96, 0.96, 0.97)]), shirt)
            tie = torch.minimum(0.10 - 0.05 * (y + 1.5).abs() - ax + 0.05 * (y < -1.62), -1.42 - y)
            tie_c = place.colour([rgb("black" if s.look.clothes_colour == "red" else "red") for s in sitters])
            return over(coat, tie_c, shirt * place.edge(tie, 2))
        if kind == "hoodie":
            coat = over(coat, main * 0.6, (place.part == 1) * 0.55)
            cord = torch.minimum(0.028 - (ax - 0.2).abs(), y + 2.1)
            return over(coat, place.colour([(0.97, 0.97, 0.95)]), place.edge(cord) * (place.z > 0) * (y < -1.5))
        if kind == "spacesuit":
            coat = place.full(place.colour([(0.90, 0.91, 0.93)]))
            coat = over(coat, place.colour([(0.55, 0.58, 0.62)]), (place.part == 1).float())
            badge = torch.minimum(0.34 - ax, torch.minimum(-1.72 - y, y + 2.2))
            coat = over(coat, main, place.edge(badge, 2) * (place.z > 0))
            seam = place.edge(0.03 - (ax - 0.78).abs(), 2)
            return over(coat, main, seam * 0.9)
        neck = 0.62 - torch.sqrt((x / 1.0) ** 2 + ((y + 1.22) / 0.78) ** 2)
        coat = over(coat, second, texture("dots", x * 3.4, y * 3.4, soft * 3.4))
        return over(coat, skin, place.edge(neck, 2))

    kinds = [s.look.clothes for s in sitters]
    albedo = by_kind_colour(kinds, place, garment)
    return Coat(albedo, 0.06, _labels(place, CLOTH), wrap=0.3)


def by_kind_colour(kinds: Sequence[str], place: Place, paint: Callable[[str], Tensor]) -> Tensor:
    """`by_kind` for colours (1 3 1 n)."""
    result: Tensor | None = None
    for kind in dict.fromkeys(kinds):
        value = paint(kind)
        chosen = place.num([float(k == kind) for k in kinds]).unsqueeze(1) > 0.5
        result = value if result is None else torch.where(chosen, value, result)
    assert result is not None
    return result


def paint_glasses(place: Place, sitters: list[Sitter]) -> Coat:
    frame_c = [(0.10, 0.10, 0.12) if s.look.glasses == "round" else (0.30, 0.12, 0.10) for s in sitters]
    return Coat(place.full(place.colour(frame_c)), 0.5, _labels(place, GLASSES), wrap=0.1)


def cut_glasses(u: tuple[Tensor, Tensor, Tensor], kind: str) -> Tensor:
    """The hole of a rim."""
    if kind == "drum":
        return u[0] * u[0] + u[2] * u[2] < 0.84**2
    return torch.maximum(u[0].abs() - 0.04, u[1].abs()) < 0.82


def paint_hat(place: Place, sitters: list[Sitter]) -> Coat:
    looks = [s.look for s in sitters]
    main = place.colour([rgb(s.hat_colour) for s in looks])

    def hat(kind: str) -> Tensor:
        coat = place.full(main)
        if kind == "beanie":
            rib = 1 + 0.16 * torch.sin(place.x * 34 - place.z * 9)
            coat = coat * rib.unsqueeze(1)
            return over(coat, main * 0.55, (place.part == 1) * 0.6)
        if kind == "sun hat":
            weave = 1 + 0.06 * torch.sin(place.x * 40) * torch.sin(place.z * 40)
            coat = coat * weave.unsqueeze(1)
            return over(coat, place.colour([(0.16, 0.13, 0.13)]), place.edge(0.07 - (place.y - 0.72).abs(), 2) * (place.part == 0))
        if kind == "crown":
            coat = place.full(place.colour([(0.95, 0.76, 0.26)]))
            angle = torch.atan2(place.x, place.z + 0.14) * 6 / np.pi
            gem = torch.sqrt((angle - angle.round()) ** 2 * 0.16 + (place.y - 0.74) ** 2 + 1e-9)
            return over(coat, main, place.edge(0.085 - gem))
        coat = over(coat, main * 0.6, (place.part == 1) * 0.5)
        return over(coat, main * 0.5, place.edge(0.012 - place.x.abs()) * (place.part == 0))

    kinds = [s.hat for s in looks]
    gloss = place.num([0.6 if k == "crown" else 0.08 for k in kinds]).expand_as(place.x)
    return Coat(by_kind_colour(kinds, place, hat), gloss, _labels(place, HAT), wrap=0.2)


def cut_hat(u: tuple[Tensor, Tensor, Tensor], kind: str, hats: Sequence[str], num: Callable[[ArrayLike], Tensor]) -> Tensor:
    """Hats are open below; a crown is open above too, with points."""
    if kind == "drum":
        hole = u[0] * u[0] + u[2] * u[2] < 0.9**2
        angle = torch.atan2(u[0], u[2]) * 6 / np.pi
        points = 0.15 + 1.7 * (0.5 - (angle - angle.floor() - 0.5).abs())
        return (hole & (u[1].abs() > 0.98)) | (u[1] > points)
    rise = num([{"beanie": 0.16, "cap": 0.22, "sun hat": 0.22}.get(h, 0.22) for h in hats])
    return u[1] < rise
