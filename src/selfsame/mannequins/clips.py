"""Short clips: the same subjects a moment later, the camera or the subject having moved. True correspondence is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from selfsame.mannequins.attributes import View
from selfsame.mannequins.render import Scene


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
