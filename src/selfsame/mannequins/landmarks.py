"""Sixty-eight points of a face, in the order of iBUG's 300-W annotations (Sagonas et al., 2016) that dense landmark detectors follow.

They say more than the five key points: how far mouth and eyes are open, how brows are raised, how wide the jaw is. InstantID leaves them out for that
(arXiv:2401.07519, Sec. 3.2); here they are what an ablation draws for IdentityNet instead.
"""

from __future__ import annotations

import numpy as np

from selfsame.mannequins.anatomy import CORNER_Z, EYE_Z, FacePlan
from selfsame.mannequins.solids import Frame

COUNT = 68


def landmarks(plan: FacePlan, frame: Frame) -> np.ndarray:
    """All points in camera space, image-left first: 68 2."""
    eyes, brows = [_eye(plan, side) for side in (-1, 1)], [_brow(plan, side) for side in (-1, 1)]
    local = np.concatenate([_jaw(plan), *brows, _nose(plan), *eyes, _mouth(plan)])
    return frame.point(local)[:, :2]


def _surface(plan: FacePlan, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Depth of the bare face at places on it."""
    return 0.06 + 0.69 * np.sqrt(np.clip(1 - (x / (0.67 * plan.head_w)) ** 2 - ((y + 0.12) / 0.9) ** 2, 0, None))


def _on(plan: FacePlan, x: np.ndarray, y: np.ndarray, above: float = 0.0) -> np.ndarray:
    return np.stack([x, y, _surface(plan, x, y) + above], 1)


def _jaw(plan: FacePlan) -> np.ndarray:
    """From ear to ear along the chin, 17."""
    down = np.sin(np.linspace(0, np.pi, 17))  # 0 at the ears, 1 at the chin
    wide = 0.70 * plan.head_w * (1 + 0.6 * (plan.jaw_w / 0.5 - 1) * down)
    x = -np.cos(np.linspace(0, np.pi, 17)) * wide
    return np.stack([x, plan.eye_y + (plan.chin_y - plan.eye_y) * down, 0.06 + 0.45 * down], 1)


def _brow(plan: FacePlan, side: int) -> np.ndarray:
    """From image-left to image-right, 5."""
    out = np.linspace(-1, 1, 5) * side  # -1 at the nose, 1 at the ear
    y = plan.brow_y + plan.brow_tilt * out * plan.brow_w + plan.brow_arch * (1 - out**2) - plan.inner_brow * out
    return _on(plan, side * (plan.eye_x + out * plan.brow_w), y, 0.05)


def _nose(plan: FacePlan) -> np.ndarray:
    """Down the bridge to the tip, 4, then below it from wing to wing, 5."""
    share = np.linspace(0, 1, 4)
    top = plan.eye_y + 0.02
    bridge = np.stack([0 * share, top + (plan.nose_y - top) * share, 0.74 + (plan.nose_z + 0.08 - 0.74) * share], 1)
    across = np.linspace(-1, 1, 5)
    wings = np.stack([across * plan.nose_w, plan.nose_y - 0.03 - 0.04 * (1 - across**2), 0.78 + (plan.nose_z - 0.78) * (1 - across**2)], 1)
    return np.concatenate([bridge, wings])


def _eye(plan: FacePlan, side: int) -> np.ndarray:
    """Clockwise in the picture, from its image-left corner along the upper lid and back along the lower, 6."""
    out = side * np.array([-1, -0.4, 0.4, 1, 0.4, -0.4])
    open_to = plan.eye_h * (1 - out**2) * np.array([0, 1, 1, 0, -0.78, -0.78])
    x, y = side * (plan.eye_x + out * plan.eye_w), plan.eye_y + plan.eye_tilt * out * plan.eye_w + open_to
    return np.stack([x, y, np.full(6, EYE_Z)], 1)


def _mouth(plan: FacePlan) -> np.ndarray:
    """Clockwise in the picture from the image-left corner: the lips' outer line, 12, and their inner, 8."""
    return np.concatenate([_lips(plan, 7, plan.lip_upper, plan.lip_lower), _lips(plan, 5, 0.0, 0.0)])


def _lips(plan: FacePlan, count: int, upper: float, lower: float) -> np.ndarray:
    """`count` points from corner to corner above, and those between the corners back below."""
    u = np.linspace(-1, 1, count)  # -1 and 1 at the corners
    line, arch = plan.mouth_y + plan.smile * (u**2 - 0.35), np.sqrt(1 - u**2)
    above, below = line + (0.55 * plan.mouth_open + upper) * arch, line - (1.15 * plan.mouth_open + lower) * arch
    x = np.concatenate([u, u[-2:0:-1]]) * plan.mouth_w
    points = _on(plan, x, np.concatenate([above, below[-2:0:-1]]), 0.05)
    points[[0, count - 1], 2] = CORNER_Z
    return points
