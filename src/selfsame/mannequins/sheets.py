"""Contact sheets of the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from selfsame.mannequins.attributes import SCENES, STYLES, View
from selfsame.mannequins.people import person_of
from selfsame.mannequins.render import PersonIn, Scene, draw
from selfsame.mannequins.scenes import draw_light
from selfsame.mannequins.world import draw_look, draw_view, neutral_scene


def people_sheet(first: int, count: int, *, on_row: Callable[[], None] = lambda: None) -> np.ndarray:
    """A row a person: two views in plain light, then one picture in every style. h w 3 uint8."""
    rows = []
    for seed in range(first, first + count):
        person = person_of(seed)
        plain = neutral_scene(person)
        subject = plain.subjects[0]
        assert isinstance(subject, PersonIn)
        turned = replace(plain, subjects=(replace(subject, view=View(yaw_deg=32, scale=0.70, y=0.17)),))
        pictures = [draw([s])[0].image for s in (plain, turned)]
        for i, style in enumerate(STYLES):
            pictures.append(draw([_scene(seed, i, style)])[0].image)
        rows.append(np.concatenate(pictures, 1))
        on_row()
    return np.concatenate(rows)


def _scene(seed: int, i: int, style: str) -> Scene:
    rng = np.random.default_rng([0x5EE7, seed, i])
    place = SCENES[int(rng.integers(len(SCENES)))]
    return Scene((PersonIn(person_of(seed), draw_look(rng), draw_view(rng)),), place, style, draw_light(place, rng), seed * 31 + i)


def hundred_seeds(columns: int = 10) -> np.ndarray:
    """The fixed sheet of a hundred seeds by which the world's looks are judged: test people in every kind of picture."""
    pictures = [draw([_scene(300_000 + k, 100 + k, STYLES[0] if k % 2 else STYLES[k // 2 % len(STYLES)])])[0].image for k in range(100)]
    return np.concatenate([np.concatenate(pictures[a : a + columns], 1) for a in range(0, 100, columns)])
