"""The new layers of InstantID (arXiv:2401.07519): Resampler and decoupled cross-attention. IdentityNet is a stock ControlNet.

Legend of shapes: b rows, k photos, m face tokens (16), n queries, c width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from selfsame.adapters.processors import CrossAttention, attend
from selfsame.values.conditioning import FaceCondition


class PerceiverAttention(nn.Module):
    """Queries attend to the photo tokens and to themselves: K, V = [norm1(x), norm2(q)]. Perceiver (arXiv:2103.03206)."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = dim_head * heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], 1)).chunk(2, -1)  # b (k + m) inner
        return self.to_out(attend(self.to_q(latents), k, v, self.heads))


def feed_forward(dim: int, mult: int) -> nn.Sequential:
    """LayerNorm, two linears without bias, exact GELU between."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim * mult, bias=False), nn.GELU(), nn.Linear(dim * mult, dim, bias=False))


class Resampler(nn.Module):
    """A face embedding becomes 16 tokens of the U-Net's context width.

    Defaults are the official SDXL sizes. All LayerNorms have eps 1e-5; the photo tokens are never updated, only the queries.
    """

    def __init__(
        self,
        dim: int = 1280,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 20,
        num_queries: int = 16,
        embedding_dim: int = 512,
        output_dim: int = 2048,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) / math.sqrt(dim))
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.layers = nn.ModuleList(nn.ModuleList([PerceiverAttention(dim, dim_head, heads), feed_forward(dim, ff_mult)]) for _ in range(depth))
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)

    def forward(self, face_embedding: Tensor) -> Tensor:
        """Raw (not normalised) embeddings b k 512 of k photos of one person -> ip_tokens b m c."""
        x = self.proj_in(face_embedding)
        q = repeat(self.latents, "1 m d -> b m d", b=len(x))
        for attention, ff in self.layers:  # type: ignore[misc]
            q = q + attention(x, q)
            q = q + ff(q)
        return self.norm_out(self.proj_out(q))


class FaceProjections(nn.Module):
    """K' and V' of one cross-attention layer: all that the Image Adapter adds there."""

    def __init__(self, hidden_size: int, context_dim: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(context_dim, hidden_size, bias=False)
        self.to_v_ip = nn.Linear(context_dim, hidden_size, bias=False)


def region_weights(region: Tensor, num_queries: int) -> Tensor:
    """A pixel mask b 1 H W becomes one weight a query, b n 1: nearest neighbour, row-major."""
    h, w = region.shape[-2:]
    ratio = math.sqrt(h * w / num_queries)
    small = F.interpolate(region, scale_factor=1 / ratio, mode="nearest")
    if small[0, 0].numel() != num_queries:  # sides that are no multiple of 32: each halving of the U-Net rounds up
        sizes = ((math.ceil(h / 2**k), math.ceil(w / 2**k)) for k in range(3, 8))
        size = next((s for s in sizes if s[0] * s[1] == num_queries), None)
        if size is None:
            raise ValueError(f"a region of {w} x {h} does not belong to {num_queries} places of a layer: give it the picture's size")
        small = F.interpolate(region, size, mode="nearest")
    return rearrange(small, "b 1 h w -> b (h w) 1")


class DecoupledCrossAttention(CrossAttention):
    """Z = Attention(Q, K, V) + ip_scale * Attention(Q, K', V')    IP-Adapter (arXiv:2308.06721), Eq. 5

    A diffusers attention processor. Two softmaxes share Q; the layer keeps its own weights and names. The request's faces
    arrive as `ip_hidden_states` with the call, none, one or several a row; without any the layer is the base model's.
    """

    def __init__(self, projections: FaceProjections, keeps: bool = False) -> None:
        super().__init__(keeps)
        self.projections = projections

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *,
        ip_hidden_states: FaceCondition | None = None,
    ) -> Tensor:
        q, z = self.attended(attn, hidden_states, encoder_hidden_states, attention_mask)
        face, p = ip_hidden_states, self.projections
        if face is not None:
            weight = face.scale.to(q).view(-1, 1, 1)
            if face.region is not None:
                weight = weight * region_weights(face.region.to(q), q.shape[1])
            k, v = self.kept("face", face.ip_tokens, lambda x: (p.to_k_ip(x), p.to_v_ip(x)))
            z = z + face.summed(weight * attend(face.told(q), k, v, attn.heads), q)
        return attn.to_out[1](attn.to_out[0](z))
