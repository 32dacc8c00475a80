"""The world's version and its samples: which picture has which number, with all that is known of it.

Sample `i` of a split is a function of (version, split, i) alone, so a dataset is the same whoever draws it, in whatever order.
In every 16 samples of the train split 8 show seeded people, 3 show one named celebrity each, 1 is a group on a wider canvas,
4 show things. People come in passes of four pictures each, so that a shorter dataset has fewer pictures of everyone rather
than all pictures of a few.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from selfsame.mannequins.attributes import (
    CLOTHES,
    COLOUR_NAMES,
    EXPRESSIONS,
    GLASSES,
    HATS,
    SCENES,
    STYLES,
    Look,
    View,
    turn_of,
)
from selfsame.mannequins.captions import caption_group, caption_person, caption_thing
from selfsame.mannequins.people import SPLITS, FirstHalf, LastHalf, Person, celebrities, person_named, person_of, split_person
from selfsame.mannequins.render import PersonIn, Scene, ThingIn, faces_of
from selfsame.mannequins.scenes import draw_light
from selfsame.mannequins.things import thing_of

WORLD_VERSION = "2"
SIZE = 128
BLOCK = 16  # samples after which the kinds repeat
PASS = 4  # pictures of a person in a row
_SPLIT_KEYS = {name: i for i, name in enumerate(SPLITS)}


@dataclass(frozen=True)
class Sample:
    """A scene, what is said of it and who or what is in it."""

    scene: Scene
    caption: str
    attributes: dict[str, str]
    names: tuple[str | None, ...]  # of people with names, in order
    seeds: tuple[int, ...]  # identity seed of each subject; -1 - k for celebrity k
    kind: str  # person, celebrity, group, thing


def _choice(values: tuple[str, ...], rng: np.random.Generator) -> str:
    return values[int(rng.integers(len(values)))]


def draw_look(rng: np.random.Generator) -> Look:
    """Clothes, expression and gaze, drawn evenly; a fifth wear hats, a quarter glasses."""
    return Look(
        expression=_choice(EXPRESSIONS, rng),
        clothes=_choice(CLOTHES, rng),
        clothes_colour=_choice(COLOUR_NAMES, rng),
        hat=_choice(HATS[1:], rng) if rng.random() < 0.2 else "none",
        hat_colour=_choice(COLOUR_NAMES, rng),
        glasses=_choice(GLASSES[1:], rng) if rng.random() < 0.25 else "none",
        gaze_x=float(rng.uniform(-0.6, 0.6)),
        gaze_y=float(rng.uniform(-0.4, 0.4)),
        strength=float(rng.uniform(0.8, 1.0)),
    )


def draw_view(rng: np.random.Generator, *, low: float = 0.62, high: float = 0.82) -> View:
    """Pose and place of a single person: the face takes 45 to 60 % of the picture's height in width."""
    scale = float(rng.uniform(low, high))
    yaw = float(np.clip(rng.normal(0, 19), -40, 40))
    return View(
        yaw_deg=yaw,
        pitch_deg=float(rng.uniform(-10, 10)),
        roll_deg=float(np.clip(rng.normal(0, 5), -12, 12)),
        scale=scale,
        x=float(rng.uniform(-0.12, 0.12)),
        y=0.94 - 1.08 * scale + float(rng.uniform(-0.06, 0.06)),
    )


def draw_thing_view(rng: np.random.Generator, *, x: float = 0.0, zoom: float = 1.0) -> View:
    """Pose and place of a thing, seen a little from above."""
    return View(
        yaw_deg=float(rng.uniform(-40, 40)), pitch_deg=float(rng.uniform(-26, -8)), roll_deg=float(rng.uniform(-4, 4)),
        scale=zoom * float(rng.uniform(0.62, 0.86)), x=x + float(rng.uniform(-0.12, 0.12)), y=float(rng.uniform(-0.12, 0.08)),
    )  # fmt: skip


def draw_style(rng: np.random.Generator) -> str:
    """Half of all pictures are photos; the styles share the rest."""
    return "photo" if rng.random() < 0.5 else _choice(STYLES[1:], rng)


def attributes_of(look: Look, view: View, style: str, scene: str) -> dict[str, str]:
    """The words for a look; hats and glasses that are absent are `none`."""
    return {
        "style": style,
        "scene": scene,
        "expression": look.expression,
        "clothes": look.clothes,
        "clothes_colour": look.clothes_colour,
        "hat": look.hat,
        "hat_colour": look.hat_colour,
        "glasses": look.glasses,
        "turn": turn_of(view.yaw_deg),
    }


def _celebrity(k: int) -> tuple[Person, str]:
    first, last = celebrities()[k]
    return person_named(first, last), f"{first} {last}"


