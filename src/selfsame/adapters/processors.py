"""Attention processors put in and taken out again: diffusers' own seam, restored whatever happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V with heads split and merged. b n c, b m c, b m c -> b n c."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


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
