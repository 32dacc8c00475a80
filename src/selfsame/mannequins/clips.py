"""Short clips: the same subjects a moment later, the camera or the subject having moved. True correspondence is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from selfsame.mannequins.attributes import SCENES, View
from selfsame.mannequins.people import SPLITS, split_person
from selfsame.mannequins.render import PersonIn, Scene, ThingIn
from selfsame.mannequins.scenes import draw_light
from selfsame.mannequins.things import thing_of
from selfsame.mannequins.world import WORLD_VERSION, draw_look, draw_style, draw_thing_view, draw_view


def clip(scene: Scene, num_frames: int, seed: int, *, turn_deg: float = 30.0, drift: float = 0.12) -> list[Scene]:
    """A scene and its following frames along one smooth movement.

    Args:
        scene: the first frame.
        num_frames: at least 1.
        seed: draws the movement; the same seed gives the same clip.
        turn_deg: how far a subject turns over the whole clip, at most.
        drift: how far it moves, camera units, at most.

    Raises:
        ValueError: fewer than one frame.
    """
    if num_frames < 1:
        raise ValueError(f"a clip of {num_frames} frames: give at least 1")
    rng = np.random.default_rng([0xC11B, seed])
    frames = [scene]
    moves = [(rng.uniform(-turn_deg, turn_deg), rng.uniform(-6, 6), rng.uniform(-drift, drift, 2), rng.uniform(0.94, 1.06)) for _ in scene.subjects]
    for i in range(1, num_frames):
        t = i / (num_frames - 1)
        ease = t * t * (3 - 2 * t)
        subjects = []
        for subject, (yaw, roll, shift, zoom) in zip(scene.subjects, moves, strict=True):
            v = subject.view
            view = View(
                yaw_deg=float(np.clip(v.yaw_deg + ease * yaw, -42, 42)),
                pitch_deg=v.pitch_deg,
                roll_deg=v.roll_deg + float(ease * roll),
                scale=v.scale * float(zoom**ease),
                x=v.x + float(ease * shift[0]),
                y=v.y + float(ease * shift[1]),
            )
            subjects.append(replace(subject, view=view))
        frames.append(replace(scene, subjects=tuple(subjects)))
    return frames


def clip_scene(split: str, i: int, num_frames: int) -> list[Scene]:
    """Clip `i` of a split, a function of (version, split, i): a thing, two things, or a person of that split, moving in front of one scene."""
    rng = np.random.default_rng([int(WORLD_VERSION), 0xC11F, list(SPLITS).index(split), i])
    place, style = SCENES[int(rng.integers(len(SCENES)))], draw_style(rng)
    kind = rng.random()
    if kind < 0.25:
        person = split_person(split, int(rng.integers(SPLITS[split][1])))
        subjects: tuple[PersonIn | ThingIn, ...] = (PersonIn(person, draw_look(rng), draw_view(rng)),)
    else:
        pair = kind > 0.8
        subjects = tuple(
            ThingIn(thing_of(int(rng.integers(2**31))), draw_thing_view(rng, x=(-0.45, 0.45)[j] if pair else 0.0, zoom=0.6 if pair else 1.0))
            for j in range(1 + pair)
        )
    scene = Scene(subjects, place, style, draw_light(place, rng), int(rng.integers(2**31)))
    return clip(scene, num_frames, int(rng.integers(2**31)), turn_deg=40.0, drift=0.2)
