"""Who a mannequin is: a seed or a name becomes some forty numbers of shape, colour and feature.

Numbers called `u` run over [-1, 1] with 0 the average. The first name owns skin, hair and the shape of the head; the last
name owns eyes, brows, nose, mouth, jaw and marks, so every pair of names is somebody.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import numpy as np

HAIR_STYLES = (
    "bald", "buzz", "short", "quiff", "bob", "long", "bun", "ponytail", "pigtails", "afro", "mohawk", "curly",
)  # fmt: skip
BEARDS = ("none", "stubble", "moustache", "goatee", "full")

# sRGB, 0..255. Skin is a ramp from light to dark, hair and eyes are choices with jitter.
SKIN_RAMP = ((255, 222, 198), (246, 202, 164), (228, 176, 132), (202, 143, 98), (160, 103, 66), (118, 73, 46), (84, 51, 34))
HAIR_COLOURS = (
    (34, 30, 34), (66, 42, 30), (112, 70, 42), (146, 62, 36), (196, 92, 40), (226, 184, 104), (240, 226, 190), (150, 150, 156), (232, 232, 234),
)  # fmt: skip
EYE_COLOURS = ((92, 56, 30), (54, 34, 24), (138, 106, 48), (74, 130, 70), (66, 120, 190), (120, 140, 156))


@dataclass(frozen=True)
class FirstHalf:
    """What a first name decides."""

    skin: float  # 0 light .. 1 dark
    undertone: float  # u, cool to warm
    hair_style: int
    hair_colour: int
    hair_shade: float  # u, darker to lighter
    hair_volume: float  # u
    hairline: float  # u, low to high
    fringe: float  # u, above 0.2 the forehead is covered
    parting: float  # u, to which side hair falls
    head_width: float  # u
    head_height: float  # u
    cheeks: float  # u
    ear_size: float  # u


@dataclass(frozen=True)
class LastHalf:
    """What a last name decides."""

    eye_size: float
    eye_open: float
    eye_spacing: float
    eye_height: float
    eye_tilt: float
    eye_colour: int
    brow_thick: float
    brow_tilt: float
    brow_arch: float
    brow_height: float
    nose_length: float
    nose_width: float
    nose_depth: float
    nose_tip: float
    mouth_width: float
    mouth_height: float
    lip_upper: float
    lip_lower: float
    lip_colour: float
    jaw_width: float
    chin_length: float
    chin_width: float
    beard: int
    freckles: float  # above 0.35 the cheeks are freckled
    mole_x: float  # a mole when |mole_x| > 0.55, on that side
    mole_y: float
    blush: float
    age: float  # lines when above 0.2


@dataclass(frozen=True)
class Person:
    """An identity of the world, independent of pose, clothes, light and picture."""

    first: FirstHalf
    last: LastHalf

    def skin_rgb(self) -> np.ndarray:
        """Base skin colour, sRGB in [0, 1]."""
        ramp = np.asarray(SKIN_RAMP, dtype=np.float64) / 255
        at = self.first.skin * (len(ramp) - 1)
        i = min(int(at), len(ramp) - 2)
        base = ramp[i] + (at - i) * (ramp[i + 1] - ramp[i])
        return np.clip(base * (1 + self.first.undertone * np.array([0.03, 0.0, -0.07])), 0, 1)

    def hair_rgb(self) -> np.ndarray:
        """Hair, beard and brow colour, sRGB in [0, 1]."""
        base = np.asarray(HAIR_COLOURS[self.first.hair_colour], dtype=np.float64) / 255
        return np.clip(base * (1 + 0.15 * self.first.hair_shade), 0, 1)

    def eye_rgb(self) -> np.ndarray:
        """Iris colour, sRGB in [0, 1]."""
        return np.asarray(EYE_COLOURS[self.last.eye_colour], dtype=np.float64) / 255

    def vector(self) -> np.ndarray:
        """All numbers in one row; choices are one-hot. Distances between rows say how alike two people are."""
        row: list[float] = []
        for half in (self.first, self.last):
            for f in fields(half):
                value = getattr(half, f.name)
                size = CHOICES.get(f.name)
                row.extend(np.eye(size)[value] if size else [value])
        return np.asarray(row)


CHOICES = {
    "hair_style": len(HAIR_STYLES),
    "hair_colour": len(HAIR_COLOURS),
    "eye_colour": len(EYE_COLOURS),
    "beard": len(BEARDS),
}


def _half(kind: type[FirstHalf] | type[LastHalf], rng: np.random.Generator) -> FirstHalf | LastHalf:
    values: dict[str, float | int] = {}
    for f in fields(kind):
        if f.name == "skin":
            values[f.name] = float(rng.uniform(0, 1))
        elif f.name == "beard":  # half of the world shaves
            values[f.name] = int(rng.choice(len(BEARDS), p=(0.56, 0.11, 0.11, 0.11, 0.11)))
        elif f.name in CHOICES:
            values[f.name] = int(rng.integers(CHOICES[f.name]))
        else:
            values[f.name] = float(rng.uniform(-1, 1))
    return kind(**values)  # type: ignore[arg-type]


# Seeds of people: disjoint ranges, so that nobody is in two splits.
SPLITS = {
    "train": (0, 20_000),
    "judge": (100_000, 12_000),
    "validation": (200_000, 2_000),
    "test": (300_000, 2_000),
}


def person_of(seed: int) -> Person:
    """The person of a seed; `SPLITS` says which seeds belong to which split."""
    rng = np.random.default_rng([0x5E1F, seed])
    first, last = _half(FirstHalf, rng), _half(LastHalf, rng)
    assert isinstance(first, FirstHalf)
    assert isinstance(last, LastHalf)
    return Person(first, last)


def split_person(split: str, index: int) -> Person:
    """The index-th person of a split.

    Raises:
        ValueError: no such split, or the index is outside it.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: choose from {', '.join(SPLITS)}")
    start, count = SPLITS[split]
    if not 0 <= index < count:
        raise ValueError(f"person {index} of split {split!r}: choose 0 to {count - 1}")
    return person_of(start + index)


