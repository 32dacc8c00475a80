"""The miniature face parser: which part of a person covers which pixel."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.mannequins.paint import FIRST_PART, LABELS

PARSED = LABELS[:FIRST_PART]  # a person's parts; a thing's are background
STRIDE = 8


class PixelNet(nn.Module):
    """A small network with skips, at half the picture's size: b 3 h w in [-1, 1] -> b c h w; h and w multiples of 8."""

    def __init__(self, channels: int, width: int = 24) -> None:
        super().__init__()
        w = width

        def conv(c_in: int, c_out: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, dilation, dilation), nn.GroupNorm(8, c_out), nn.SiLU())

        self.at_half = nn.Sequential(conv(3, w, 2), conv(w, w))
        self.at_quarter = nn.Sequential(conv(w, 2 * w, 2), conv(2 * w, 2 * w))
        self.at_eighth = nn.Sequential(conv(2 * w, 4 * w, 2), conv(4 * w, 4 * w, 1, 2), conv(4 * w, 4 * w, 1, 4), conv(4 * w, 4 * w))
        self.up_quarter = conv(6 * w, 2 * w)
        self.up_half = conv(3 * w, w)
        self.head = nn.Conv2d(w, channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        a = self.at_half(pixels)
        b = self.at_quarter(a)
        x = self.at_eighth(b)
        x = self.up_quarter(torch.cat([F.interpolate(x, scale_factor=2.0), b], 1))
        x = self.up_half(torch.cat([F.interpolate(x, scale_factor=2.0), a], 1))
        return F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear", align_corners=False)


def each_pixel(net: nn.Module, image: np.ndarray) -> Tensor:
    """What a PixelNet says of each pixel of one picture h w 3 uint8 of any size, c h w."""
    h, w = image.shape[:2]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    pixels = F.pad(pixels, (0, -w % STRIDE, 0, -h % STRIDE), mode="replicate")
    return net(pixels.to(next(net.parameters(), pixels).device))[0, :, :h, :w]


class FaceParser(PixelNet):
    """b 3 h w -> logits b 12 h w."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(len(PARSED), width)


def person_labels(labels: Tensor) -> Tensor:
    """World labels with the parts of things as background, int64 of the same shape."""
    labels = labels.long()
    return torch.where(labels < FIRST_PART, labels, torch.zeros_like(labels))


def parser_loss(net: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy over pixels, rarer parts weighing more.

    Args:
        labels: b h w, the world's labels.
    """
    truth = person_labels(labels)
    share = torch.bincount(truth.flatten(), minlength=len(PARSED)).float() / truth.numel()
    return F.cross_entropy(net(pixels).float(), truth, weight=1 / (share + 0.02).sqrt())


@torch.no_grad()
def parse(net: nn.Module, image: np.ndarray) -> np.ndarray:
    """Part of each pixel of one picture (h w 3 uint8), h w uint8 by the numbers of `mannequins.paint`."""
    return each_pixel(net, image).argmax(0).to(torch.uint8).cpu().numpy()


def overlap(seen: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Intersection over union of each part over many pictures (n h w), NaN for parts that are nowhere."""
    scores = {}
    for k, name in enumerate(PARSED):
        a, b = seen == k, truth == k
        union = int((a | b).sum())
        scores[name] = int((a & b).sum()) / union if union else float("nan")
    return scores
