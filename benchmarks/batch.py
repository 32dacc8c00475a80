"""Eight orders of different people, strengths and windows painted together, beside the same eight one by one: pictures a second, in one run."""

from __future__ import annotations

import statistics
import time

import numpy as np

from selfsame import Request, load

RUNS = 3
PROMPTS = ("a photo of a person in a garden", "a comic of a person in space", "a watercolour of a person on a beach", "a pencil sketch of a person")


def main() -> None:
    studio = load()
    people = [studio.identity(f"examples/{name}.png") for name in ("ada", "bo", "cleo", "dan")]
    jobs = []
    for i in range(8):
        request = Request(prompt=PROMPTS[i % 4], seed=i, adapter_scale=1 - 0.1 * (i % 3), controlnet_end=1 - 0.25 * (i % 2))
        jobs += studio.jobs(request, people[i % 4])
    times: dict[int, list[float]] = {1: [], 4: [], 8: []}
    pictures: dict[int, dict[int, np.ndarray]] = {}
    for _ in range(RUNS + 1):  # the first run loads the weights
        for together in times:
            studio.together = together
            began = time.monotonic()
            pictures[together] = {i: made.pixels for i, made in studio.paint_jobs(jobs)}
            times[together].append(time.monotonic() - began)
    seconds = {k: statistics.median(v[1:]) for k, v in times.items()}
    for together, value in seconds.items():
        off = max(int(np.abs(pictures[together][i].astype(int) - pictures[1][i].astype(int)).max()) for i in range(8))
        print(f"{together} together  {8 / value:.2f} pictures a second  {seconds[1] / value:.2f} x   at most {off} grey levels off")


if __name__ == "__main__":
    main()
