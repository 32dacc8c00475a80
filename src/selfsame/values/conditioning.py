"""What one request brings to the networks, per row of the batch. Frozen: weights attach, requests travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class FaceCondition:
    """Face tokens for decoupled cross-attention."""

    ip_tokens: Tensor  # b m c
    scale: Tensor  # b, the Image Adapter's strength of each row
    region: Tensor | None = None  # b 1 H W in [0, 1]: where the face may act; None: everywhere


@dataclass(frozen=True)
class SpatialCondition:
    """A drawing for a ControlNet and the tokens its cross-attention sees."""

    image: Tensor  # b 3 H W in [0, 1]
    encoder_hidden_states: Tensor  # b m c
    scale: Tensor  # b, strength of each row's residuals
    region: Tensor | None = None  # b 1 H W in [0, 1]: where they act; None: everywhere


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


def _stacked_references(a: Conditioning, b: Conditioning) -> ReferenceCondition | None:
    """References are looked up by row, so rows without one may stand beside rows with one."""
    if a.reference is None and b.reference is None:
        return None
    features: dict[str, Tensor] = {}
    rows, first = [], 0
    for c in (a, b):
        r = c.reference
        if r is None:
            rows.append(torch.full((len(c.encoder_hidden_states),), -1, device=c.encoder_hidden_states.device))
            continue
        rows.append(torch.where(r.rows < 0, r.rows, r.rows + first))
        features = {path: torch.cat([features[path], value]) if path in features else value for path, value in r.features.items()}
        first += len(next(iter(r.features.values())))
    return ReferenceCondition(features, torch.cat(rows))


def stacked(a: Conditioning, b: Conditioning) -> Conditioning:
    """Rows of `a`, then rows of `b`. Classifier-free guidance stacks (without, with).

    Raises:
        ValueError: one has a condition that the other lacks; references alone may be on one side.
    """
    face = spatial = None
    if (a.face is None) != (b.face is None) or (a.spatial is None) != (b.spatial is None):
        raise ValueError("rows with and without a condition cannot share a batch")
    if a.face is not None and b.face is not None:
        face = FaceCondition(torch.cat([a.face.ip_tokens, b.face.ip_tokens]), torch.cat([a.face.scale, b.face.scale]), _cat(a.face.region, b.face.region))
    if a.spatial is not None and b.spatial is not None:
        spatial = SpatialCondition(
            torch.cat([a.spatial.image, b.spatial.image]),
            torch.cat([a.spatial.encoder_hidden_states, b.spatial.encoder_hidden_states]),
            torch.cat([a.spatial.scale, b.spatial.scale]),
            _cat(a.spatial.region, b.spatial.region),
        )
    return Conditioning(
        torch.cat([a.encoder_hidden_states, b.encoder_hidden_states]),
        _cat(a.pooled, b.pooled),
        _cat(a.time_ids, b.time_ids),
        face,
        spatial,
        _stacked_references(a, b),
        _cat(a.inpaint, b.inpaint),
    )


def without_face(c: Conditioning) -> Conditioning:
    """The same rows with neither face tokens nor drawing."""
    return replace(c, face=None, spatial=None)
