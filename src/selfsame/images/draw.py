"""Key points as the picture that IdentityNet sees."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

KPS_COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
LIMBS = (0, 1, 3, 4)  # each joined to the nose, point 2
DIM = 0.6  # brightness of the limbs
# Lines through dense points: from, to before, whether closed, colour.
LINES = (
    (0, 17, False, (110, 110, 110)), (17, 22, False, (255, 128, 0)), (22, 27, False, (128, 255, 0)), (27, 31, False, (0, 0, 255)),
    (31, 36, False, (0, 128, 255)), (36, 42, True, (255, 0, 0)), (42, 48, True, (0, 255, 0)), (48, 60, True, (255, 0, 255)), (60, 68, True, (255, 255, 0)),
)  # fmt: skip


def draw_kps(height: int, width: int, kps: np.ndarray, *, radius: int = 10, stick: int = 4) -> np.ndarray:
    """InstantID's drawing: dim limbs from each point to the nose, bright discs over them.

    Args:
        kps: 5 2 (x, y) pixels; points off the canvas are clipped.
        radius, stick: disc radius and half thickness of limbs in pixels; the defaults are the official ones.

    Returns:
        h w 3 uint8, RGB.
    """
    canvas = np.zeros((height, width, 3), np.uint8)
    kps = np.asarray(kps)
    for i in LIMBS:
        x, y = kps[[2, i], 0], kps[[2, i], 1]
        dx, dy = x[1] - x[0], y[1] - y[0]
        length = (dx**2 + dy**2) ** 0.5
        angle = np.degrees(np.arctan2(dy, dx))
        outline = cv2.ellipse2Poly((int(np.mean(x)), int(np.mean(y))), (int(length / 2), stick), int(angle), 0, 360, 1)
        cv2.fillConvexPoly(canvas, np.asarray(outline), [int(c * DIM) for c in KPS_COLOURS[i]])
    for colour, (x, y) in zip(KPS_COLOURS, kps, strict=True):
        cv2.circle(canvas, (int(x), int(y)), radius, colour, -1)
    return canvas


def draw_landmarks(height: int, width: int, points: np.ndarray, *, stick: int = 4) -> np.ndarray:
    """Sixty-eight points as the lines that they follow, a colour for each part of the face.

    Args:
        points: 68 2 (x, y) pixels in iBUG's order; what lies off the canvas is clipped.
        stick: half thickness of the lines in pixels.

    Returns:
        h w 3 uint8, RGB.

    Raises:
        ValueError: other points than 68.
    """
    if np.shape(points) != (LINES[-1][1], 2):
        raise ValueError(f"points of shape {np.shape(points)}: give 5 2 key points or 68 2 landmarks")
    canvas = np.zeros((height, width, 3), np.uint8)
    for first, end, is_closed, colour in LINES:
        line = np.round(np.asarray(points)[first:end]).astype(np.int32)
        cv2.polylines(canvas, [line], is_closed, colour, 2 * stick, cv2.LINE_AA)
    return canvas


def draw_kps_small(height: int, width: int, kps: np.ndarray, *, zoom: int = 8) -> np.ndarray:
    """The miniature's drawing: the official one at `zoom` times the size, averaged down, so that discs stay apart at 128 px.

    Args:
        kps: 5 2 (x, y) pixels, or 68 2 for dense points.
    """
    large = (np.asarray(kps, np.float64) + 0.5) * zoom - 0.5
    size = height * zoom, width * zoom
    drawn = draw_kps(*size, large, radius=3 * zoom, stick=zoom) if len(large) == len(KPS_COLOURS) else draw_landmarks(*size, large, stick=max(1, zoom // 2))
    return cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)


def draw_faces(image: np.ndarray, faces: Sequence[tuple[np.ndarray, np.ndarray]], used: int, labels: Sequence[str] = ()) -> np.ndarray:
    """A copy of a picture with boxes xyxy, key points 5 2 and the faces' numbers; the used one in yellow, lines as thick as the picture is large.

    Args:
        labels: of each face, written below its box where the picture is broad enough.
    """
    drawn = image.copy()
    thick = max(1, round(max(image.shape[:2]) / 400))
    for i, (box, kps) in enumerate(faces):
        colour = (255, 220, 0) if i == used else (190, 190, 190)
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        cv2.rectangle(drawn, (x0, y0), (x1, y1), colour, thick)
        for (x, y), point in zip(kps, KPS_COLOURS, strict=True):
            cv2.circle(drawn, (round(float(x)), round(float(y))), thick, point, -1)
        cv2.putText(drawn, str(i), (x0 + 2 * thick, y0 + 12 * thick), cv2.FONT_HERSHEY_SIMPLEX, 0.4 * thick, colour, thick)
        if labels and (room := image.shape[1] - len(labels[i]) * 8 * thick) > 0:
            at = max(0, min(x0, room)), min(y1 + 12 * thick, image.shape[0] - 4 * thick)
            cv2.putText(drawn, labels[i], at, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * thick, colour, thick)
    return drawn


def beside(pictures: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Pictures h w 3 uint8 of one height in a row, with white between."""
    between = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (between, picture)][1:], 1)
