"""The training loop: any objective, any batches. It knows no paper.

Batches are a function of the step, random numbers included, so a killed and resumed run equals an uninterrupted one and two
processes see the same global batch as one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, broadcast
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from selfsame.images.files import written_whole
from selfsame.training.graphs import Graphed
from selfsame.training.processes import in_any_process, mean_over_processes, part_of, prefetched, rows_of, stoppable
from selfsame.training.quick import QuickBf16
from selfsame.training.records import Checkpoint, CurveLog, read_figures, write_figures
from selfsame.training.run import AnotherRun, Batch, Loss, Progress, Result, Run, fast_bf16

NORM_BATCHES = 16  # over which batch-norm statistics of averaged weights are taken


def checkpoint_activations(module: nn.Module) -> None:
    """Turn gradient checkpointing on in every part that offers it, as diffusers and transformers models do.

    Raises:
        ValueError: no part offers it.
    """
    names = ("enable_gradient_checkpointing", "gradient_checkpointing_enable")
    switches = [getattr(part, name) for part in module.modules() for name in names if hasattr(part, name)]
    if not switches:
        raise ValueError("gradient_checkpointing is asked for, but no part of the module offers it: set it to False")
    for switch in switches:
        switch()


def average_batch_norm(module: nn.Module, forward: Callable[[int], Any], count: int) -> None:
    """Measure the statistics of batch norms anew, as the mean over `count` batches: averaged weights have other ones.

    Args:
        forward: runs batch i through the module; nothing is learned.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    was_training = module.training
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # type: ignore[assignment]  # torch's sign for a plain mean
    module.train()
    try:
        with torch.no_grad():
            for i in range(count):
                forward(i)
    finally:
        module.train(was_training)
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum


