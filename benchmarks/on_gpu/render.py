"""Samples of the world straight into packed tables, drawn by all cores and a few workers on the GPU (358 pictures a second on an H100 with 16 cores).

Stages are SPLIT:FIRST:END in the order in which they are needed; when one is whole, its split's table is replaced and FOLDER/.ready-SPLIT-END appears.
The tables are those of `selfsame render --pack`; pictures drawn on a GPU differ from the CPU's by a grey level here and there.

Run: python benchmarks/on_gpu/render.py data/world2 validation:0:800 train:0:24000
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsame.data.shards import draw_many, record_of, write_json
from selfsame.data.tables import COLUMNS, table_name
from selfsame.mannequins.world import SIZE, WORLD_VERSION, sample

ON_GPU = 3  # workers that draw there: more of them wait for each other
CHUNK = 96  # samples at a time
Piece = dict[tuple[int, int], dict[str, Any]]  # by picture size: a column's arrays, and the records as lines
worker = {"device": "cpu"}


def begin(count: Any) -> None:
    torch.set_num_threads(1)
    with count.get_lock():
        number = count.value
        count.value += 1
    worker["device"] = "cuda" if number < ON_GPU and torch.cuda.is_available() else "cpu"


def drawn(job: tuple[str, int, int]) -> tuple[str, int, Piece]:
    split, first, end = job
    items = [sample(split, i) for i in range(first, end)]
    piece: Piece = {}
    for i, item, picture in zip(range(first, end), items, draw_many(items, worker["device"]), strict=True):
        mine = piece.setdefault((item.scene.height, item.scene.width), {"lines": [], **{name: [] for name in COLUMNS}})
        mine["lines"].append(json.dumps(record_of(item, picture, i) | {"caption": item.caption}))
        for name in COLUMNS:
            mine[name].append(getattr(picture, name))
    return split, first, {size: {k: v if k == "lines" else np.stack(v) for k, v in mine.items()} for size, mine in piece.items()}


def write(folder: Path, split: str, pieces: list[Piece]) -> None:
    """The tables of a split, each file replaced when whole."""
    for h, w in sorted({size for piece in pieces for size in piece}):
        mine = [piece[h, w] for piece in pieces if (h, w) in piece]
        table = table_name(split, h, w)
        files = {f"{table}.{column}.npy": name for name, column in COLUMNS.items()}
        for file, name in files.items():
            np.save(folder / f"new.{file}", np.concatenate([m[name] for m in mine]))
        lines = f"{table}.jsonl"
        (folder / f"new.{lines}").write_text("\n".join(line for m in mine for line in m["lines"]))
        for file in (*files, lines):
            os.replace(folder / f"new.{file}", folder / file)


def main() -> None:
    folder = Path(sys.argv[1])
    stages = [(split, int(first), int(end)) for split, first, end in (stage.split(":") for stage in sys.argv[2:])]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "dataset.json", {"world": WORLD_VERSION, "size": SIZE})
    jobs = [(n, (split, i, min(i + CHUNK, end))) for n, (split, first, end) in enumerate(stages) for i in range(first, end, CHUNK)]
    stage_of = {(split, i): n for n, (split, i, _) in jobs}
    left = [sum(n == k for n, _ in jobs) for k in range(len(stages))]
    held: dict[str, dict[int, Piece]] = {}
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Pool(max(1, (os.cpu_count() or 1) - 3), begin, (context.Value("i", 0),)) as pool:
        for split, first, piece in pool.imap_unordered(drawn, [job for _, job in jobs]):
            held.setdefault(split, {})[first] = piece
            number = stage_of[split, first]
            left[number] -= 1
            if not left[number]:
                end = stages[number][2]
                write(folder, split, [held[split][i] for i in sorted(held[split]) if i < end])
                (folder / f".ready-{split}-{end}").touch()
                print(f"{time.monotonic() - began:.0f} s: {split} up to {end}", flush=True)


if __name__ == "__main__":
    main()
