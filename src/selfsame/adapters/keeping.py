"""Work that is the same at every step, done once; work that hardly changes, done less often. Nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Kept:
    """Functions of a tensor that comes again unchanged, step after step: keys and values of tokens, a drawing's features.

    Of each function only the last result is kept, while no gradient is asked for. The weights behind the functions must not change meanwhile.
    """

    def __init__(self, is_on: bool = True) -> None:
        self.is_on = is_on
        self._last: dict[Hashable, tuple[Tensor, int, Any]] = {}

    def __call__(self, name: Hashable, x: Tensor, make: Callable[[Tensor], T]) -> T:
        """`make(x)`, or what it gave when the very same tensor came before."""
        if not self.is_on or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make(x)
        version = 0 if x.is_inference() else x._version
        known = self._last.get(name)
        if known is None or known[0] is not x or known[1] != version:
            known = self._last[name] = (x, version, make(x))
        return known[2]


@contextmanager
def forwards_replaced(new: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules other `forward`s; give the old ones back on exit, also after an error."""
    nothing = object()
    old = {module: module.__dict__.get("forward", nothing) for module in new}  # offloading may have put one there already
    try:
        for module, forward in new.items():
            module.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        for module, forward in old.items():
            if forward is nothing:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward  # type: ignore[assignment]


def deep_parts(unet: Any) -> list[nn.Module]:
    """Modules of a diffusers U-Net whose outputs change slowly from step to step: all but its first convolution and its last layer, DeepCache's
    outermost branch (arXiv:2312.00858, Fig. 4)."""
    *upper, last = unet.up_blocks
    parts = [*unet.down_blocks, unet.mid_block, *upper, *last.resnets[:-1], *list(getattr(last, "attentions", []))[:-1]]
    return [p for p in parts if p is not None]


class DeepReuse:
    """Deep features of a U-Net from an earlier step, while `is_fresh` is false. Approximate."""

    def __init__(self, unet: Any) -> None:
        self.unet, self.is_fresh = unet, True
        self._last: dict[nn.Module, Any] = {}

    def _forward(self, module: nn.Module) -> Callable[..., Any]:
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.is_fresh or module not in self._last:
                self._last[module] = own(*args, **kwargs)
            return self._last[module]

        return forward

    @contextmanager
    def attached(self) -> Iterator[DeepReuse]:
        """The U-Net, reusing; a plain one again on exit."""
        try:
            with forwards_replaced({part: self._forward(part) for part in deep_parts(self.unet)}):
                yield self
        finally:
            self._last.clear()
