"""What a run keeps on the disk: its whole state, and its log."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from selfsame.images.files import write_json, written_whole

FIGURES = "figures.json"


class Checkpoint:
    """All state of a run in one file, written atomically."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.pt"

    def save(self, state: dict[str, Any]) -> None:
        with written_whole(self.path) as partial:
            torch.save(state, partial)

    def load(self) -> dict[str, Any] | None:
        return torch.load(self.path, map_location="cpu", weights_only=True) if self.path.exists() else None


def write_figures(folder: Path, step: int, figures: Mapping[str, float]) -> None:
    """Of a run's last look: one that is asked for again when it has ended looks no more."""
    write_json(folder / FIGURES, {"step": step, "figures": dict(figures)})


def read_figures(folder: Path, step: int) -> dict[str, float] | None:
    """What `write_figures` wrote at this step; None: nothing."""
    try:
        known = json.loads((folder / FIGURES).read_text())
    except (OSError, ValueError):
        return None
    return dict(known["figures"]) if isinstance(known, dict) and known.get("step") == step else None


class CurveLog:
    """A CSV that grows; columns may appear later. Rows after those of the resumed checkpoint are dropped."""

    def __init__(self, path: Path, samples: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists() and samples:
            with open(path, newline="") as f:
                self.rows = [r for r in csv.DictReader(f) if int(r["samples"]) <= samples]

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        columns = list(dict.fromkeys(k for r in self.rows for k in r))
        with written_whole(self.path) as partial, open(partial, "w", newline="") as f:
            writer = csv.DictWriter(f, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
