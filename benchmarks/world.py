"""How many pictures a second the world draws, ground truth included: on all cores, and in batches on a GPU if there is one.

Run: python benchmarks/world.py
"""

from __future__ import annotations

import multiprocessing
import os
import time

import torch

from selfsame.data.shards import draw_many
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import sample

COUNT = 160


def work(rows: range) -> int:
    torch.set_num_threads(1)
    for i in rows:
        draw([sample("train", i).scene])
    return len(rows)


def main() -> None:
    cores = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(work, [range(4)] * cores)  # warm up
        began = time.monotonic()
        done = sum(pool.map(work, [range(k * COUNT, (k + 1) * COUNT) for k in range(cores)]))
    print(f"{done / (time.monotonic() - began):.1f} pictures/s on {cores} cores at 128 px")
    if torch.cuda.is_available():
        items = [sample("train", i) for i in range(16 * COUNT)]
        draw_many(items[:COUNT], "cuda")
        began = time.monotonic()
        draw_many(items, "cuda")
        print(f"{len(items) / (time.monotonic() - began):.1f} pictures/s on {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main()
