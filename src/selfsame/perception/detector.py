"""The miniature face detector: boxes and five key points from one small fully convolutional network."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 8
UNIT = 32.0  # offsets are learned in units of this many pixels
# Pictures are looked at so many pixels high or wide, as far as they have them: in those of 128 the network has learned faces of 64 to 90, hair and all.
SIZES = (128, 192, 256, 384, 512, 768, 1024)
SMALLEST = 70  # pixels of a face's longer side: faces are found down to 50, but drawn too large; what looks smaller is looked at enlarged
SURE = 0.7  # score of a face that only an enlarged look finds: there are more places to be wrong in


@dataclass(frozen=True)
class Found:
    """One face: box xyxy and key points (5 2) in pixels, score in [0, 1]."""

    box: np.ndarray
    kps: np.ndarray
    score: float


class FaceDetector(nn.Module):
    """Per cell of 8 px: a face score, box sides and key points relative to the cell's centre. b 3 h w in [-1, 1] -> b 15 h/8 w/8."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width

        def conv(c_in: int, c_out: int, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, 3, stride, dilation, dilation), nn.GroupNorm(8, c_out), nn.SiLU()]

        self.body = nn.Sequential(
            *conv(3, w, 2), *conv(w, 2 * w, 2), *conv(2 * w, 4 * w, 2),
            *conv(4 * w, 4 * w, 1, 2), *conv(4 * w, 4 * w, 1, 3), *conv(4 * w, 4 * w, 1, 2),
        )  # fmt: skip
        self.head = nn.Conv2d(4 * w, 15, 1)
        nn.init.constant_(self.head.bias[:1], -3.0)  # type: ignore[index]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.body(pixels))


def _centres(h: int, w: int, device: torch.device) -> Tensor:
    ys, xs = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return (torch.stack([xs, ys], -1).float() + 0.5) * STRIDE - 0.5  # h w 2


def targets(boxes: Tensor, kps: Tensor, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cells near a face's nose are its cells.

    Args:
        boxes: b 4 xyxy pixels; a box of NaN means no face.
        kps: b 5 2 pixels.

    Returns:
        score b h w in {0, 1}; weight b h w (0 in a ring where either answer will do); offsets b 14 h w in units.
    """
    centre = _centres(h, w, boxes.device)
    middle = kps.mean(1)  # b 2
    size = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    far = (centre[None] - middle[:, None, None]).norm(dim=-1) / size[:, None, None]
    far = torch.nan_to_num(far, nan=9.0)
    score = (far < 0.20).float()
    weight = ((far < 0.20) | (far > 0.34)).float()
    points = torch.cat([boxes.view(-1, 2, 2), kps], 1)  # b 7 2
    offsets = (points[:, None, None] - centre[None, :, :, None]) / UNIT  # b h w 7 2
    return score, weight, torch.nan_to_num(offsets.flatten(3).permute(0, 3, 1, 2))


def detector_loss(net: nn.Module, pixels: Tensor, boxes: Tensor, kps: Tensor) -> tuple[Tensor, Tensor]:
    """Focal-free logistic loss on scores, smooth L1 on offsets in face cells. Returns score loss and point loss."""
    out = net(pixels).float()
    score, weight, offsets = targets(boxes, kps, *out.shape[-2:])
    score_loss = (F.binary_cross_entropy_with_logits(out[:, 0], score, reduction="none") * weight).sum() / weight.sum()
    point = F.smooth_l1_loss(out[:, 1:], offsets, reduction="none", beta=0.05).mean(1)
    return score_loss, (point * score).sum() / score.sum().clamp_min(1)


@torch.no_grad()
def detect(net: nn.Module, image: np.ndarray, *, threshold: float = 0.5, size: int = 128) -> list[Found]:
    """Faces of one picture, largest first.

    Args:
        image: h w 3 uint8, any size; it is shrunk or enlarged so that its shorter side is `size` pixels.
        threshold: lowest score kept.
    """
    h, w = image.shape[:2]
    zoom = size / min(h, w)
    if max(h, w) * zoom > 8 * size:
        zoom = 8 * size / max(h, w)
    hh, ww = max(STRIDE, round(h * zoom)), max(STRIDE, round(w * zoom))
    small = image if (hh, ww) == (h, w) else cv2.resize(image, (ww, hh), interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 127.5 - 1
    pixels = F.pad(pixels, (0, -ww % STRIDE, 0, -hh % STRIDE), value=0.0)
    out = net(pixels.to(next(net.parameters(), pixels).device))[0].float().cpu()
    score = out[0].sigmoid()
    peak = (score >= threshold) & (score >= F.max_pool2d(score[None, None], 3, 1, 1)[0, 0])
    centre = _centres(*score.shape, device=score.device)
    found: list[Found] = []
    for y, x in sorted(peak.nonzero().tolist(), key=lambda p: -float(score[p[0], p[1]])):
        points = ((out[1:, y, x].view(7, 2) * UNIT + centre[y, x] + 0.5) / zoom - 0.5).numpy()
        box = points[:2].reshape(4)
        if all(_overlap(box, f.box) < 0.35 for f in found):
            found.append(Found(box, points[2:], float(score[y, x])))
    return sorted(found, key=_area, reverse=True)


def faces_of(net: nn.Module, image: np.ndarray) -> list[Found]:
    """Faces of one picture of any size, small ones beside large ones, largest first.

    Args:
        image: h w 3 uint8.
    """
    shorter = min(image.shape[:2])
    sizes = [size for size in SIZES if size <= shorter] or [SIZES[0]]
    found: list[Found] = []
    for size in sizes:  # from whole faces to details, among which parts of large faces may look like faces again
        for face in detect(net, image, size=size, threshold=0.5 if size == sizes[0] else SURE):
            x, y = face.kps.mean(0)
            is_clear = size == sizes[-1] or float((face.box[2:] - face.box[:2]).max()) * size / shorter >= SMALLEST
            if is_clear and all(_overlap(face.box, f.box) < 0.35 and not (f.box[0] <= x <= f.box[2] and f.box[1] <= y <= f.box[3]) for f in found):
                found.append(face)
    return sorted(found, key=_area, reverse=True)


def _area(face: Found) -> float:
    return float((face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return float(w * h / (area - w * h))
