"""Faces brought to a fixed place by their five key points."""

from __future__ import annotations

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
    matrix = similarity(kps, template(size, share=share, shift_y=shift_y))
    zoom = np.sqrt(np.abs(np.linalg.det(matrix[:, :2])))
    if shrink and zoom < 0.5:
        small = cv2.resize(image, None, fx=2 * zoom, fy=2 * zoom, interpolation=cv2.INTER_AREA)
        ratio = np.array([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]])
        matrix = similarity(np.asarray(kps) * ratio, template(size, share=share, shift_y=shift_y))
        image = small
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
