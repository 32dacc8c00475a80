"""When a condition acts. Apart from the sampling loop, which needs torch, because requests are checked before anything heavy is loaded."""

from __future__ import annotations


def in_window(index: int, num_steps: int, start: float, end: float) -> bool:
    """Whether a condition with a start/end window (shares of the run) acts in a step: i / N >= start and (i + 1) / N <= end."""
    return not (index / num_steps < start or (index + 1) / num_steps > end)


def ever_in_window(num_steps: int, start: float, end: float) -> bool:
    """Whether a condition acts in any step of a run."""
    return any(in_window(i, num_steps, start, end) for i in range(num_steps))
