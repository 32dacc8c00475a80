"""Steps of small networks on a GPU: the work of hundreds of small kernels is recorded once for each shape of a batch and replayed as one.

Such networks wait for Python, not for the GPU: a step of 256 samples of the miniature's base takes as long as one of 1,024.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

Key = tuple[tuple[torch.Size, torch.dtype], ...]


class _Recorded(nn.Module):
    """One more owner of a module, whose forward a recording may replace."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False):  # weights are cast anew in each replay
            return self.module(*args)


class Graphed(nn.Module):
    """A module whose forward and backward passes are CUDA graphs while it trains (`torch.cuda.make_graphed_callables`), one for each set of shapes.

    What cannot be recorded runs as it is, and says so once. Gradients lie in the graphs' own memory until the next pass: they are to be used at once, not
    added up over several passes.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._recorded: dict[Key, nn.Module] = {}  # not registered: their parameters are the module's

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        if kwargs or not (self.module.training and torch.is_grad_enabled()) or not all(a.is_cuda for a in args):
            return self.module(*args, **kwargs)
        key = tuple((a.shape, a.dtype) for a in args)
        if key not in self._recorded:
            self._recorded[key] = self._record(args)
        return self._recorded[key](*args)

    def _record(self, args: tuple[Tensor, ...]) -> nn.Module:
        shell = _Recorded(self.module)
        examples = tuple(a.detach().clone() for a in args)
        try:
            torch.cuda.make_graphed_callables(shell, examples, allow_unused_input=True)
        except Exception as error:  # whatever a recording meets: the same work can be done without one
            torch.cuda.synchronize()
            print(f"this step runs without CUDA graphs: {error}", file=sys.stderr, flush=True)
            return self.module
        return shell
