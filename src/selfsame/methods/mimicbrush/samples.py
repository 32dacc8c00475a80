"""Two frames to a training sample: which pairs teach, how both are changed, what is hidden and what is dropped.

Pictures are h w 3 uint8 RGB squares, masks h w bool (True where to paint), depth h w of any number type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from selfsame.images.masks import cells_of

SSIM_SIDE = 128  # pictures are compared at this height and width: alikeness must not depend on the camera's resolution
RATIO = 0.75  # a SIFT match counts when the second best is so much farther away (Lowe 2004)
CORNER = 0.4  # of a side: how far a corner moves at most (official helper file)


@dataclass(frozen=True, kw_only=True)
class PairSamples:
    """How training samples are drawn. Paper: arXiv:2406.07547, Sec. 3.3 and 4.1; what it does not number is ours."""

    ssim_low: float = 0.30  # ours: frames less alike than this have little to find in each other
    ssim_high: float = 0.90  # ours: more alike teach copying
    still_share: float = 0.30  # paper: videos and stills are sampled 70 to 30
    brightness: float = 0.4  # jitter factors 1 - b to 1 + b; ours
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # of the circle
    common: float = 0.0  # how much of that jitter both looks share; 0: each has its own
    rotate_deg: float = 30.0  # ours
    resize_low: float = 0.6  # ours
    resize_high: float = 1.4
    flip: float = 0.5
    warp: float = 0.5  # projective strength is drawn from 0 to this
    mask: Literal["grid", "box"] = "grid"
    grid_low: int = 3  # paper: N x N cells, N = 3..10
    grid_high: int = 10
    match_rate: float = 0.75  # paper: cells that hold a matched point
    other_rate: float = 0.50  # paper: the others
    object_share: float = 0.0  # of clips hide a segmented thing or part whole, as stills always do; 0: the paper
    rough: int = 0  # pixels by which such a mask is larger at most, as people draw them, and then whole cells of latents; 0: exactly the thing
    box_share: float = 0.5  # of the picture's area, hidden by the box mask that the paper's ablation compares with
    drop_reference: float = 0.10  # paper
    drop_depth: float = 0.50  # paper
    mask_weight: float = 1.0  # loss weight where it paints; 1 is the usual loss over the whole picture

    def __post_init__(self) -> None:
        if not -1 <= self.ssim_low < self.ssim_high <= 1:
            raise ValueError(f"SSIM band {self.ssim_low} to {self.ssim_high}: give two rising numbers in [-1, 1]")
        if not 1 <= self.grid_low <= self.grid_high:
            raise ValueError(f"grid of {self.grid_low} to {self.grid_high} cells: give two rising numbers from 1")
        if not 0 < self.resize_low <= self.resize_high:
            raise ValueError(f"resize {self.resize_low} to {self.resize_high}: give two rising numbers above 0")
        for name in ("still_share", "box_share", "flip", "warp", "match_rate", "other_rate", "drop_reference", "drop_depth", "common", "object_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: give a share from 0 to 1")
        if self.rough < 0:
            raise ValueError(f"rough {self.rough}: give pixels from 0")


def gentle(how: PairSamples) -> PairSamples:
    """The same samples with little augmentation: the paper's ablation."""
    return replace(how, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02, rotate_deg=5, resize_low=0.9, resize_high=1.1, flip=0.0, warp=0.1)


@dataclass(frozen=True)
class Pair:
    """Two looks at the same thing; a still is its own second look."""

    first: np.ndarray  # h w 3, becomes the source
    second: np.ndarray  # h w 3, becomes the reference
    mask: np.ndarray | None = None  # h w bool, a segmented thing or part of the first that the second shows too
    depth: np.ndarray | None = None  # h w, of the first

    @property
    def is_still(self) -> bool:
        return self.second is self.first


@dataclass(frozen=True)
class PairSample:
    """A pair ready to teach."""

    source: np.ndarray  # h w 3
    reference: np.ndarray  # h w 3
    mask: np.ndarray  # h w bool
    depth: np.ndarray | None  # h w
    hides_thing: bool = False  # a thing or part as a whole, which nothing of the source shows any more


