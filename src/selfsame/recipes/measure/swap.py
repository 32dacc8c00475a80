"""Face swap as a baseline: the photo's face laid over whoever the base painted, without any network."""

from __future__ import annotations

import cv2
import numpy as np

from selfsame.images.align import similarity, template

SIDE = 256  # of the square in which both faces are upright
SHARE = 0.62  # of it lies between eyes and chin
SOFT = 9  # rounds of a small blur at the oval's edge


def oval(side: int = SIDE) -> np.ndarray:
    """Where a face is in the upright square, side side in [0, 1], soft at the edge."""
    points = template(side, share=SHARE)
    middle = (points[:2].mean(0) + points[3:].mean(0)) / 2
    reach = np.linalg.norm(points[3:].mean(0) - points[:2].mean(0))
    mask = np.zeros((side, side), np.float32)
    cv2.ellipse(mask, tuple(int(v) for v in middle), (int(0.95 * reach), int(1.25 * reach)), 0, 0, 360, 1.0, -1)
    return cv2.GaussianBlur(mask, (0, 0), SOFT)


def face_swapped(image: np.ndarray, kps: np.ndarray | None, photo: np.ndarray, photo_kps: np.ndarray) -> np.ndarray:
    """A picture whose face is the photo's, its colours moved to those that were there; as it is when it shows none.

    Args:
        image, photo: h w 3 uint8; kps, photo_kps: 5 2 pixels.
    """
    if kps is None:
        return image
    h, w = image.shape[:2]
    upright = template(SIDE, share=SHARE)
    face = cv2.warpAffine(photo, similarity(photo_kps, upright), (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    back = similarity(upright, kps)
    weight = cv2.warpAffine(oval(), back, (w, h), flags=cv2.INTER_AREA)[..., None]
    laid = cv2.warpAffine(face, back, (w, h), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    inside = weight[..., 0] > 0.5
    if inside.any():
        laid += image[inside].mean(0) - laid[inside].mean(0)
    return np.clip(image * (1 - weight) + laid * weight, 0, 255).round().astype(np.uint8)
