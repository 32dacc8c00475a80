"""Several processes and threads that do one run: who takes which rows, batches made ahead, and an end that all agree on."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor

from selfsame.training.run import Batch


def rows_of(rank: int, world_size: int, count: int) -> slice:
    """The rows of a global batch that a process takes."""
    share = count // world_size
    return slice(rank * share, (rank + 1) * share)


def part_of(batch: Batch, rows: slice, device: torch.device) -> Batch:
    def take(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows].to(device, non_blocking=True)
        return value[rows] if isinstance(value, list) else value

    return {k: take(v) for k, v in batch.items()}


@contextmanager
def prefetched(batch_at: Callable[[int], Batch], ahead: int) -> Iterator[Callable[[int], Batch]]:
    """`batch_at` for steps asked in order, made in threads `ahead` steps before they are needed."""
    if ahead < 1:
        yield batch_at
        return
    coming: deque[tuple[int, Future[Batch]]] = deque()
    with ThreadPoolExecutor(ahead) as threads:

        def take(step: int) -> Batch:
            while len(coming) <= ahead:
                number = coming[-1][0] + 1 if coming else step
                coming.append((number, threads.submit(batch_at, number)))
            number, future = coming.popleft()
            assert number == step, "steps are taken in order"
            return future.result()

        try:
            yield take
        finally:
            for _, future in coming:
                future.cancel()


class Stop:
    """Whether somebody asked the run to end."""

    asked = False


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Ctrl-C and a polite kill both ask the run to end after the step it is in; asked twice it ends at once.

    Also in a background job, whose shell made it deaf to Ctrl-C.
    """
    stop = Stop()

    def ask(*_: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def wait_for_everyone() -> None:
    """Until all processes are here, where there are several: before one reads what another writes."""
    PartialState().wait_for_everyone()


def in_any_process(accelerator: Accelerator, *mine: bool) -> list[bool]:
    """Which of these hold in any process: all end after the same step, or one would wait for ever for the others' gradients."""
    if accelerator.num_processes == 1:
        return list(mine)
    together = accelerator.reduce(torch.tensor([float(x) for x in mine], device=accelerator.device), reduction="sum")
    assert isinstance(together, Tensor)
    return [x > 0 for x in together.tolist()]


def mean_over_processes(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    if accelerator.num_processes == 1:
        return values
    together = torch.tensor(list(values.values()), device=accelerator.device)
    reduced = accelerator.reduce(together, reduction="mean")
    assert isinstance(reduced, Tensor)
    return dict(zip(values, reduced.tolist(), strict=True))
