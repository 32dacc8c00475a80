"""Faces brought to a fixed place by their five key points."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

# ArcFace's 112 x 112 template: image-left eye, image-right eye, nose, mouth corners (x, y).
ARCFACE_112 = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], dtype=np.float64)


def template(size: int, *, share: float = 1.0, shift_y: float = 0.0) -> np.ndarray:
    """The ArcFace template in a square of `size` pixels, 5 2.

    Args:
        share: 1 is ArcFace's tight crop; smaller leaves room for hair and chin around the face.
        shift_y: moves the face down, as a share of the size.
    """
    unit = ARCFACE_112 / 112 - 0.5
    unit[:, 1] += shift_y
    return (unit * share + 0.5) * size


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation, uniform scale and translation that best take source points to target points (Umeyama 1991). 2 3.

    Raises:
        ValueError: all source points are the same.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    ms, mt = source.mean(0), target.mean(0)
    s, t = source - ms, target - mt
    spread = (s**2).sum()
    if spread < 1e-12:
        raise ValueError("the key points lie on one spot: no face can be aligned by them")
    a = (s * t).sum() / spread
    b = (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum() / spread
    linear = np.array([[a, -b], [b, a]])
    return np.concatenate([linear, (mt - linear @ ms)[:, None]], 1)


def crop_face(image: np.ndarray, kps: np.ndarray, size: int, *, share: float = 1.0, shift_y: float = 0.0, shrink: bool = True) -> np.ndarray:
    """The face in a square, upright. h w 3 uint8 and 5 2 pixels -> size size 3 uint8; outside the picture is black.

    Args:
        shrink: large faces are made smaller first, so that nothing aliases; insightface does not, and its embeddings expect that.
    """
    return _warped(image, kps, size, lambda points: similarity(points, template(size, share=share, shift_y=shift_y)), cv2.BORDER_CONSTANT, shrink)


def ffhq_matrix(kps: np.ndarray, size: int) -> np.ndarray:
    """Where FFHQ's alignment (arXiv:1812.04948, App. A) takes a picture's pixels, by five key points instead of 68. 2 3.

    The square stands upright with the face: its middle lies a tenth of the way from the eyes to the mouth, and half of its side is twice the distance
    between the eyes or 1.8 times that from eyes to mouth, whichever is more.

    Raises:
        ValueError: the key points lie on one spot.
    """
    left_eye, right_eye, _, left_mouth, right_mouth = np.asarray(kps, np.float64)
    eyes, between = (left_eye + right_eye) / 2, right_eye - left_eye
    down = (left_mouth + right_mouth) / 2 - eyes
    along = between + np.array([down[1], -down[0]])  # the way from eye to eye, and across the way to the mouth
    half, length = max(2.0 * np.hypot(*between), 1.8 * np.hypot(*down)), np.hypot(*along)
    if half < 1e-6 or length < 1e-6:
        raise ValueError("the key points lie on one spot: no face can be aligned by them")
    x, y = along / length * size / (2 * half)
    linear = np.array([[x, y], [-y, x]])
    return np.concatenate([linear, ((size - 1) / 2 - linear @ (eyes + 0.1 * down))[:, None]], 1)


def align_as_ffhq(image: np.ndarray, kps: np.ndarray, size: int) -> np.ndarray:
    """The head as FFHQ's pictures show heads. h w 3 uint8 and 5 2 pixels -> size size 3 uint8; beyond its border the picture is mirrored."""
    return _warped(image, kps, size, lambda points: ffhq_matrix(points, size), cv2.BORDER_REFLECT_101, shrink=True)


def _warped(image: np.ndarray, kps: np.ndarray, size: int, matrix_of: Callable[[np.ndarray], np.ndarray], border: int, shrink: bool) -> np.ndarray:
    matrix = matrix_of(np.asarray(kps))
    zoom = np.sqrt(np.abs(np.linalg.det(matrix[:, :2])))
    if shrink and zoom < 0.5:
        small = cv2.resize(image, None, fx=2 * zoom, fy=2 * zoom, interpolation=cv2.INTER_AREA)
        ratio = np.array([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]])
        matrix, image = matrix_of(np.asarray(kps) * ratio), small
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)
