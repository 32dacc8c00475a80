"""Muon for matrices and convolutions, AdamW for the rest, in one optimizer with one learning rate.

torch's own `torch.optim.Muon` takes no convolutions and rounds to bf16, which CPUs without AMX compute slower than fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon
RMS = 0.2  # of an update, what AdamW's usually is: arXiv:2502.16982, Eq. 4


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrices with all singular values near 1, by a quintic Newton-Schulz iteration. k m n -> k m n."""
    is_tall = g.shape[1] > g.shape[2]
    x = g.mT if is_tall else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + torch.baddbmm(b * square, square, square, alpha=c) @ x
    return x.mT if is_tall else x


class Muon(Optimizer):
    """W <- (1 - lr wd) W - lr 0.2 sqrt(max(m, n)) orthogonal(momentum of g); a convolution's kernel is flattened to a matrix.

    Vectors, and everything in a group with `is_matrix` False, follow AdamW with the same learning rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay, "is_matrix": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            rest = []
            for p in moved:
                if group["is_matrix"] and p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1:
                    shapes.setdefault((p.shape[0], p[0].numel()), []).append(p)
                else:
                    rest.append(p)
            for shape, same in shapes.items():
                self._matrices(same, shape, group)
            self._vectors(rest, group)
        return loss

    def _matrices(self, same: list[Tensor], shape: tuple[int, int], group: dict[str, Any]) -> None:
        beta, lr = group["momentum"], group["lr"]
        steps = []
        for p in same:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - beta)  # type: ignore[arg-type]
            steps.append(torch.lerp(p.grad, state["momentum"], beta).reshape(shape))  # type: ignore[arg-type]
        for p, o in zip(same, orthogonal(torch.stack(steps)), strict=True):
            p.mul_(1 - lr * group["weight_decay"]).add_(o.reshape(p.shape), alpha=-lr * RMS * max(shape) ** 0.5)

    def _vectors(self, rest: list[Tensor], group: dict[str, Any]) -> None:
        (b1, b2), lr = group["betas"], group["lr"]
        for p in rest:
            state = self.state[p]
            if not state:
                state |= {"step": torch.zeros(()), "first": torch.zeros_like(p), "second": torch.zeros_like(p)}
            state["step"] += 1
            n = float(state["step"])
            state["first"].lerp_(p.grad, 1 - b1)  # type: ignore[arg-type]
            state["second"].lerp_(p.grad.square(), 1 - b2)  # type: ignore[union-attr]
            scale = (state["second"] / (1 - b2**n)).sqrt_().add_(group["eps"])
            p.mul_(1 - lr * group["weight_decay"]).addcdiv_(state["first"], scale, value=-lr / (1 - b1**n))
