"""What all recipes share: where data and runs lie, random rows by step, pictures as tensors."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from selfsame.data.shards import world_of
from selfsame.images.files import InputError, read_json, write_image, write_json
from selfsame.training.loop import train
from selfsame.training.run import Progress, Run
from selfsame.weights.mannequin import digest_of, sha256

DATA = Path("data/world2")
RUNS = Path("runs")
ON_GPU: dict[str, Any] = {"graphs": True, "prefetch": 0, "log_every": 50, "look_every": 4000, "save_every": 4000}  # where a step takes some milliseconds
BEGAN = "began.json"  # of a warm run: the hash of what it began with
M = TypeVar("M", bound=nn.Module)


def compute_device() -> torch.device:
    """Where recipes compute: the first GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def beside(module: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch on the device of a module."""
    device = next(module.parameters()).device
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line may change in any recipe."""

    data: Path = DATA
    runs: Path = RUNS
    steps: int = 0  # 0: the recipe's own
    batch_size: int = 0  # likewise
    learning_rate: float = 0.0  # likewise
    accumulate: int = 1  # parts in which a batch is worked through
    gradient_checkpointing: bool = False
    minutes: float = 0.0  # stop after this long; the run can be resumed
    fit: bool = False  # the rate falls to its end within those minutes
    warm: bool = False  # a new run starts from the installed weights
    rehearse: bool = False  # InstantID alone: also paint at every step and hear of the likeness (`recipes.rehearsal`); a run of its own
    mean: float = 1.0  # of a warm run the share of the trained weights in what comes out, the rest being those it began with
    smoke: bool = False  # two steps, to see that everything is in place
    on_progress: Callable[[Progress], None] | None = None

    def run(self, default: Run, *, data: str = "", after: Sequence[str] = (), upstream: str = "", **on_gpu: Any) -> Run:
        """The recipe's run with these changes.

        Args:
            data: what it learns from; "": the world.
            after: shipped files or folders whose outputs it learns from: with others in their place a run is not continued.
            upstream: likewise, a hash of files of somebody's own.
            on_gpu: its own changes on a GPU, where big batches cost nothing.
        """
        run = replace(default, max_minutes=self.minutes, fit=self.fit)
        about = default.folder / "run.json"
        begun = not self.smoke and (default.folder / "state.pt").exists() and about.exists()
        if compute_device().type != "cpu":
            run = replace(run, **({"prefetch": 4} | on_gpu))
        if self.steps:
            run = replace(run, max_steps=self.steps)
        if self.batch_size:
            run = replace(run, batch_size=self.batch_size)
        if self.learning_rate:
            run = replace(run, learning_rate=self.learning_rate)
        if self.smoke:
            shutil.rmtree(default.folder, ignore_errors=True)  # two fresh steps every time, in a folder of their own
            run = replace(run, max_steps=2, log_every=1, save_every=1, look_every=0)
        return replace(
            run,
            accumulate=self.accumulate,
            gradient_checkpointing=self.gradient_checkpointing,
            data=data or f"world {world_of(self.data)}",
            upstream=upstream or digest_of(after),
            warm=bool(read_json(about).get("warm", self.warm)) if begun else self.warm,
        )

    def folder(self, name: str) -> Path:
        """Where a run of this name lies."""
        return self.runs / (name + "-rehearsed" * self.rehearse + "-smoke" * self.smoke)

    def start(self, fresh: Callable[[], M], installed: Callable[[], nn.Module]) -> M:
        """What a new run begins with: a fresh module, or with `warm` the one that ships."""
        return (cast("M", installed()) if self.warm else fresh()).train().requires_grad_(True)


def files_hash(*paths: Path | None) -> str:
    """Short hash of the contents of files and folders, None for what is not given; of large ones it takes seconds."""
    said = hashlib.sha256()
    for path in paths:
        said.update(b"none" if path is None else b"given")
        for file in [] if path is None else sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                said.update(f"{file.name} {sha256(file)}".encode())
    return said.hexdigest()[:16]


@dataclass
class Trained:
    """A recipe's result: the module with EMA weights, its figures, where the run lies."""

    module: nn.Module
    figures: dict[str, float]
    folder: Path
    samples: int
    is_main: bool = True  # of several processes the one that reports and ships


def mixed_rows(kinds: tuple[np.ndarray, np.ndarray], share: float, batch_size: int, seed: int, step: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of a step from two kinds, by lot in their shares, each kind in an order of its own, of which every step takes a part; of one kind alone where the
    other is empty.

    Args:
        kinds: rows of either.
        share: of the first kind.
    """
    first = int(rng.binomial(batch_size, share)) if all(map(len, kinds)) else batch_size * bool(len(kinds[0]))
    parts = [rows[epoch_rows(len(rows), batch_size, seed, step)[:n]] for rows, n in zip(kinds, (first, batch_size - first), strict=True) if n]
    return np.concatenate(parts)


def generator_at(seed: int, step: int) -> np.random.Generator:
    """Random numbers of one step of one run."""
    return np.random.default_rng([seed, step])


def torch_generator(rng: np.random.Generator, device: torch.device | str = "cpu") -> torch.Generator:
    """One for tensors that are drawn on `device`; the numbers are another device's own."""
    return torch.Generator(device).manual_seed(int(rng.integers(2**62)))


def epoch_rows(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Rows of a step when each epoch visits all rows once, in a new order."""
    first = step * batch_size
    rows: list[np.ndarray] = []
    while sum(map(len, rows)) < batch_size:
        epoch, at = divmod(first, count)
        order = _order(count, seed, epoch)
        take = order[at : at + batch_size - sum(map(len, rows))]
        rows.append(take)
        first += len(take)
    return np.concatenate(rows)


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most so many of some rows, evenly from the first to the last: held-out figures are of all people, not of the first ones."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]


@lru_cache(4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 77, epoch]).permutation(count)


def to_pixels(images: np.ndarray) -> Tensor:
    """n h w 3 uint8 -> n 3 h w in [-1, 1]."""
    return as_pixels(torch.from_numpy(np.array(images)))


def as_pixels(images: Tensor) -> Tensor:
    """The same of a uint8 tensor, on its device."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def save_grid(run: Run, step: int, rows: Sequence[Sequence[np.ndarray]]) -> Path:
    """Rows of equal pictures (h w 3 uint8) as samples/STEP.png in the run's folder: training that can be looked at."""
    path = run.folder / "samples" / f"{step:07d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(path, np.concatenate([np.concatenate(list(row), 1) for row in rows]))


def to_images(pixels: Tensor) -> list[np.ndarray]:
    """n 3 h w in [-1, 1] -> n arrays h w 3 uint8."""
    return list(((pixels.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())


def _check_start(run: Run, module: nn.Module, options: Options) -> None:
    """Of a warm run, remember what it began with, and refuse a mean with anything else: what is installed may be another by now, its own result above all."""
    path = run.folder / BEGAN
    if not (run.folder / "state.pt").exists():
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"began": fingerprint_of([module])})
    elif options.mean < 1 and path.exists() and read_json(path).get("began") != fingerprint_of([module]):
        raise InputError(f"{run.folder}: began with other weights than those installed now, so their mean is not the way between: leave --mean out")


def fingerprint_of(modules: Iterable[nn.Module], data: str = "") -> str:
    """Short hash of modules' weights and what describes the data: a cache of other weights or data is never used."""
    digest = hashlib.sha256(data.encode())
    for value in (v for m in modules for v in m.state_dict().values()):
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def finish(run: Run, module: nn.Module, objective: Any, batch_at: Any, options: Options, look: Any) -> Trained:
    """Train; the figures are those of the last look.

    Raises:
        InputError: the mean with the installed weights is asked for, and the run did not begin with them.
    """
    if options.mean < 1 and not run.warm:
        raise InputError(f"{run.folder}: began with new weights, whose mean with the installed ones says nothing: --mean belongs to --warm and --rehearse")
    if run.warm:
        _check_start(run, module, options)
    began = {k: v.detach().cpu().clone() for k, v in module.state_dict().items() if v.is_floating_point()} if options.mean < 1 else {}
    made = train(run, module, objective, batch_at, on_progress=options.on_progress, look=look, device=compute_device())
    if not began or not made.is_main:
        return Trained(made.module, made.figures, run.folder, made.samples, made.is_main)
    with torch.no_grad():
        for k, v in made.module.state_dict().items():
            if k in began:
                v.lerp_(began[k].to(v), 1 - options.mean)
        figures = look(made.module, made.step) if look else made.figures
    return Trained(made.module, figures, run.folder, made.samples, made.is_main)
