"""Masks: read from any picture a user may have drawn, a window around them, a soft way back into the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from selfsame.images.files import InputError, read_image

HALF = 128
NEARLY_ALL = 0.9  # of the picture: more was probably drawn the other way round


def read_mask(path: str | Path, height: int, width: int, *, to_paint: bool = True) -> tuple[np.ndarray, tuple[str, ...]]:
    """A mask file as h w uint8, 0 or 255 (255: meant), and warnings. A layer with transparency is read by its alpha, else white is meant.

    Args:
        to_paint: what is marked is painted anew, so something must stay; False: it is only looked at, and may be everything.

    Raises:
        InputError: unreadable, of another size than its picture, empty or (to paint) full.
    """
    path = Path(path)
    grey = read_image(path).max(2)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if "A" in upright.getbands() or "transparency" in upright.info:
            alpha = np.asarray(upright.convert("RGBA").getchannel("A"))
            if alpha.min() != alpha.max() or alpha.max() < HALF:  # an empty layer marks nothing
                grey = alpha
    if grey.shape != (height, width):
        raise InputError(f"{path}: the mask is {grey.shape[1]} x {grey.shape[0]}, its picture {width} x {height}; make them of one size")
    mask = np.where(grey >= HALF, np.uint8(255), np.uint8(0))
    share = float((mask > 0).mean())
    if share == 0:
        raise InputError(f"{path}: the mask is empty; draw the region in white (or as the opaque part of a layer)")
    if to_paint and share == 1:
        raise InputError(f"{path}: the mask covers the whole picture; leave black what shall stay")
    inverted = to_paint and share > NEARLY_ALL
    return mask, (f"{path}: the mask covers {share:.0%} of the picture; white is painted anew, black stays: is it inverted?",) if inverted else ()


@dataclass(frozen=True)
class Window:
    """A square of a picture, which may reach beyond its border."""

    y: int
    x: int
    side: int

    def points(self, points: np.ndarray, side: int) -> np.ndarray:
        """Points n 2 of the picture, in pixels x y, as they lie in the square at another size."""
        return (points.astype(np.float64) + 0.5 - [self.x, self.y]) * (side / self.side) - 0.5

    def crop(self, image: np.ndarray, around: int) -> np.ndarray:
        """Its pixels, side side ...; `around` fills what lies beyond the border."""
        h, w = image.shape[:2]
        out = np.full((self.side, self.side, *image.shape[2:]), around, image.dtype)
        ys, xs = max(0, self.y), max(0, self.x)
        ye, xe = min(h, self.y + self.side), min(w, self.x + self.side)
        out[ys - self.y : ye - self.y, xs - self.x : xe - self.x] = image[ys:ye, xs:xe]
        return out

    def put(self, image: np.ndarray, part: np.ndarray) -> np.ndarray:
        """A copy of the picture with this square replaced where it lies inside."""
        h, w = image.shape[:2]
        out = image.copy()
        ys, xs = max(0, self.y), max(0, self.x)
        ye, xe = min(h, self.y + self.side), min(w, self.x + self.side)
        out[ys:ye, xs:xe] = part[ys - self.y : ye - self.y, xs - self.x : xe - self.x]
        return out


def window_around(mask: np.ndarray, context: float, at_least: int = 1) -> Window:
    """The square around what a mask h w marks, `context` times as large but not larger than the picture's longer side, moved inside as far as that goes.

    Args:
        at_least: pixels of its side where the picture has them: enlarging a few pixels shows nothing.
    """
    h, w = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    (y0, y1), (x0, x1) = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
    side = int(min(max(h, w), round(context * max(y1 - y0, x1 - x0))))
    side = max(side, y1 - y0, x1 - x0, min(at_least, max(h, w)))

    def start(low: int, high: int, size: int) -> int:
        at = round((low + high - side) / 2)
        return (size - side) // 2 if side > size else min(max(at, 0), size - side)

    return Window(start(y0, y1, h), start(x0, x1, w), side)


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """A square h h ... at another size."""
    if image.shape[0] == side:
        return image
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if side < image.shape[0] else cv2.INTER_CUBIC)


def soft(mask: np.ndarray, rounds: int = 10) -> np.ndarray:
    """A mask h w 0..255 with soft edges: blurred so many times by a 3 x 3 Gaussian, in whole grey levels. 0..1 float64."""
    for _ in range(rounds):
        mask = cv2.GaussianBlur(mask, (3, 3), 0)
    return mask / 255


def cells_of(mask: np.ndarray, cell: int = 8) -> np.ndarray:
    """A mask s s grown to whole cells: a cell that holds any of it is marked. Thin lines stay."""
    side = mask.shape[0]
    held = (mask > 0).reshape(side // cell, cell, side // cell, cell).any((1, 3))
    return np.repeat(np.repeat(held, cell, 0), cell, 1)


def ellipse(shape: tuple[int, ...], box: Sequence[float] | np.ndarray, margin: float = 0.0) -> np.ndarray:
    """h w uint8, 255 in the upright ellipse that fills a box (left, top, right, bottom) grown by a share of its size on every side."""
    x0, y0, x1, y1 = (float(v) for v in box)
    rx, ry = (max(1.0, (0.5 + margin) * (b - a)) for a, b in ((x0, x1), (y0, y1)))
    y, x = np.ogrid[: shape[0], : shape[1]]
    return ((((x - (x0 + x1) / 2) / rx) ** 2 + ((y - (y0 + y1) / 2) / ry) ** 2 <= 1) * 255).astype(np.uint8)


def laid_over(result: np.ndarray, source: np.ndarray, mask: np.ndarray, rounds: int) -> np.ndarray:
    """The result inside a softened mask, h w 3 uint8; where the soft mask is 0 the source's pixels, bit for bit. Works in the mask's surroundings only."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return source.copy()
    reach = rounds + 1
    part = slice(max(0, rows[0] - reach), rows[-1] + reach + 1), slice(max(0, columns[0] - reach), columns[-1] + reach + 1)
    alpha = soft(mask[part], rounds)[..., None]
    mixed = (result[part] * alpha + source[part] * (1 - alpha)).round().clip(0, 255).astype(np.uint8)
    out = source.copy()
    out[part] = np.where(alpha > 0, mixed, source[part])
    return out


def colours_matched(result: np.ndarray, source: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The result with its mean and deviation a channel moved to the source's, both taken where `keep` h w bool: what was not painted must look alike."""
    if keep.sum() < 16:
        return result
    x = result.astype(np.float64)
    a, b = x[keep], source[keep].astype(np.float64)
    gain = np.clip(b.std(0) / np.maximum(a.std(0), 1e-3), 0.5, 2.0)
    return ((x - a.mean(0)) * gain + b.mean(0)).round().clip(0, 255).astype(np.uint8)
