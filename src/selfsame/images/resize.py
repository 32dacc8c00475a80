"""Pictures of other sizes: the official InstantID rule, quirks included, and filling a frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of the pictures that extractors were trained on
CLIP_STATISTICS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def squared(image: np.ndarray, value: int = 255) -> np.ndarray:
    """A square around the picture, which lies in the middle; the odd pixel goes right or below."""
    h, w = image.shape[:2]
    size = max(h, w)
    canvas = np.full((size, size, *image.shape[2:]), value, np.uint8)
    y, x = (size - h) // 2, (size - w) // 2
    canvas[y : y + h, x : x + w] = image
    return canvas


def normalised(square: np.ndarray, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A square picture (s s 3 uint8) as CLIP's and DINO's preprocessing makes it, 1 3 size size: bicubic, less the mean, over the deviation."""
    small = np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))
    x = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
    centre, spread = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    return (x - centre) / spread


def _sizes(width: int, height: int, max_side: int, min_side: int, multiple: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two sizes (w, h) that the official helper passes through."""
    ratio = min_side / min(width, height)
    w, h = round(ratio * width), round(ratio * height)
    ratio = max_side / max(w, h)
    first = round(ratio * w), round(ratio * h)
    return first, (first[0] // multiple * multiple, first[1] // multiple * multiple)


def official_size(width: int, height: int, *, max_side: int = 1280, min_side: int = 1024, multiple: int = 64) -> tuple[int, int]:
    """Final (width, height): the long side ends at max_side, both are floored to a multiple."""
    return _sizes(width, height, max_side, min_side, multiple)[1]


def resize_official(image: np.ndarray, *, max_side: int = 1280, min_side: int = 1024, multiple: int = 64, pad: bool = False) -> np.ndarray:
    """Two bilinear resizes one after the other, then optionally a white square of max_side around the middle. h w 3 uint8."""
    h, w = image.shape[:2]
    first, final = _sizes(w, h, max_side, min_side, multiple)
    small = np.asarray(Image.fromarray(image).resize(first, Image.Resampling.BILINEAR).resize(final, Image.Resampling.BILINEAR))
    if not pad:
        return small
    canvas = np.full((max_side, max_side, 3), 255, np.uint8)
    top, left = (max_side - final[1]) // 2, (max_side - final[0]) // 2
    canvas[top : top + final[1], left : left + final[0]] = small
    return canvas


def resize_to_fill(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture scaled to fill a frame; what is too much on two sides is cut off evenly. h w 3 uint8."""
    return np.asarray(ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS))
