"""Two processes on one global batch are one process."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def losses(folder: Path, processes: int, stop_in: int = -1) -> list[float]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = str(Path(__file__).parent / "script_two_processes.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, script, str(folder), str(stop_in)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(folder / f"rank{k}").read_text() for k in range(processes)] == [f"{processes} {'done' if stop_in < 0 else 'stopped'}"] * processes
    with open(folder / "log.csv", newline="") as f:
        return [float(r["loss"]) for r in csv.DictReader(f)]


@pytest.mark.slow
def test_two_processes_give_the_loss_of_one(tmp_path: Path):
    assert losses(tmp_path / "two", 2) == pytest.approx(losses(tmp_path / "one", 1), rel=1e-4)


@pytest.mark.slow
def test_all_processes_end_after_the_step_in_which_one_was_asked_to(tmp_path: Path):
    assert len(losses(tmp_path, 2, stop_in=2)) == 3