def train(
    run: Run,
    module: nn.Module,
    objective: Callable[[nn.Module, Batch], Loss],
    batch_at: Callable[[int], Batch],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    look: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    device: torch.device | None = None,
) -> Result:
    """Train the parameters of `module` that require gradients.

    Args:
        run: the numbers of the run; its folder gets `state.pt`, `log.csv`, `run.json`.
        objective: loss of one (part of a) batch; calls the module it is given, which may be wrapped for several processes.
        batch_at: the global batch of a step, a pure function.
        look: called with the module holding EMA weights every `run.look_every` steps and at the end; its numbers are logged.
        device: where to compute; None: what accelerate finds.

    Returns:
        The module, holding the EMA weights, and its figures.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; the last good checkpoint stays.
        AnotherRun: the folder holds a run that this one cannot continue.
        ValueError: a batch cannot be shared out evenly.
        KeyboardInterrupt: somebody asked it to stop; everything is saved.
    """
    precision = ("bf16" if fast_bf16() else "no") if run.precision == "auto" else run.precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # an earlier run of this process had another precision
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    on_cpu = device is not None and device.type == "cpu"
    casts = AutocastKwargs(cache_enabled=not run.graphs)  # a recording must cast weights anew each time
    accelerator = Accelerator(mixed_precision=precision, step_scheduler_with_optimizer=False, cpu=on_cpu, kwargs_handlers=[casts])
    if run.batch_size % (run.accumulate * accelerator.num_processes):
        parts = f"{accelerator.num_processes} processes in {run.accumulate} part(s) each"
        raise ValueError(
            f"batch_size {run.batch_size} cannot be shared out evenly among {parts}: choose a multiple of {run.accumulate * accelerator.num_processes}"
        )
    main = accelerator.is_main_process
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.gradient_checkpointing:
        checkpoint_activations(module)
    params = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=run.learning_rate, betas=run.betas, weight_decay=run.weight_decay, fused=True)
    torch.manual_seed(run.seed)
    ema = EMAModel(params, decay=run.ema_decay, use_ema_warmup=False, foreach=True)
    checkpoint = Checkpoint(run.folder)
    state = checkpoint.load()
    step = samples = stale = 0
    best = math.inf
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    if state is not None:
        if state.get("data", run.data) != run.data:
            raise AnotherRun(f"{run.folder} holds a run on {state['data']}, this one learns from {run.data}: choose another --runs folder or delete that one")
        if run.upstream and (state.get("upstream") or run.upstream) != run.upstream:
            raise AnotherRun(
                f"{run.folder} learned from other models (such as the VAE's latents) than are installed now: choose another --runs folder or delete it"
            )
        shapes = {n: p.shape for n, p in module.named_parameters() if p.requires_grad}
        if {n: v.shape for n, v in state["module"].items() if not _is_buffer(module, n)} != shapes:
            raise AnotherRun(f"{run.folder} holds a run of another model than this recipe trains now: choose another --runs folder or delete that one")
        module.load_state_dict(state["module"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and "cuda_rng" in state:
            torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])
        step, samples = state["step"], state["samples"]
        if state.get("batch_size", run.batch_size) != run.batch_size:  # such as a CPU's run that goes on on a GPU: as far as its samples say
            step = samples // run.batch_size
        best, stale = state.get("best", best), state.get("stale", stale)
    if main:
        with written_whole(run.folder / "run.json") as partial:
            partial.write_text(json.dumps(asdict(run) | {"precision": precision}, default=str, indent=1))
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    called = wrapped
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        if run.graphs and accelerator.num_processes == 1 and run.accumulate == 1 and not run.gradient_checkpointing:
            called = Graphed(wrapped).train()
    ema.to(accelerator.device)
    log = CurveLog(run.folder / "log.csv", samples)
    began, began_step, last_look = time.monotonic(), step, -1
    before = float(state.get("minutes", 0.0)) if state is not None else 0.0  # that earlier calls took
    saved = began

    def minutes() -> float:
        return before + (time.monotonic() - began) / 60

    sums: dict[str, Any] = {}  # on the device, where one would have to wait for them
    counted = 0
    checks = FiniteChecks(run, every=1 if accelerator.device.type == "cpu" else run.log_every)

    def save() -> None:
        checks.passed()
        if main:
            values = {k: v for k, v in accelerator.unwrap_model(wrapped).state_dict().items() if k in trained or _is_buffer(module, k)}
            about = {
                "step": step,
                "samples": samples,
                "best": best,
                "stale": stale,
                "data": run.data,
                "batch_size": run.batch_size,
                "minutes": minutes(),
                "upstream": run.upstream,
                "rng": torch.get_rng_state(),
            }
            if torch.cuda.is_available():
                about["cuda_rng"] = torch.cuda.get_rng_state_all()
            checkpoint.save(about | {"module": values, "optimizer": optimizer.state_dict(), "ema": ema.state_dict()})

    def use_averages() -> None:
        """EMA weights, and batch-norm statistics that belong to them."""
        ema.copy_to(params)

        def forward(i: int) -> None:
            part = part_of(batch_at(i), slice(0, run.batch_size), accelerator.device)
            with accelerator.autocast():
                objective(module, part)

        rng = torch.get_rng_state()
        average_batch_norm(module, forward, NORM_BATCHES)
        torch.set_rng_state(rng)

    def look_now() -> dict[str, float]:
        nonlocal last_look
        last_look = step
        if look is None or not main:
            return {}
        ema.store(params)
        statistics = {k: v.clone() for k, v in module.state_dict().items() if _is_buffer(module, k)}
        was_training = module.training
        try:
            use_averages()
            module.eval()
            with torch.no_grad():
                figures.update(look(module, step))
                return dict(figures)
        finally:
            module.train(was_training)
            ema.restore(params)
            module.load_state_dict(statistics, strict=False)

    def quick() -> AbstractContextManager[object]:
        return QuickBf16() if precision == "bf16" and accelerator.device.type == "cpu" else nullcontext()

    figures: dict[str, float] = {}
    if look and (earlier := read_figures(run.folder, step)) is not None:
        figures.update(earlier)
        last_look = step
    whole, asked = True, False  # not in the middle of a step; nobody asked the run to end
    module.train()
    try:
        with stoppable() as stop, prefetched(batch_at, run.prefetch) as next_batch, quick():
            ending = run.fit and 0 < run.max_minutes < before  # its time may be over already
            while step < run.max_steps and not ending and not (run.patience and stale >= run.patience):
                rate_now = run.learning_rate_at(step, minutes())
                for group in optimizer.param_groups:
                    group["lr"] = rate_now
                batch = next_batch(step)
                rows = rows_of(accelerator.process_index, accelerator.num_processes, run.batch_size)
                share = (rows.stop - rows.start) // run.accumulate
                whole = False
                for k in range(run.accumulate):
                    part = part_of(batch, slice(rows.start + k * share, rows.start + (k + 1) * share), accelerator.device)
                    last = k == run.accumulate - 1
                    with nullcontext() if last else accelerator.no_sync(wrapped), accelerator.autocast():
                        loss = objective(called, part)
                        checks.add("the loss", loss.total, step)
                        accelerator.backward(loss.total / run.accumulate)
                    for name, value in {"loss": loss.total, **loss.parts}.items():
                        sums[name] = sums.get(name, 0.0) + value.detach().float() / run.accumulate
                if run.grad_clip:
                    norm = accelerator.clip_grad_norm_(params, run.grad_clip)
                    if norm is not None:
                        checks.add("the gradient's norm", torch.as_tensor(norm), step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                ema.step(params)
                step += 1
                samples += run.batch_size
                counted += 1
                whole = True
                is_look = run.look_every > 0 and step % run.look_every == 0
                if is_look or step % run.log_every == 0 or step == run.max_steps:
                    seconds = time.monotonic() - began
                    rate = (step - began_step) / seconds
                    means = mean_over_processes(accelerator, {k: float(v) / counted for k, v in sums.items()})
                    sums, counted = {}, 0
                    row = {"step": step, "samples": samples, "lr": rate_now, **means}
                    if is_look:
                        row |= look_now()
                        if run.watch in row:
                            best, stale = (float(row[run.watch]), 0) if float(row[run.watch]) < best else (best, stale + 1)
                        agreed: Any = broadcast(torch.tensor(stale, device=accelerator.device))  # only the first process looks
                        stale = int(agreed)
                    if main:
                        log.add(row)
                        if on_progress:
                            loss_value = means.pop("loss")
                            on_progress(Progress(step, run.max_steps, loss_value, means, row["lr"], rate * run.batch_size, (run.max_steps - step) / rate))
                if step % run.save_every == 0 or time.monotonic() - saved > 60 * run.save_minutes:
                    save()
                    saved = time.monotonic()
                late = bool(run.max_minutes) and (minutes() if run.fit else minutes() - before) > run.max_minutes
                asked, late = in_any_process(accelerator, stop.asked, late)
                ending = asked or late
            if asked:
                raise KeyboardInterrupt
    finally:
        if whole:
            with stoppable():  # a second Ctrl-C waits until all is written
                save()  # also on Ctrl-C: nothing is lost
        if asked:
            accelerator.wait_for_everyone()  # one process that left first would take the others' connections along
    with quick():
        if look and last_look != step:
            numbers = look_now()
            if main and numbers:
                log.add({"step": step, "samples": samples, **numbers})
        if look and main and figures:
            write_figures(run.folder, step, figures)
        use_averages()
    module.eval()
    accelerator.wait_for_everyone()
    return Result(module, step, samples, figures, main)


class FiniteChecks:
    """Whether losses and gradients are finite: on a CPU at once, on a GPU every so many steps and before anything is saved, so that nobody waits for it."""

    def __init__(self, run: Run, every: int) -> None:
        self.run, self.every = run, every
        self.seen: list[tuple[str, int, Tensor]] = []

    def add(self, what: str, value: Tensor, step: int) -> None:
        self.seen.append((what, step, value.detach()))
        if step - self.seen[0][1] >= self.every - 1:
            self.passed()

    def passed(self) -> None:
        """
        Raises:
            FloatingPointError: a number of those seen since the last time is not finite.
        """
        numbers = torch.stack([value.float() for _, _, value in self.seen]).tolist() if self.seen else []
        for (what, step, _), number in zip(self.seen, numbers, strict=True):
            if not math.isfinite(number):
                remedy = f"lower the learning rate of {self.run.learning_rate:g}; {self.run.folder} keeps the last good state"
                raise FloatingPointError(f"{what} is {number} at step {step}: {remedy}")  # again whenever it is asked: nobody saves what came of it
        self.seen.clear()


def _is_buffer(module: nn.Module, key: str) -> bool:
    return key in {n for n, _ in module.named_buffers()} and "running" in key
