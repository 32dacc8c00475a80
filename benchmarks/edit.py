"""One edit of the miniature's MimicBrush, warm (median of five): a new reference each time, and the same reference again; from the command line."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from commands import measured

from selfsame import load
from selfsame.data.edit_sets import TRACKS, world_case
from selfsame.images.files import write_image
from selfsame.studio.edits import Editor, Region
from selfsame.studio.request import EditRequest

RUNS = 5


def main() -> None:
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    editor, request = Editor(load()), EditRequest()
    times: dict[str, list[float]] = {"a new reference": [], "the same again": []}
    for i in range(RUNS + 1):  # the first loads the weights
        case = world_case(TRACKS[0], "test", i)
        for seed, name in enumerate(times):
            began = time.monotonic()
            editor.edit(case.source, [Region(case.mask, case.reference)], replace(request, seed=seed))
            times[name].append(time.monotonic() - began)
    seconds = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, value in seconds.items():
        print(f"{name:16} {value:.2f} s  {seconds['a new reference'] / value:.2f} x")
    case = world_case(TRACKS[0], "test", 0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = {name: str(write_image(folder / f"{name}.png", getattr(case, name))) for name in ("source", "reference")}
        mask = str(write_image(folder / "mask.png", case.mask[..., None].repeat(3, 2)))
        given = ["--source", files["source"], "--mask", mask, "--reference", files["reference"]]
        took, peak = measured(["edit", *given, "--out", str(folder / "out.png")])
    print(f"from the command line {took:.1f} s  {peak:.2f} GB")


if __name__ == "__main__":
    main()
