"""Attention processors put in and taken out again: diffusers' own seam, restored whatever happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from selfsame.adapters.keeping import Kept


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V with heads split and merged. b n c, b m c, b m c -> b n c."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


class CrossAttention:
    """diffusers' own attention; with `keeps`, over a context that stays the same from step to step: its keys and values are made once."""

    def __init__(self, keeps: bool = False) -> None:
        self.kept = Kept(keeps)

    def attended(self, attn: Any, hidden_states: Tensor, context: Tensor | None, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries b n c and what they gather from the context (from themselves where there is none), before the layer's last linear."""
        q = attn.to_q(hidden_states)  # b n c
        if context is None:
            context = hidden_states
            k, v = attn.to_k(context), attn.to_v(context)
        else:
            k, v = self.kept("text", context, lambda x: (attn.to_k(x), attn.to_v(x)))
        if attention_mask is None:
            return q, attend(q, k, v, attn.heads)
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(q))
        mask = rearrange(mask, "(b h) n t -> b h n t", h=attn.heads)
        q4, k4, v4 = (rearrange(x, "b n (h d) -> b h n d", h=attn.heads) for x in (q, k, v))
        return q, rearrange(F.scaled_dot_product_attention(q4, k4, v4, mask), "b h n d -> b n (h d)")

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None, temb: Tensor | None = None
    ) -> Tensor:
        return attn.to_out[1](attn.to_out[0](self.attended(attn, hidden_states, encoder_hidden_states, attention_mask)[1]))


def cross_attention_paths(unet: nn.Module) -> list[str]:
    """Paths of the cross-attention modules in the order of diffusers' `attn_processors`: down, up, mid blocks."""
    return [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]  # type: ignore[union-attr]


@contextmanager
def processors_replaced(model: nn.Module, new: Mapping[str, Any]) -> Iterator[nn.Module]:
    """Give the attention modules at these paths new processors; give the old ones back on exit, also after an error.

    Raises:
        AttributeError: there is no attention module at a path.
    """
    old = {path: model.get_submodule(path).processor for path in new}
    try:
        for path, processor in new.items():
            model.get_submodule(path).set_processor(processor)  # type: ignore[operator]
        yield model
    finally:
        for path, processor in old.items():
            model.get_submodule(path).set_processor(processor)  # type: ignore[operator]
