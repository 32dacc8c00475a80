"""Numbers that compare a made picture with a true one, or with what it should look like. Pictures are h w 3 uint8, masks h w bool."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from selfsame.images.resize import squared

SMALLEST = 11  # pixels: SSIM's window


def box_of(mask: np.ndarray, at_least: int = 1) -> tuple[slice, slice]:
    """The bounding box of a mask, grown to a least height and width inside the picture.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("an empty mask has no bounding box")

    def span(line: Any) -> slice:
        low, high = int(np.flatnonzero(line)[0]), int(np.flatnonzero(line)[-1]) + 1
        missing = max(0, at_least - (high - low))
        low = max(0, low - missing // 2)
        high = min(len(line), max(high, low + at_least))
        return slice(max(0, min(low, high - at_least)), high)

    return span(mask.any(1)), span(mask.any(0))


def _both(a: np.ndarray, b: np.ndarray) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise ValueError(f"pictures of {a.shape[1]} x {a.shape[0]} and {b.shape[1]} x {b.shape[0]} cannot be compared")
    first, second = (torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None].float() for x in (a, b))
    return first, second


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity, 1 for equals (Wang et al. 2004)."""
    value = structural_similarity_index_measure(*_both(a, b), data_range=255.0)
    assert isinstance(value, Tensor)
    return float(value)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise ratio in dB; 100 for equals."""
    return 100.0 if np.array_equal(a, b) else float(peak_signal_noise_ratio(*_both(a, b), data_range=255.0))


def clean_crop(image: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """What a mask shows, on white, cropped to its box and padded to a square of `size` (MimicBrush, appendix A)."""
    rows, columns = box_of(mask)
    part = np.where(mask[rows, columns, None], image[rows, columns], np.uint8(255))
    square = squared(part)
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if len(square) > size else cv2.INTER_CUBIC)