def sample(split: str, i: int) -> Sample:
    """Sample `i` of a split.

    Splits other than train show one seeded person each; validation and test eight pictures of a person in a row, judge four.
    """
    rng = np.random.default_rng([int(WORLD_VERSION), _SPLIT_KEYS[split], i])
    style, place, seed = draw_style(rng), _choice(SCENES, rng), int(rng.integers(2**31))
    light = draw_light(place, rng)
    slot = i % BLOCK if split == "train" else 0
    if slot < 8:
        index = {"train": 2 * (i // BLOCK) + slot // PASS, "judge": i // PASS}.get(split, i // 8)
        start, count = SPLITS[split]
        index %= count
        person, name, who, kind = split_person(split, index), None, start + index, "person"
        return _portrait(person, name, who, kind, rng, style, place, seed, light)
    if slot < 11:
        k = int(rng.integers(len(celebrities())))
        person, name = _celebrity(k)
        return _portrait(person, name, -1 - k, "celebrity", rng, style, place, seed, light)
    if slot == 11:
        return _group(rng, style, place, seed, light)
    start = int(rng.integers(2**31))
    thing = thing_of(start)
    view = draw_thing_view(rng)
    attributes = {
        "style": style, "scene": place, "kind": thing.kind, "colour": thing.colours[0], "second": thing.second, "texture": thing.texture,
    }  # fmt: skip
    scene = Scene((ThingIn(thing, view),), place, style, light, seed)
    return Sample(scene, caption_thing(attributes, rng), attributes, (), (start,), "thing")


def shows_face(i: int, photos: int) -> bool:
    """Whether sample `i` of split train is one of the first so many pictures of a seeded person in a pass, or shows a celebrity."""
    slot = i % BLOCK
    return slot % PASS < photos if slot < 8 else slot < 11


def _portrait(person, name, who, kind, rng, style, place, seed, light) -> Sample:
    look, view = draw_look(rng), draw_view(rng)
    attributes = attributes_of(look, view, style, place)
    scene = Scene((PersonIn(person, look, view),), place, style, light, seed)
    return Sample(scene, caption_person(attributes, name, rng), attributes, (name,), (who,), kind)


def _group(rng: np.random.Generator, style: str, place: str, seed: int, light) -> Sample:
    count = 2 if rng.random() < 0.6 else 3
    width = 192 if count == 2 else 256
    subjects, names, seeds = [], [], []
    half = width / SIZE
    for j in range(count):
        if rng.random() < 0.5:
            k = int(rng.integers(len(celebrities())))
            person, name = _celebrity(k)
            who = -1 - k
        else:
            who = SPLITS["train"][0] + int(rng.integers(SPLITS["train"][1]))
            person, name = person_of(who), None
        view = draw_view(rng, low=0.5, high=0.6)
        middle = half * ((2 * j + 1) / count - 1)
        view = View(view.yaw_deg, view.pitch_deg, view.roll_deg, view.scale, middle + 0.4 * view.x, view.y - 0.05)
        subjects.append(PersonIn(person, draw_look(rng), view))
        names.append(name)
        seeds.append(who)
    attributes = {"style": style, "scene": place}
    scene = Scene(tuple(subjects), place, style, light, seed, SIZE, width)
    return Sample(scene, caption_group(attributes, names, rng), attributes, tuple(names), tuple(seeds), "group")


def with_another(split: str, i: int) -> Scene:
    """The scene of the one person in sample `i` with somebody else of the split in it: the same view and expression."""
    scene = sample(split, i).scene
    subject = scene.subjects[0]
    assert isinstance(subject, PersonIn)
    other = split_person(split, int(np.random.default_rng([int(WORLD_VERSION), _SPLIT_KEYS[split], i, 1]).integers(SPLITS[split][1])))
    return replace(scene, subjects=(replace(subject, person=other),))


def lent_kps(split: str, i: int) -> np.ndarray:
    """Key points (5 2 pixels) of somebody else of the split in the view, and with the expression, of the one person in sample `i`."""
    return faces_of(with_another(split, i))[0][0]


def neutral_scene(person: Person, *, style: str = "photo") -> Scene:
    """The one picture of a person that galleries show: calm, from the front, even light, plain wall."""
    return Scene((PersonIn(person, Look(clothes_colour="white"), View(scale=0.70, y=0.17)),), "studio", style, seed=7)


CANONICAL_VIEWS = (
    View(yaw_deg=0, pitch_deg=0, roll_deg=0, scale=0.72, x=0.0, y=0.16),
    View(yaw_deg=16, pitch_deg=3, roll_deg=3, scale=0.72, x=0.03, y=0.16),
    View(yaw_deg=-16, pitch_deg=-3, roll_deg=-3, scale=0.72, x=-0.03, y=0.16),
    View(yaw_deg=27, pitch_deg=0, roll_deg=0, scale=0.70, x=0.02, y=0.18),
    View(yaw_deg=-27, pitch_deg=0, roll_deg=0, scale=0.70, x=-0.02, y=0.18),
)


def average_person() -> Person:
    """Nobody: every number at its middle."""
    first = FirstHalf(0.5, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    last = LastHalf(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    return Person(first, last)


def average_scene(view: View) -> Scene:
    """The average face in a view, calm."""
    return Scene((PersonIn(average_person(), Look(), view),))


def average_kps(view: View) -> tuple[np.ndarray, float]:
    """Key points (5 2 pixels at 128) and face width of the average face in a view."""
    kps, boxes = faces_of(average_scene(view))
    return kps[0].astype(np.float64), float(boxes[0][2] - boxes[0][0])
