"""Face encoders of the miniature world: the one that conditions, and the judge that never does.

They differ in architecture, crop, seed and training people (`design.md`, decision 6), so that a model cannot please the judge
by pleasing its own conditioner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.images.align import crop_face


@dataclass(frozen=True)
class CropSpec:
    """How an encoder wants its face: see `images.align.template`."""

    size: int = 128
    share: float = 0.75
    shift_y: float = -0.01


# As large as faces are in the world's pictures: what tells people apart is a few pixels wide. The first layer makes cells of 4 x 4 of them.
ENCODER_CROP = CropSpec()
JUDGE_CROP = CropSpec(share=0.68, shift_y=0.01)


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.skip = nn.Identity() if c_in == c_out and stride == 1 else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class FaceEncoder(nn.Module):
    """A small residual network in the manner of ArcFace: 128 px crop in [-1, 1] -> 512 numbers, not normalised."""

    def __init__(self, width: int = 32, embedding_dim: int = 512) -> None:
        super().__init__()
        w = width
        self.body = nn.Sequential(
            nn.Conv2d(3, w, 7, 4, 3, bias=False),
            nn.BatchNorm2d(w),
            nn.PReLU(w),
            _Block(w, 2 * w, 2),
            _Block(2 * w, 3 * w, 2),
            _Block(3 * w, 3 * w, 1),
            _Block(3 * w, 4 * w, 2),
            nn.Conv2d(4 * w, 2 * w, 1, bias=False),
            nn.BatchNorm2d(2 * w),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(2 * w * 16, embedding_dim, bias=False), nn.BatchNorm1d(embedding_dim))

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(self.body(crops))


class JudgeNet(nn.Module):
    """A plain network of another kind (group norm, GELU, max pooling): 128 px crop in [-1, 1] -> 256 numbers."""

    def __init__(self, width: int = 32, embedding_dim: int = 256) -> None:
        super().__init__()
        w = width

        def stage(c_in: int, c_out: int) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, 3, 1, 1), nn.GroupNorm(8, c_out), nn.GELU(), nn.MaxPool2d(2)]

        self.body = nn.Sequential(
            nn.Conv2d(3, w, 8, 4, 2), nn.GELU(), *stage(w, 2 * w), *stage(2 * w, 4 * w), *stage(4 * w, 5 * w), nn.Conv2d(5 * w, 5 * w, 3, 1, 1), nn.GELU()
        )
        self.head = nn.Linear(5 * w * 16, embedding_dim)

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(self.body(crops).flatten(1))


class MarginLoss(nn.Module):
    """Additive-margin softmax over training identities.

    L = -log softmax(s (cos theta_y - m, cos theta_j))[y]        CosFace (arXiv:1801.09414), Eq. 4
    """

    def __init__(self, num_people: int, embedding_dim: int, scale: float = 24.0, margin: float = 0.2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_people, embedding_dim) * 0.05)
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: Tensor, people: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings b d, people b int64 -> loss, share classified right (without the margin)."""
        with torch.autocast(embeddings.device.type, enabled=False):  # half precision would round cosines before they are scaled
            cosine = F.normalize(embeddings.float()) @ F.normalize(self.weight.float()).T
        right = (cosine.argmax(1) == people).float().mean()
        target = F.one_hot(people, cosine.shape[1]).to(cosine.dtype) * self.margin
        return F.cross_entropy(self.scale * (cosine - target), people), right


def to_crops(images: list[np.ndarray], kps: list[np.ndarray], spec: CropSpec) -> Tensor:
    """Pictures (h w 3 uint8) and key points (5 2 pixels) -> crops b 3 s s in [-1, 1]."""
    crops = [crop_face(i, k, spec.size, share=spec.share, shift_y=spec.shift_y) for i, k in zip(images, kps, strict=True)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def embed(net: nn.Module, crops: Tensor, batch_size: int = 128) -> Tensor:
    """Embeddings of many crops, b d float32 on the CPU, wherever the network is."""
    net.eval()
    device = next(net.parameters(), crops).device
    return torch.cat([net(part.to(device)).float().cpu() for part in crops.split(batch_size)])


def rank1(probes: Tensor, gallery: Tensor, truth: Tensor) -> float:
    """Share of probes (n d) whose nearest gallery entry (m d, by cosine) is the true one (n int64)."""
    nearest = (F.normalize(probes) @ F.normalize(gallery).T).argmax(1)
    return float((nearest == truth).float().mean())
