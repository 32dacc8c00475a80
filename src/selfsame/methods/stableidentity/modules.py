"""The new layers of StableIdentity (arXiv:2401.15975): a face feature becomes words in the space of celebrity names.

Legend of shapes: b rows, f face feature, n words (2), d width of the text tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

LANDINGS = Literal["joint", "per_word", "none"]
GAIN = 0.1  # on weight and bias of every equalised layer, in the forward pass


class EqualLinear(nn.Module):
    """y = x (0.1 W)^T + 0.1 b, with a LayerNorm before and a LeakyReLU(0.2) after when asked for."""

    def __init__(self, in_features: int, out_features: int, *, has_norm: bool = False, is_active: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * 0.02)
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.norm = nn.LayerNorm(in_features) if has_norm else None
        self.is_active = is_active

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x)
        y = F.linear(x, self.weight * GAIN, self.bias * GAIN)
        return F.leaky_relu(y, 0.2) if self.is_active else y


class Residual(nn.Module):
    """x + fn(x)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


@dataclass(frozen=True)
class CelebritySpace:
    """Where names of famous people lie in the token table: per word and dimension, because first and last names differ."""

    mean: Tensor  # n d
    std: Tensor  # n d, unbiased

    @classmethod
    def of(cls, token_table: Tensor, name_ids: Tensor) -> CelebritySpace:
        """From the rows of a token table (v d) that the names' tokens (k n) pick, without positions.

        Raises:
            ValueError: fewer than two names, which have no spread.
        """
        if len(name_ids) < 2:
            raise ValueError(f"{len(name_ids)} names: a celebrity space needs at least two whose words are one token each")
        rows = token_table.detach()[name_ids].float()  # k n d
        return cls(rows.mean(0), rows.std(0))


class WordProjection(nn.Module):
    """Face feature -> words that look to the text tower like a celebrity's name. The only trained part of StableIdentity.

        v*_i = mean_i + r_i std_i,    r = LayerNorm(net(feature))              official code
        v*_i = mean_i + std_i (v'_i - mu(v'_i)) / sigma(v'_i),   v' = net(f)   the paper's Eq. 4

    Args:
        landing: `joint` is the official code's LayerNorm over all words together, with its trained gain and bias; `per_word` the paper's
            plain numbers per word; `none` leaves net's output as it is (the ablation "no AdaIN").
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, space: CelebritySpace, feature_dim: int = 768, token_dim: int = 1024, *, num_words: int = 2, depth: int = 2, landing: LANDINGS = "joint"
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth {depth}: give at least 1")
        if landing not in get_args(LANDINGS):
            raise ValueError(f"landing {landing!r}: choose from {', '.join(get_args(LANDINGS))}")
        if space.mean.shape != (num_words, token_dim):
            raise ValueError(f"the celebrity space has {tuple(space.mean.shape)} numbers, this projection makes {num_words} words of {token_dim}")
        width = num_words * token_dim
        layers: list[nn.Module] = [EqualLinear(feature_dim, width, is_active=depth > 1)]
        layers += [Residual(EqualLinear(width, width, has_norm=True, is_active=True)) for _ in range(depth - 2)]
        layers += [EqualLinear(width, width, has_norm=True)] if depth > 1 else []
        self.net = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width) if landing == "joint" else None
        self.num_words, self.landing = num_words, landing
        self.register_buffer("mean", space.mean, persistent=False)  # belongs to the text tower, not to the projection
        self.register_buffer("std", space.std, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Face features b f (CLS after the ViT's final norm, not normalised) -> words b n d."""
        x = self.net(features)
        if self.norm is not None:
            x = self.norm(x)
        words = rearrange(x, "b (n d) -> b n d", n=self.num_words)
        if self.landing == "none":
            return words
        if self.landing == "per_word":
            words = (words - words.mean(-1, keepdim=True)) / words.std(-1, keepdim=True, unbiased=False)
        return self.mean + words * self.std
