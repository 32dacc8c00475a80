"""bf16 that pays on a CPU: products in bf16, what has slow bf16 kernels there in another form.

With AMX the products of a training step are six times faster in bf16, but PyTorch's norms and its fused attention are several times slower than in fp32, so
that autocast alone gains nothing: the miniature base trains at 29 pictures/s in fp32, at 29 under autocast, at 62 under autocast and this
(`python benchmarks/bf16.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

NORMS = (F.group_norm, F.layer_norm)


class QuickBf16(TorchFunctionMode):
    """A context in which bf16 tensors on a CPU are normalised in fp32 and attend by two products and a softmax. Models stay as they are."""

    def __torch_function__(self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        x = args[0] if args else None
        if isinstance(x, Tensor) and x.dtype == torch.bfloat16 and x.device.type == "cpu":
            if func in NORMS:
                return func(x.float(), *args[1:], **kwargs).to(x.dtype)
            if func is F.scaled_dot_product_attention and len(args) == 3 and _is_plain(kwargs):
                return plain_attention(*args)
        return func(*args, **kwargs)


def _is_plain(kwargs: Mapping[str, Any]) -> bool:
    """Neither mask nor dropout nor any other extra."""
    return all(not value for value in kwargs.values())


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, weights summed in fp32 and kept in the tensors' dtype. b h n d, b h m d, b h m d -> b h n d."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
    return torch.softmax(scores, -1).to(v.dtype) @ v
