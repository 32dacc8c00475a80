"""Raw items to InstantID training samples: which photo lends the face, which one is painted, what is dropped, what weighs more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class InstantIDSamples:
    """How training samples are drawn.

    The paper (arXiv:2401.07519, Sec. 3) drops nothing and embeds the painted picture itself; IP-Adapter's scripts drop 5/5/5 %.
    Another photo of the person stops the adapter from copying pose and expression.
    """

    drop_face: float = 0.10  # embedding of zeros: what guidance runs as "no face"
    drop_text: float = 0.05
    drop_both: float = 0.05
    max_photos: int = 4  # photos that lend the face, 1 to this many
    joint_share: float = 0.3  # of steps with several photos that give them as K tokens rather than as their mean
    lend_pose: float = 0.0  # share of samples with somebody else's key points in the same view, where the data knows the view; 0 is the paper
    face_weight: float = 3.0  # loss weight on the face mask; 1 is the paper
    log_sigma_mean: float = 1.2  # of the noise, where timesteps are log-normal: who it is gets decided while little is to be seen
    log_sigma_std: float = 1.5

    def __post_init__(self) -> None:
        if not 0 <= self.drop_face + self.drop_text + self.drop_both <= 1:
            raise ValueError("the three drop rates must lie in [0, 1] together")
        if not 0 <= self.lend_pose <= 1:
            raise ValueError(f"lend_pose {self.lend_pose}: give a share from 0 to 1")
        if self.max_photos < 1:
            raise ValueError(f"max_photos {self.max_photos}: give at least 1")


class PhotosOf:
    """Which rows show whom; people with a single picture cannot teach, unless they may lend it for itself."""

    def __init__(self, people: np.ndarray, rows: np.ndarray, *, alone: bool = False) -> None:
        """
        Args:
            alone: somebody's only picture lends the face for itself, as the paper does with all.
        """
        self.of: dict[int, np.ndarray] = {}
        for mine in np.split(rows[np.argsort(people[rows], kind="stable")], np.unique(people[rows], return_counts=True)[1].cumsum()[:-1]):
            if len(mine) > 1 or (alone and len(mine)):
                self.of[int(people[mine[0]])] = mine
        self.rows = np.concatenate(list(self.of.values())) if self.of else rows[:0]
        sizes = np.array([len(mine) for mine in self.of.values()], np.int64)
        self._size, self._first, self._place = (np.zeros(len(people), np.int64) for _ in range(3))  # of each row's person, and where it stands in `rows`
        self._size[self.rows], self._first[self.rows] = np.repeat(sizes, sizes), np.repeat(sizes.cumsum() - sizes, sizes)
        self._place[self.rows] = np.arange(len(self.rows))

    def others(self, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` photos of the person of each row, b count: never the row itself unless it is the only one, repeated when there are too few."""
        size, first = self._size[rows, None], self._first[rows, None]
        places = np.arange(size.max())
        left_out = (places >= size) | ((places == self._place[rows, None] - first) & (size > 1))
        shuffled = np.argsort(rng.random(left_out.shape) + left_out, axis=1)  # those left out come last
        nth = np.arange(count) % (size - (size > 1))
        return self.rows[first + np.take_along_axis(shuffled, nth, 1)]


def lend_faces(embeddings: Any, photos: PhotosOf, rows: Sequence[int] | np.ndarray, how: InstantIDSamples, rng: np.random.Generator) -> Tensor:
    """Embeddings for the painted rows from other photos: b k d; k is 1 for means, the number of photos for joint steps.

    Args:
        embeddings: n d, an array or what gives tensors of rows by their numbers.
    """
    count = int(rng.integers(1, how.max_photos + 1))
    lent = torch.as_tensor(embeddings[photos.others(np.asarray(rows), count, rng)]).float()  # b k d
    return lent if rng.random() < how.joint_share else lent.mean(1, keepdim=True)


def drop(
    batch: Mapping[str, Tensor], empty_text: Tensor, how: InstantIDSamples, generator: torch.Generator, *, empty_pooled: Tensor | None = None
) -> dict[str, Tensor]:
    """Take away face, text or both of some rows: the face becomes an embedding of zeros, the text an empty prompt (for SDXL `pooled` too)."""
    draw = torch.rand(len(batch["text"]), generator=generator, device=generator.device)
    face = draw < how.drop_face
    text = (draw >= how.drop_face) & (draw < how.drop_face + how.drop_text)
    both = (draw >= how.drop_face + how.drop_text) & (draw < how.drop_face + how.drop_text + how.drop_both)
    made = {
        **batch,
        "embedding": batch["embedding"].masked_fill((face | both)[:, None, None], 0.0),
        "text": torch.where((text | both)[:, None, None], empty_text, batch["text"]),
    }
    if empty_pooled is not None:
        made["pooled"] = torch.where((text | both)[:, None], empty_pooled, batch["pooled"])
    return made


def face_weights(face: Tensor, size: tuple[int, int], weight: float) -> Tensor:
    """Masks or shares b H W (1 on the face) to loss weights on latents b 1 h w, `weight` on the face to 1 elsewhere, with mean 1."""
    cells = 1 + (weight - 1) * F.adaptive_avg_pool2d(face[:, None].float(), size)
    return cells / cells.mean((1, 2, 3), keepdim=True)