def alikeness(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two pictures of one size, in grey and small."""
    small = [cv2.resize(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), (SSIM_SIDE, SSIM_SIDE), interpolation=cv2.INTER_AREA) for x in (a, b)]
    rows = [torch.from_numpy(x)[None, None].float() for x in small]
    value = structural_similarity_index_measure(rows[0], rows[1], data_range=255.0)
    assert isinstance(value, torch.Tensor)
    return float(value)


def chosen_pairs(frames: Sequence[np.ndarray], count: int, rng: np.random.Generator, how: PairSamples) -> Iterator[tuple[int, int, float, bool]]:
    """Pairs of frames of one clip in random order: first, second, their SSIM, and whether it lies in the band. Ends after `count` that do."""
    found = 0
    every = [(i, j) for i in range(len(frames)) for j in range(len(frames)) if i != j]
    for k in rng.permutation(len(every))[: 20 * count]:
        if found == count:
            return
        i, j = every[int(k)]
        value = alikeness(frames[i], frames[j])
        inside = how.ssim_low <= value <= how.ssim_high
        found += inside
        yield i, j, value, inside


def drawn_jitter(rng: np.random.Generator) -> np.ndarray:
    """Amounts from -1 to 1: brightness, contrast, hue, saturation."""
    return rng.uniform(-1, 1, 4)


def jittered(image: np.ndarray, amounts: np.ndarray, how: PairSamples) -> np.ndarray:
    """Other brightness, contrast, hue and saturation."""
    brightness, contrast, hue, saturation = amounts * [how.brightness, how.contrast, how.hue, how.saturation]
    x = image.astype(np.float32) / 255
    x = np.clip(x * (1 + brightness), 0, 1)
    grey = float(cv2.cvtColor(x.astype(np.float32), cv2.COLOR_RGB2GRAY).mean())
    x = np.clip((x - grey) * (1 + contrast) + grey, 0, 1)
    hsv = cv2.cvtColor(x.astype(np.float32), cv2.COLOR_RGB2HSV)  # hue in degrees
    hsv[..., 0] = (hsv[..., 0] + 360 * hue) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * (1 + saturation), 0, 1)
    return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).round().clip(0, 255).astype(np.uint8)


def drawn_warp(size: int, rng: np.random.Generator, how: PairSamples) -> np.ndarray:
    """A random 3 3 homography of a square: turned, resized and mirrored around its middle, its corners pulled."""
    turn = np.vstack(
        [cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(-how.rotate_deg, how.rotate_deg), rng.uniform(how.resize_low, how.resize_high)), [0, 0, 1]]
    )
    if rng.random() < how.flip:
        turn = turn @ np.array([[-1, 0, size - 1], [0, 1, 0], [0, 0, 1.0]])
    corners = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float32)
    pull = CORNER * rng.uniform(0, how.warp) * size
    moved = corners + rng.uniform(-pull, pull, (4, 2)).astype(np.float32)
    return cv2.getPerspectiveTransform(corners, moved) @ turn


def warped(image: np.ndarray, matrix: np.ndarray, outside: int) -> np.ndarray:
    """A picture, mask or depth under a homography; `outside` fills what was not in it."""
    h, w = image.shape[:2]
    exact = image.ndim == 2  # masks and depth must not blend at edges
    flat = image.astype(np.uint8) if image.dtype == bool else image
    out = cv2.warpPerspective(
        flat, matrix, (w, h), flags=cv2.INTER_NEAREST if exact else cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(outside,) * 3
    )
    return out.astype(image.dtype)


def matches(source: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Points of the source, n 2 (x, y), that SIFT finds in the reference too."""
    sift = cv2.SIFT.create()
    (points, a), (_, b) = (sift.detectAndCompute(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), None) for x in (source, reference))  # type: ignore[call-overload]
    if a is None or b is None or len(b) < 2:
        return np.zeros((0, 2))
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(a, b, k=2)
    return np.array([points[m.queryIdx].pt for m, second in pairs if m.distance < RATIO * second.distance]).reshape(-1, 2)


def grid_mask(size: int, points: np.ndarray, rng: np.random.Generator, how: PairSamples) -> np.ndarray:
    """N x N cells, each hidden by its rate; at least one. Cells with a matched point are hidden more often."""
    count = int(rng.integers(how.grid_low, how.grid_high + 1))
    held = np.zeros((count, count), bool)
    at = np.clip((points / size * count).astype(int), 0, count - 1)
    held[at[:, 1], at[:, 0]] = True
    hidden = rng.random((count, count)) < np.where(held, how.match_rate, how.other_rate)
    if not hidden.any():
        hidden[tuple(rng.integers(0, count, 2))] = True
    cell = np.minimum(np.arange(size) * count // size, count - 1)
    return hidden[np.ix_(cell, cell)]


def box_mask(size: int, rng: np.random.Generator, how: PairSamples) -> np.ndarray:
    """One square somewhere."""
    side = min(size, max(1, round(how.box_share**0.5 * size)))
    y, x = rng.integers(0, size - side + 1, 2)
    made = np.zeros((size, size), bool)
    made[y : y + side, x : x + side] = True
    return made


def rough_mask(mask: np.ndarray, rng: np.random.Generator, how: PairSamples) -> np.ndarray:
    """A mask as users and editors give it: larger than the thing, in whole cells."""
    if not how.rough:
        return mask
    size = 2 * int(rng.integers(how.rough + 1)) + 1
    return cells_of(cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))))


def training_sample(pair: Pair, rng: np.random.Generator, how: PairSamples) -> PairSample:
    """Both looks changed, and a part of the source hidden: a still's thing, a clip's by lot, else cells of a grid (or a box)."""
    size = pair.first.shape[0]
    own, other = drawn_warp(size, rng, how), drawn_warp(size, rng, how)
    jitters = np.stack([drawn_jitter(rng), drawn_jitter(rng)])
    if how.common:
        jitters = how.common * drawn_jitter(rng) + (1 - how.common) * jitters
    source = warped(jittered(pair.first, jitters[0], how), own, 255)
    reference = warped(jittered(pair.second, jitters[1], how), other, 255)
    hides_thing = pair.mask is not None and (pair.is_still or (how.object_share > 0 and rng.random() < how.object_share))
    mask = warped(pair.mask, own, 0) if hides_thing and pair.mask is not None else np.zeros((size, size), bool)
    if mask.any():
        mask = rough_mask(mask, rng, how)
    else:
        hides_thing = False
        mask = grid_mask(size, matches(source, reference), rng, how) if how.mask == "grid" else box_mask(size, rng, how)
    return PairSample(source, reference, mask, None if pair.depth is None else warped(pair.depth, own, 0), hides_thing)
