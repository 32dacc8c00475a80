"""What one request brings to the networks, per row of the batch. Frozen: weights attach, requests travel.

b: rows of the batch. m: faces, which may be fewer than the rows or more: a row shows none, one or several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class FaceCondition:
    """Face tokens for decoupled cross-attention."""

    ip_tokens: Tensor  # m n c
    scale: Tensor  # m, the Image Adapter's strength of each face
    region: Tensor | None = None  # m 1 H W in [0, 1]: where the face may act; None: everywhere
    rows: Tensor | None = None  # m int64: the row of the batch that each face stands in; None: face i in row i

    def told(self, hidden: Tensor) -> Tensor:
        """Of what each row says (b ...), what is said for each face (m ...)."""
        return hidden if self.rows is None else hidden[self.rows]

    def summed(self, shares: Tensor, like: Tensor) -> Tensor:
        """Shares of the faces (m ...) added up in their rows (b ...)."""
        return shares if self.rows is None else torch.zeros_like(like).index_add(0, self.rows, shares.to(like.dtype))


@dataclass(frozen=True)
class SpatialCondition:
    """Drawings for a ControlNet and the tokens that its cross-attention sees."""

    image: Tensor  # m 3 H W in [0, 1]
    encoder_hidden_states: Tensor  # m n c
    scale: Tensor  # m, strength of each one's residuals
    region: Tensor | None = None  # m 1 H W in [0, 1]: where they act; None: everywhere
    rows: Tensor | None = None  # m int64: the row of the batch that each drawing is for; None: drawing i for row i


Placed = TypeVar("Placed", FaceCondition, SpatialCondition)


@dataclass(frozen=True)
class ReferenceCondition:
    """What a reference net saw, for attention to borrow from."""

    features: Mapping[str, Tensor]  # by path of the transformer block, m n c: m references
    rows: Tensor  # b int64: which of the m references a row borrows from, -1: none


@dataclass(frozen=True)
class Conditioning:
    """Everything a row of the batch is denoised under."""

    encoder_hidden_states: Tensor  # b t c, text
    pooled: Tensor | None = None  # b p, SDXL
    time_ids: Tensor | None = None  # b 6, SDXL
    face: FaceCondition | None = None
    spatial: SpatialCondition | None = None
    reference: ReferenceCondition | None = None
    inpaint: Tensor | None = None  # b k h w, channels that follow the noisy latents into the network

    def __len__(self) -> int:
        """Rows."""
        return len(self.encoder_hidden_states)

    @property
    def added(self) -> dict[str, Tensor] | None:
        """SDXL's extra conditions in diffusers' form."""
        if self.pooled is None or self.time_ids is None:
            return None
        return {"text_embeds": self.pooled, "time_ids": self.time_ids}


def _cat(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        if a is not b:
            raise ValueError("rows with and without a condition cannot share a batch")
        return None
    return torch.cat([a, b])


def _rows_of(x: FaceCondition | SpatialCondition) -> Tensor:
    return torch.arange(len(x.scale), device=x.scale.device) if x.rows is None else x.rows


def _regions(a: Placed, b: Placed) -> Tensor | None:
    """Regions of both; where only one has them, the other's act everywhere."""
    known = a.region if a.region is not None else b.region
    if known is None:
        return None
    return torch.cat([known.new_ones(len(x.scale), *known.shape[1:]) if x.region is None else x.region for x in (a, b)])


def _stacked_faces(a: Placed | None, b: Placed | None, first: int) -> Placed | None:
    """Faces or drawings of both; those of `b` stand `first` rows farther down."""
    if a is None or b is None:
        only = b if a is None else a
        return None if only is None else replace(only, rows=_rows_of(only) + (first if a is None else 0))
    rows = None if a.rows is None and b.rows is None else torch.cat([_rows_of(a), _rows_of(b) + first])
    values = {f.name: torch.cat([getattr(a, f.name), getattr(b, f.name)]) for f in fields(a) if f.name not in ("region", "rows")}
    return replace(a, **values, region=_regions(a, b), rows=rows)


def _stacked_references(a: Conditioning, b: Conditioning) -> ReferenceCondition | None:
    """References are looked up by row, so rows without one may stand beside rows with one."""
    if a.reference is None and b.reference is None:
        return None
    features: dict[str, Tensor] = {}
    rows, first = [], 0
    for c in (a, b):
        r = c.reference
        if r is None:
            rows.append(torch.full((len(c),), -1, device=c.encoder_hidden_states.device))
            continue
        rows.append(torch.where(r.rows < 0, r.rows, r.rows + first))
        features = {path: torch.cat([features[path], value]) if path in features else value for path, value in r.features.items()}
        first += len(next(iter(r.features.values())))
    return ReferenceCondition(features, torch.cat(rows))


def stacked(a: Conditioning, b: Conditioning) -> Conditioning:
    """Rows of `a`, then rows of `b`, whoever stands in them. Classifier-free guidance stacks (without, with).

    Raises:
        ValueError: one has SDXL's extra conditions or inpainting channels and the other has not.
    """
    return Conditioning(
        torch.cat([a.encoder_hidden_states, b.encoder_hidden_states]),
        _cat(a.pooled, b.pooled),
        _cat(a.time_ids, b.time_ids),
        _stacked_faces(a.face, b.face, len(a)),
        _stacked_faces(a.spatial, b.spatial, len(a)),
        _stacked_references(a, b),
        _cat(a.inpaint, b.inpaint),
    )
