"""bf16 that pays on a CPU: products in bf16, what has slow bf16 kernels there in fp32.

With AMX or AVX512's bf16 the products of a training step are far faster in bf16, but PyTorch's norms and its fused attention are several times slower in it
than in fp32, so that autocast alone gains little or nothing (`python benchmarks/bf16.py` compares the three in one run).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SLOW = (F.group_norm, F.layer_norm, F.scaled_dot_product_attention)


class QuickBf16(TorchFunctionMode):
    """A context in which norms and attention of bf16 tensors on a CPU are computed in fp32 and rounded. Models stay as they are."""

    def __torch_function__(self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else next(iter(kwargs.values()), None)
        if func in SLOW and isinstance(first, Tensor) and first.dtype == torch.bfloat16 and first.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):  # which would round attention's inputs again
                return func(*map(_whole, args), **{k: _whole(v) for k, v in kwargs.items()}).to(torch.bfloat16)
        return func(*args, **kwargs)


def _whole(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
