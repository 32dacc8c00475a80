"""What a run is: its numbers, what it descends, what it tells while it lasts, and what it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selfsame.images.files import InputError

Batch = dict[str, Any]


class AnotherRun(InputError):
    """The run's folder holds one on other data, of other models or settings, which this one cannot continue."""


@dataclass(frozen=True)
class Loss:
    """The number to descend and its named parts, for the log."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """How long, how fast, how often. Saved whole beside the result."""

    folder: Path
    max_steps: int
    batch_size: int = 64  # global: all processes and accumulation steps together
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = 1.0
    accumulate: int = 1
    ema_decay: float = 0.999
    precision: Literal["no", "bf16", "auto"] = "auto"
    seed: int = 0
    log_every: int = 20
    save_every: int = 500
    save_minutes: float = 3.0  # also after this long, so that slow steps lose little
    look_every: int = 0  # samples and metrics; 0: only at the end
    watch: str = ""  # a figure of the looks that should fall
    patience: int = 0  # looks without a lower one after which the run ends; 0: it never does
    max_minutes: float = 0.0  # 0: until max_steps
    data: str = ""  # what it learns from; a checkpoint of other data is not continued
    upstream: str = ""  # likewise of frozen models whose outputs it learns from, where they are known
    warm: bool = False  # it began from installed weights; a run that goes on remembers
    gradient_checkpointing: bool = False  # activations are computed again in the backward pass: a third slower, far less memory
    fit: bool = False  # the rate falls to its end within max_minutes, however many steps that turn out to be
    graphs: bool = False  # on one GPU: steps are recorded as CUDA graphs
    prefetch: int = 0  # batches made ahead by as many threads: on a GPU the CPU is free for it

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps {self.max_steps}: give at least 1")
        if self.accumulate < 1 or self.batch_size < 1:
            raise ValueError(f"batch_size {self.batch_size}, accumulate {self.accumulate}: give at least 1 of each")
        if self.max_minutes < 0:
            raise ValueError(f"max_minutes {self.max_minutes:g}: give 0 (no limit) or more")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if self.patience and not (self.watch and self.look_every):
            raise ValueError(f"patience {self.patience}: say which figure to watch, and look every so many steps")
        if self.fit and not self.max_minutes:
            raise ValueError("fit is asked for without max_minutes: say how long the run may take")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay}: choose from [0, 1)")

    def learning_rate_at(self, step: int, minutes: float = 0.0) -> float:
        """Linear warm-up, then a cosine to a hundredth (or constant).

        Args:
            minutes: that the run has taken so far, which counts with `fit`.
        """
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay == "constant":
            return self.learning_rate * warm
        at = min(1.0, max(step / self.max_steps, minutes / self.max_minutes if self.fit else 0.0))
        return self.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * at)))


@dataclass
class Progress:
    """What the caller may show: after each logged step."""

    step: int
    max_steps: int
    loss: float
    parts: dict[str, float]
    learning_rate: float
    samples_per_s: float
    eta_s: float


def fast_bf16() -> bool:
    """Whether bf16 products are faster than fp32 here: CUDA, or a CPU with AMX or AVX512's bf16 (`benchmarks/bf16.py`)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    known = (getattr(torch.cpu, name, lambda: False) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(supported() for supported in known)


@dataclass
class Result:
    """What a run leaves: the module with averaged weights, how far it came, its last figures, and whether this process reports."""

    module: nn.Module
    step: int
    samples: int
    figures: dict[str, float]
    is_main: bool = True
