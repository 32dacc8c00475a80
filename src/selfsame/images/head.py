"""Key points of a human head in any view: five points in space, turned and seen from far away."""

from __future__ import annotations

import numpy as np

# In distances between the eyes: right, down, towards the camera, from the middle of the ears' axis, about which a head turns.
# Frontal places are ArcFace's 112 px template's; depths are those of an average adult (nose 0.45 before the eyes, eyes 1.25 before the ears).
HEAD = np.array([[-0.5, 0.0, 1.25], [0.5, 0.0, 1.25], [0.0, 0.572, 1.7], [-0.415, 1.155, 1.3], [0.415, 1.155, 1.3]])
EYES = 0.17  # of the picture's side between the eyes: a face takes two fifths of the width
MIDDLE = (0.5, 0.42)  # where the eyes' middle stands when seen from the front, in shares of the picture


def turned(points: np.ndarray, yaw_deg: float, pitch_deg: float, roll_deg: float) -> np.ndarray:
    """Points n 3 (right, down, towards the camera) of a head that turns to image right by yaw, then up by pitch, then its image-right side up by roll."""
    y, p, r = np.deg2rad([yaw_deg, pitch_deg, roll_deg])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), np.sin(r), 0], [-np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return points @ (about_z @ about_x @ about_y).T


def head_kps(yaw_deg: float, pitch_deg: float, roll_deg: float, side: int = 1024) -> np.ndarray:
    """Key points 5 2 in a square picture: image-left eye, image-right eye, nose, mouth corners."""
    seen = turned(HEAD, yaw_deg, pitch_deg, roll_deg)[:, :2] * EYES
    return (seen + MIDDLE) * side - 0.5