FIRST_NAMES = (
    "ada",
    "ben",
    "cleo",
    "dan",
    "eva",
    "finn",
    "gina",
    "hugo",
    "iris",
    "jack",
    "kira",
    "leo",
    "mona",
    "nils",
    "olga",
    "paul",
    "quinn",
    "rosa",
    "sven",
    "tara",
    "umar",
    "vera",
    "walt",
    "xena",
    "yuri",
    "zoe",
    "amir",
    "bela",
    "cora",
    "dora",
    "emil",
    "fay",
    "gus",
    "hana",
    "igor",
    "jana",
    "kurt",
    "lena",
    "milo",
    "nora",
    "otto",
    "pia",
    "ravi",
    "sara",
    "theo",
    "uma",
    "vito",
    "wanda",
    "yara",
    "zane",
    "abel",
    "bree",
    "cass",
    "dion",
    "elsa",
    "fritz",
    "greta",
    "hank",
    "inez",
    "joss",
    "kai",
    "lars",
    "mira",
    "noel",
)
LAST_NAMES = (
    "adler",
    "baker",
    "cole",
    "drake",
    "ekman",
    "fox",
    "grant",
    "hale",
    "ives",
    "jonas",
    "knox",
    "lund",
    "marsh",
    "nash",
    "odell",
    "pike",
    "quist",
    "reed",
    "stone",
    "thorn",
    "ulman",
    "vance",
    "wells",
    "york",
    "zorn",
    "amado",
    "brook",
    "cruz",
    "dahl",
    "evans",
    "frost",
    "gomez",
    "holm",
    "iqbal",
    "jansen",
    "kovac",
    "lopez",
    "meyer",
    "nagy",
    "ortiz",
    "popov",
    "rossi",
    "silva",
    "tanaka",
    "usman",
    "varga",
    "wolff",
    "xu",
    "yilmaz",
    "zhou",
    "abbot",
    "berg",
    "costa",
    "diaz",
    "emery",
    "flynn",
    "garza",
    "hart",
    "imai",
    "juarez",
    "kwan",
    "levy",
    "mori",
    "novak",
)


@cache
def _name_halves() -> tuple[dict[str, FirstHalf], dict[str, LastHalf]]:
    """Fixed halves of all names; choices go round in order so that each is equally common."""
    firsts, lasts = {}, {}
    for i, name in enumerate(FIRST_NAMES):
        half = _half(FirstHalf, np.random.default_rng([0xF125, i]))
        values = {f.name: getattr(half, f.name) for f in fields(half)}
        values |= {"hair_style": i % len(HAIR_STYLES), "hair_colour": (i * 5 + i // 12) % len(HAIR_COLOURS), "skin": ((i * 29) % 64) / 63}
        firsts[name] = FirstHalf(**values)
    for i, name in enumerate(LAST_NAMES):
        half = _half(LastHalf, np.random.default_rng([0x1A57, i]))
        assert isinstance(half, LastHalf)
        lasts[name] = half
    return firsts, lasts


def person_named(first: str, last: str) -> Person:
    """The person of a first and a last name.

    Raises:
        ValueError: a name that the world does not know.
    """
    firsts, lasts = _name_halves()
    if first not in firsts:
        raise ValueError(f"first name {first!r} is not one of the world's {len(firsts)}")
    if last not in lasts:
        raise ValueError(f"last name {last!r} is not one of the world's {len(lasts)}")
    return Person(firsts[first], lasts[last])


NUM_CELEBRITIES = 326


@cache
def celebrities() -> tuple[tuple[str, str], ...]:
    """The 326 pairs of names that captions use in training; every name occurs in about five of them."""
    pairs = []
    for round_ in range(6):
        order = np.random.default_rng([0xCE1E, round_]).permutation(len(LAST_NAMES))
        pairs += [(first, LAST_NAMES[order[i]]) for i, first in enumerate(FIRST_NAMES)]
    return tuple(dict.fromkeys(pairs))[:NUM_CELEBRITIES]
