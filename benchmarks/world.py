"""How many pictures a second the world draws, ground truth included, on all cores. Run: python benchmarks/world.py"""

from __future__ import annotations

import multiprocessing
import os
import time

import torch

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


if __name__ == "__main__":
    main()
