"""Pictures to what the networks take, and the result back into the picture: the official benchmark's geometry.

Pictures are h w 3 uint8 RGB, masks h w uint8 with 255 where to paint, until they become tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from selfsame.images.masks import soft
from selfsame.images.resize import CLIP_STATISTICS, IMAGENET_STATISTICS, normalised, squared

SIZE = 512  # pixels of the square the official networks work on
DEPTH_SIZE = 518


@dataclass(frozen=True)
class Prepared:
    """One edit, square."""

    source: np.ndarray  # s s 3 uint8
    mask: np.ndarray  # s s bool, True where to paint
    collage: np.ndarray  # s s 3 uint8, the source with the mask black
    reference: np.ndarray  # s s 3 uint8


def fitted(image: np.ndarray, size: int = SIZE) -> np.ndarray:
    """The longer side becomes `size`, the other is rounded down. Bilinear."""
    h, w = image.shape[:2]
    hh, ww = (int(h * size / w), size) if w >= h else (size, int(w * size / h))
    return cv2.resize(image, (ww, hh))


def prepared(source: np.ndarray, mask: np.ndarray, reference: np.ndarray, size: int = SIZE) -> Prepared:
    """Fit, square and blacken: white around pictures, nothing to paint around the mask."""
    around = squared(fitted(source, size), 255)
    inside = squared((fitted(mask, size) > 128).astype(np.uint8), 0) > 0
    collage = np.where(inside[..., None], np.uint8(0), around)
    return Prepared(around, inside, collage, squared(fitted(reference, size), 255))


def vae_pixels(image: np.ndarray) -> Tensor:
    """s s 3 uint8 -> 1 3 s s in [-1, 1]. A masked pixel is black, -1."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255 * 2 - 1


def latent_mask(mask: np.ndarray) -> Tensor:
    """s s bool -> 1 1 s/8 s/8: the top left pixel of each cell decides."""
    return torch.from_numpy(mask[::8, ::8].copy()).float()[None, None]


def depth_pixels(square: np.ndarray) -> Tensor:
    """The unmasked source as the official code feeds it to Depth Anything, 1 3 518 518.

    ImageNet's mean and deviation are applied on the 0 to 255 scale and the result is divided by 255, so that the mean is hardly
    removed. The checkpoint was trained with it.
    """
    x = cv2.resize(square, (DEPTH_SIZE, DEPTH_SIZE), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    mean, std = (np.array(v, np.float32) for v in IMAGENET_STATISTICS)
    x = (x - mean) / std / 255
    return torch.from_numpy(x).permute(2, 0, 1)[None]


def clip_pixels(square: np.ndarray, size: int = 224) -> Tensor:
    """A square picture as CLIP's preprocessing makes it, 1 3 size size; bicubic."""
    return normalised(square, size, *CLIP_STATISTICS)


def unsquared(result: np.ndarray, height: int, width: int) -> np.ndarray:
    """A square result back to the source's size: enlarged, and the padding cut off."""
    edge = int(SIZE * max(height / SIZE, width / SIZE))
    large = cv2.resize(result, (edge, edge))
    pad = edge - min(height, width)
    first, last = pad // 2, edge - (pad - pad // 2)
    return large[first:last] if height < width else large[:, first:last]


def pasted(result: np.ndarray, source: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The result inside the softened mask, the source outside. h w 3, float64 in 0..255."""
    alpha = soft(mask)[..., None]
    return result * alpha + source * (1 - alpha)
