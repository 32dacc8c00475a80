"""One photo to many training samples: fixed crop for the face encoder, augmented picture and masks, captions.

Sizes follow the official code at 512 px and scale with the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor

CROP_BOX = (64 / 512, 70 / 512, 440 / 512, 446 / 512)  # left, top, right, bottom of the face encoder's crop
CELEBA_FACE = (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13)  # CelebAMask-HQ: skin, brows, eyes, glasses, ears, nose, mouth, lips
CELEBA_HAIR = (17,)
ADJECTIVES = (
    "a", "a clean", "a dirty", "my", "the cool", "the", "one", "the clean", "a nice", "the nice", "the small", "the weird", "the large", "a cool", "a small",
)  # fmt: skip
OTHERS = (
    "a rendering of a", "a cropped photo of the", "the photo of a", "a dark photo of the", "a close-up photo of a", "a bright photo of the",
    "a cropped photo of a", "a good photo of the", "a close-up photo of the", "a rendition of the", "a rendition of a", "a good photo of a",
)  # fmt: skip
CAPTIONS = tuple(
    f"{start} {{}}" for medium in ("a photo of", "an illustration of", "a depiction of") for start in (*(f"{medium} {a}" for a in ADJECTIVES), *OTHERS)
)


@dataclass(frozen=True, kw_only=True)
class PhotoSamples:
    """How the photo is varied; the defaults are the official code's."""

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.01  # of the whole circle
    flip_share: float = 0.5
    crop_margin: float = 0.25  # of the side, taken off by the random crop
    smallest: float = 0.5  # of the side, when shrunk and pasted
    aspect: float = 0.1  # width over height when shrunk, 1 plus or minus this
    hair_peak: Literal[1, 255] = 255  # the code's hair mask holds 255, which dilates it; 1 is the obvious intent
    canvas: float = -1.0  # around the pasted picture: black

    def __post_init__(self) -> None:
        for name in ("flip_share", "crop_margin", "smallest"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: choose from [0, 1]")


@dataclass(frozen=True)
class Draws:
    """The random choices of one sample; pixels of the square picture."""

    is_flipped: bool
    left: int
    top: int
    height: int  # after shrinking
    width: int
    y: int  # where it is pasted
    x: int

    @classmethod
    def of(cls, rng: np.random.Generator, size: int, how: PhotoSamples) -> Draws:
        margin = int(size * how.crop_margin)
        flipped = bool(rng.random() < how.flip_share)
        left, top = (int(v) for v in rng.integers(0, margin + 1, 2))
        height = min(int(size * rng.uniform(how.smallest, 1.0)), size)
        width = min(int(height * rng.uniform(1 - how.aspect, 1 + how.aspect)), size)
        y, x = (int(rng.integers(room)) if room else 0 for room in (size - height, size - width))
        return cls(flipped, left, top, height, width, y, x)


def square(photo: np.ndarray, size: int) -> np.ndarray:
    """h w 3 uint8 -> size size 3 uint8, bicubic."""
    return np.asarray(Image.fromarray(photo).resize((size, size), Image.Resampling.BICUBIC))


def framed(image: np.ndarray, box: np.ndarray, side: int = 128) -> np.ndarray:
    """The face (box x0 y0 x1 y1, pixels) with its surroundings in a square inside the picture. h w 3 uint8 -> side side 3 uint8."""
    h, w = image.shape[:2]
    x0, y0, x1, y1 = box
    edge = int(min(h, w, max(x1 - x0, y1 - y0) / 0.62))
    x = int(np.clip(round((x0 + x1 - edge) / 2), 0, w - edge))
    y = int(np.clip(round((y0 + y1 - edge) / 2), 0, h - edge))
    return square(image[y : y + edge, x : x + edge], side)


def encoder_pixels(photo: np.ndarray, size: int = 224) -> Tensor:
    """What the face encoder sees of a square photo (h w 3 uint8): the fixed crop, 3 size size in [-1, 1], bilinear."""
    side = len(photo)
    left, top, right, bottom = (round(share * side) for share in CROP_BOX)
    small = Image.fromarray(photo).crop((left, top, right, bottom)).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 127.5 - 1


def jittered(photo: np.ndarray, how: PhotoSamples, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed a little, in random order. h w 3 uint8."""
    image = Image.fromarray(photo)
    enhance = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}
    for name in rng.permutation([*enhance, "hue"]):
        reach = getattr(how, name)
        if not reach:
            continue
        if name == "hue":
            hsv = np.array(image.convert("HSV"))
            hsv[..., 0] += np.uint8(round(rng.uniform(-reach, reach) * 255) % 256)
            image = Image.fromarray(hsv, "HSV").convert("RGB")
        else:
            image = enhance[name](image).enhance(rng.uniform(1 - reach, 1 + reach))
    return np.asarray(image)


def masks_of(labels: np.ndarray, face: tuple[int, ...] = CELEBA_FACE, hair: tuple[int, ...] = CELEBA_HAIR, hair_peak: int = 255) -> Tensor:
    """A map of part labels h w -> face mask (0, 1) and hair mask (0, `hair_peak`), 2 h w float32."""
    return torch.from_numpy(np.stack([np.isin(labels, face) * np.float32(1), np.isin(labels, hair) * np.float32(hair_peak)]))


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x[None], (height, width), mode="bicubic", align_corners=True)[0]


def augmented(pixels: Tensor, masks: Tensor, draws: Draws, how: PhotoSamples) -> tuple[Tensor, Tensor]:
    """Flip, crop and resize back, shrink and paste: the picture and its masks alike.

    Args:
        pixels: 3 s s in [-1, 1]; bicubic overshoots it a little, as in the official code.
        masks: 2 s s, face and hair.

    Returns:
        pixels 3 s s, masks 2 s/8 s/8 of zeros and ones.
    """
    size = pixels.shape[-1]
    both = torch.cat([pixels, masks])
    if draws.is_flipped:
        both = both.flip(-1)
    crop = size - int(size * how.crop_margin)
    both = _resized(both[:, draws.top : draws.top + crop, draws.left : draws.left + crop], size, size)
    small = _resized(both, draws.height, draws.width)
    canvas = torch.cat([torch.full_like(pixels, how.canvas), torch.zeros_like(masks)])
    canvas[:, draws.y : draws.y + draws.height, draws.x : draws.x + draws.width] = small
    return canvas[:3], (_resized(canvas[3:], size // 8, size // 8) >= 0.5).float()
