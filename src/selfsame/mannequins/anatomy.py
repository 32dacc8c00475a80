"""From a person and a look to solids: the bones of a mannequin, with the plan of the face that paint and key points share.

Local head units: x to image right when facing us, y up, z out of the face; the chin is near y = -1, the crown near 1.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selfsame.mannequins.attributes import Look, View
from selfsame.mannequins.people import HAIR_STYLES, Person
from selfsame.mannequins.solids import Frame, Solid, rotation

EYE_Z, CORNER_Z = 0.70, 0.60  # how far out eyes and the corners of the mouth lie
PIVOT = np.array([0.0, -0.55, -0.15])  # the head turns about this point

# expression -> smile, mouth open, mouth width factor, brow raise, inner brow raise, eye opening factor
EXPRESSION_SHAPES = {
    "neutral": (0.06, 0.0, 1.0, 0.0, 0.0, 1.0),
    "smiling": (0.8, 0.0, 1.12, 0.1, 0.0, 0.92),
    "laughing": (1.0, 0.75, 1.12, 0.35, 0.0, 0.72),
    "sad": (-0.9, 0.0, 0.9, 0.0, 1.0, 0.82),
    "surprised": (0.0, 0.85, 0.62, 1.0, 0.1, 1.22),
}


@dataclass(frozen=True)
class FacePlan:
    """Where the features of one face are, in head units; right-hand features mirror these."""

    eye_x: float
    eye_y: float
    eye_w: float  # half width
    eye_h: float  # half height when open
    eye_tilt: float
    brow_y: float
    brow_w: float
    brow_t: float  # half thickness
    brow_tilt: float
    brow_arch: float
    inner_brow: float
    nose_y: float
    nose_w: float
    nose_z: float
    mouth_y: float
    mouth_w: float
    smile: float
    mouth_open: float  # half opening in head units
    lip_upper: float
    lip_lower: float
    jaw_w: float
    chin_y: float
    head_w: float
    head_h: float


def face_plan(person: Person, look: Look) -> FacePlan:
    """Identity and expression become places on the face."""
    f, s = person.first, person.last
    smile, opening, width, raise_, inner, lids = EXPRESSION_SHAPES[look.expression]
    a = look.strength
    smile, opening, raise_, inner = smile * a, opening * a, raise_ * a, inner * a
    width, lids = 1 + (width - 1) * a, 1 + (lids - 1) * a
    eye_h = 0.105 * (1 + 0.34 * s.eye_size) * (1 + 0.36 * s.eye_open) * lids
    eye_y = 0.06 + 0.055 * s.eye_height
    return FacePlan(
        eye_x=0.33 * (1 + 0.20 * s.eye_spacing) * (1 + 0.05 * f.head_width),
        eye_y=eye_y,
        eye_w=0.175 * (1 + 0.24 * s.eye_size),
        eye_h=eye_h,
        eye_tilt=0.34 * s.eye_tilt,
        brow_y=eye_y + 0.2 + 0.045 * s.brow_height + 0.09 * raise_ + 0.04 * s.eye_size,
        brow_w=0.225 + 0.03 * s.eye_size,
        brow_t=0.036 * (1 + 0.62 * s.brow_thick),
        brow_tilt=0.36 * s.brow_tilt,
        brow_arch=0.055 * (1 + s.brow_arch),
        inner_brow=0.13 * inner,
        nose_y=-0.21 - 0.075 * s.nose_length,
        nose_w=0.12 * (1 + 0.42 * s.nose_width),
        nose_z=0.86 + 0.085 * s.nose_depth,
        mouth_y=-0.53 - 0.03 * s.nose_length + 0.04 * s.mouth_height,
        mouth_w=0.255 * (1 + 0.30 * s.mouth_width) * width,
        smile=0.13 * smile,
        mouth_open=0.15 * opening,
        lip_upper=0.05 * (1 + 0.6 * s.lip_upper),
        lip_lower=0.066 * (1 + 0.6 * s.lip_lower),
        jaw_w=0.50 * (1 + 0.26 * s.jaw_width),
        chin_y=-0.86 - 0.10 * s.chin_length - 0.09 * opening,
        head_w=1 + 0.12 * f.head_width,
        head_h=1 + 0.08 * f.head_height,
    )


@dataclass
class Body:
    """Solids that melt into one surface and are painted by one painter in one frame."""

    painter: str
    frame: Frame
    solids: dict[str, Solid]
    blend: float  # head units
    shells: frozenset[str] = frozenset()  # solids cut open by the painter's cutter


def _sides(name: str) -> tuple[tuple[str, float], ...]:
    return ((f"{name}_left", -1.0), (f"{name}_right", 1.0))


def head_frame(view: View) -> Frame:
    turn = rotation(view.yaw_deg, view.pitch_deg, view.roll_deg)
    origin = np.array([view.x, view.y, 0.0]) + view.scale * (PIVOT - turn @ PIVOT)
    return Frame(origin, turn, view.scale)


def torso_frame(view: View) -> Frame:
    turn = rotation(view.yaw_deg * 0.35, 0.0, view.roll_deg * 0.15)
    origin = np.array([view.x, view.y, 0.0]) + view.scale * (PIVOT - turn @ PIVOT)
    return Frame(origin, turn, view.scale)


def mannequin(person: Person, look: Look, view: View) -> list[Body]:
    """All bodies of one person, back to front order does not matter."""
    head, torso = head_frame(view), torso_frame(view)
    plan = face_plan(person, look)
    bodies = [_face(person, plan, head), _torso(person, look, torso), _neck(person, torso, head)]
    bodies += [body for body in (_ears(person, head), _hair(person, look, head)) if body.solids]
    if look.glasses != "none":
        bodies.append(_glasses(plan, look, head))
    if look.hat != "none":
        bodies.append(_hat(person, look, head))
    return bodies


def _torso(person: Person, look: Look, frame: Frame) -> Body:
    broad = 1 + 0.10 * person.last.jaw_width
    puffy = 1.08 if look.clothes in ("spacesuit", "hoodie") else 1.0
    solids = {
        "chest": frame.solid((0, -2.18, -0.28), (1.16 * broad * puffy, 1.12, 0.62 * puffy)),
        "trapezius": frame.solid((0, -1.42, -0.3), (0.66 * broad, 0.34 * puffy, 0.36 * puffy)),
    }
    for name, side in _sides("shoulder"):
        solids[name] = frame.solid((side * 1.04 * broad, -1.92, -0.3), (0.52 * puffy, 0.56, 0.5 * puffy))
    if look.clothes == "spacesuit":
        solids["ring"] = frame.solid((0, -1.14, -0.14), (0.74, 0.13, 0.66), part=1)
    if look.clothes == "hoodie":
        solids["hood"] = frame.solid((0, -1.20, -0.42), (0.86, 0.34, 0.52), part=1)
    return Body("cloth", frame, solids, 0.14)


def _neck(person: Person, torso: Frame, head: Frame) -> Body:
    wide = 0.36 * (1 + 0.14 * person.last.jaw_width)
    solids = {
        "neck": torso.solid((0, -1.12, -0.2), (wide, 0.82, wide)),
        "nape": head.solid((0, -0.55, -0.28), (0.46, 0.5, 0.42)),
    }
    return Body("skin", torso, solids, 0.12)


def _ears(person: Person, frame: Frame) -> Body:
    f = person.first
    size = 1 + 0.32 * f.ear_size
    solids = {}
    if HAIR_STYLES[f.hair_style] in ("bob", "long"):  # under the hair
        return Body("ear", frame, solids, 0.04)
    for name, side in _sides("ear"):
        at = side * 0.765 * (1 + 0.12 * f.head_width)
        turn = rotation(side * 28, 0, -side * 8)
        solids[name] = frame.solid((at, -0.06, -0.06), (0.085 * size, 0.21 * size, 0.15 * size), turn=turn)
        solids[name + "_lobe"] = frame.solid((at, -0.06 - 0.17 * size, -0.02), (0.06 * size, 0.08 * size, 0.08 * size))
    return Body("ear", frame, solids, 0.04)


def _face(person: Person, plan: FacePlan, frame: Frame) -> Body:
    f, s = person.first, person.last
    w, h = plan.head_w, plan.head_h
    cheek = 1 + 0.22 * f.cheeks
    chin_w = 0.19 * (1 + 0.42 * s.chin_width)
    solids = {
        "skull": frame.solid((0, 0.27, -0.14), (0.78 * w, 0.84 * h, 0.90)),
        "middle": frame.solid((0, -0.12, 0.06), (0.67 * w, 0.76, 0.69)),
        "jaw": frame.solid((0, 0.5 * (plan.chin_y - 0.26), 0.10), (plan.jaw_w, 0.45 + 0.35 * (-0.86 - plan.chin_y), 0.55)),
        "chin": frame.solid((0, plan.chin_y + 0.10, 0.42), (chin_w, 0.16, 0.17)),
        "ridge": frame.solid((0, 0.21, 0.50), (0.5, 0.13, 0.235)),
        "bridge": frame.solid((0, plan.nose_y + 0.20, plan.nose_z - 0.19), (0.075 + 0.2 * (plan.nose_w - 0.12), 0.24, 0.12)),
        "tip": frame.solid((0, plan.nose_y, plan.nose_z - 0.04), (plan.nose_w * 0.95, 0.095, 0.13)),
        "lips": frame.solid((0, plan.mouth_y, 0.58), (plan.mouth_w * 0.9, 0.13 + plan.mouth_open, 0.155)),
    }
    for name, side in _sides("wing"):
        solids[name] = frame.solid((side * plan.nose_w * 0.9, plan.nose_y - 0.015, 0.72), (0.075, 0.062, 0.085))
    for name, side in _sides("cheek"):
        solids[name] = frame.solid((side * 0.39 * w, -0.19 + 0.35 * plan.smile, 0.355), (0.25 * cheek, 0.22 * cheek, 0.255 * cheek))
    for name, side in _sides("eye"):
        solids[name] = frame.solid((side * plan.eye_x, plan.eye_y, 0.545), (plan.eye_w * 1.05, 0.155, 0.165))
    if s.beard == 4:
        solids["beard"] = frame.solid((0, plan.chin_y + 0.16, 0.20), (plan.jaw_w * 0.97, 0.36, 0.52))
    elif s.beard == 3:
        solids["beard"] = frame.solid((0, plan.chin_y + 0.08, 0.42), (chin_w * 1.05, 0.22, 0.21))
    return Body("face", frame, solids, 0.055)


def _hair(person: Person, look: Look, frame: Frame) -> Body:
    f = person.first
    style = HAIR_STYLES[f.hair_style]
    covered = look.hat != "none"
    w, h = 1 + 0.12 * f.head_width, 1 + 0.08 * f.head_height
    v = 1 + 0.2 * f.hair_volume
    solids: dict[str, Solid] = {}
    thick = {"buzz": 0.022, "ponytail": 0.045, "bun": 0.045, "pigtails": 0.045, "mohawk": 0.018, "afro": 0.36, "curly": 0.12}
    if style != "bald":
        t = 1 + min(thick.get(style, 0.085), 0.07 if covered else 9) * (v if style != "buzz" else 1)
        solids["cap"] = frame.solid((0, 0.29, -0.17), (0.79 * w * t, 0.85 * h * t, 0.91 * t))

    def add(name: str, centre: tuple[float, float, float], radii: tuple[float, float, float], roll_deg: float = 0.0) -> None:
        solids[name] = frame.solid(centre, radii, turn=rotation(0, 0, roll_deg))

    if style in ("bob", "long"):
        drop = 0.74 if style == "bob" else 1.22
        for name, side in _sides("curtain"):
            add(name, (side * 0.78 * w, 0.04 - 0.5 * drop, -0.08), (0.22 * v, 0.36 + 0.5 * drop, 0.34 * v), -side * 3)
        add("back", (0, 0.1 - 0.5 * drop, -0.52), (0.78 * w, 0.45 + 0.5 * drop, 0.40))
    if style in ("ponytail", "pigtails"):
        add("back", (0, -0.12, -0.5), (0.66 * w, 0.55, 0.42))
    if style == "ponytail":
        side = 1.0 if f.parting > 0 else -1.0
        add("tie", (side * 0.42, 0.72 if not covered else 0.1, -0.78), (0.2, 0.2, 0.2))
        add("tail", (side * 0.80, 0.34 if not covered else -0.3, -0.86), (0.26 * v, 0.56, 0.26 * v), side * 26)
        add("tail_end", (side * 0.98, -0.16 if not covered else -0.8, -0.8), (0.19 * v, 0.46, 0.2 * v), side * 4)
    if style == "pigtails":
        for name, side in _sides("tail"):
            add(name, (side * 1.02 * w, -0.22, -0.2), (0.23 * v, 0.42, 0.26 * v), side * 14)
            add(name + "_tie", (side * 0.86 * w, 0.12, -0.2), (0.15, 0.13, 0.15))
    if style == "afro":
        for name, side in _sides("puff"):
            add(name, (side * 0.76 * w, 0.10, -0.28), (0.38 * v, 0.50 * v, 0.50))
        add("back", (0, -0.02, -0.62), (0.84 * w, 0.58 * v, 0.50))
    if style == "curly":
        for i in range(7):
            a = np.deg2rad(-105 + i * 35)
            if covered and abs(a) < 1.5:
                continue
            add(f"curl_{i}", (0.82 * w * np.sin(a), 0.34 + 0.78 * h * np.cos(a), -0.05), (0.27 * v, 0.26 * v, 0.34))
        for i in range(4):
            if not covered:
                add(f"front_{i}", (-0.45 + 0.3 * i, 0.86 * h, 0.42), (0.22 * v, 0.18 * v, 0.24))
        for name, side in _sides("low"):
            add(name, (side * 0.82 * w, -0.28, -0.2), (0.22 * v, 0.26, 0.3))
    if not covered:
        if style == "bun":
            add("bun", (0.0, 1.17 * h, -0.36), (0.37 * v, 0.33 * v, 0.37 * v))
            add("tie", (0.0, 0.98 * h, -0.32), (0.26, 0.12, 0.28))
        if style == "mohawk":
            for i, (y, z) in enumerate(((0.88, 0.44), (1.08, 0.12), (1.04, -0.3), (0.8, -0.66))):
                add(f"ridge_{i}", (0, y * h, z), (0.13, 0.32 * v, 0.32))
        if style == "quiff":
            side = 0.16 * np.sign(f.parting)
            add("quiff", (side, 0.94 * h, 0.50), (0.46, 0.23 * v, 0.30), -14 * np.sign(f.parting))
        if style == "short":
            add("tuft", (0.2 * np.sign(f.parting), 0.92 * h, 0.46), (0.5, 0.15 * v, 0.26), -6 * np.sign(f.parting))
    return Body("hair", frame, solids, 0.07, frozenset({"cap"}))


def _glasses(plan: FacePlan, look: Look, frame: Frame) -> Body:
    solids = {}
    y, z = plan.eye_y - 0.01, 0.80
    upright = rotation(0, 90, 0)
    for name, side in _sides("rim"):
        at = (side * max(plan.eye_x, 0.29), y, z)
        if look.glasses == "round":
            solids[name] = frame.solid(at, (0.255, 0.02, 0.255), turn=upright, kind="drum")
        else:
            solids[name] = frame.solid(at, (0.265, 0.19, 0.02), kind="cube")
    solids["nosepiece"] = frame.solid((0, y + 0.05, z), (max(plan.eye_x, 0.29) - 0.235, 0.02, 0.02), kind="cube")
    reach = max(plan.eye_x, 0.29) + 0.25
    for name, side in _sides("temple"):
        solids[name] = frame.solid(
            (side * (0.5 * (reach + 0.80 * plan.head_w)), y + 0.06, 0.36), (0.018, 0.024, 0.46), turn=rotation(-side * 14, 0, 0), kind="cube"
        )
    return Body("glasses", frame, solids, 0.004, frozenset({"rim_left", "rim_right"}))


def _hat(person: Person, look: Look, frame: Frame) -> Body:
    w, h = 1 + 0.12 * person.first.head_width, 1 + 0.08 * person.first.head_height
    dome = frame.solid((0, 0.30, -0.16), (0.90 * w, 0.96 * h, 1.02))
    solids, shells = {"dome": dome}, {"dome"}
    if look.hat == "cap":
        solids["brim"] = frame.solid((0, 0.60, 0.80), (0.60, 0.055, 0.52), turn=rotation(0, -10, 0), part=1)
    elif look.hat == "beanie":
        solids["band"] = frame.solid((0, 0.56, -0.14), (0.93 * w, 0.19, 1.03), part=1)
        solids["bobble"] = frame.solid((0, 1.34 * h, -0.16), (0.2, 0.2, 0.2), part=1)
    elif look.hat == "sun hat":
        solids["brim"] = frame.solid((0, 0.58, -0.12), (1.5, 0.06, 1.5), turn=rotation(0, -6, 0), part=1)
    else:
        solids = {"crown": frame.solid((0, 0.86, -0.14), (0.80 * w, 0.34, 0.88), kind="drum")}
        shells = {"crown"}
    return Body("hat", frame, solids, 0.02, frozenset(shells))


def key_points(plan: FacePlan, frame: Frame) -> np.ndarray:
    """Five points in camera space, InsightFace order: image-left eye, image-right eye, nose, mouth corners. 5 2."""
    corner_y = plan.mouth_y + plan.smile * 0.65
    local = [
        (-plan.eye_x, plan.eye_y, EYE_Z),
        (plan.eye_x, plan.eye_y, EYE_Z),
        (0.0, plan.nose_y, plan.nose_z + 0.08),
        (-plan.mouth_w, corner_y, CORNER_Z),
        (plan.mouth_w, corner_y, CORNER_Z),
    ]
    return frame.point(np.asarray(local))[:, :2]


def face_box(plan: FacePlan, frame: Frame) -> np.ndarray:
    """The face from brow to chin and cheek to cheek, camera units: x_min, y_min, x_max, y_max (y up)."""
    low, high = np.array([np.inf, np.inf]), np.array([-np.inf, -np.inf])
    for centre, radii in (
        ((0, -0.12, 0.06), (0.69 * plan.head_w, 0.76, 0.69)),
        ((0, 0.5 * (plan.chin_y - 0.26), 0.10), (plan.jaw_w, 0.45, 0.55)),
        ((0, plan.chin_y + 0.10, 0.42), (0.19, 0.16, 0.17)),
    ):
        solid = frame.solid(centre, radii)  # type: ignore[arg-type]
        half = np.sqrt((solid.axes[:2] ** 2).sum(1))
        low, high = np.minimum(low, solid.centre[:2] - half), np.maximum(high, solid.centre[:2] + half)
    return np.concatenate([low, high])
