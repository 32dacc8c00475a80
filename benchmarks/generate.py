"""One picture, warm (median of five) and what InstantID's parts cost over the base; cold from the command line and its peak memory; `--help`, the import."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

from commands import measured

from selfsame import Request, load
from selfsame.studio.studio import TURBO
from selfsame.weights.mannequin import manifest

RUNS = 5


def seconds(run) -> float:
    times = []
    for _ in range(RUNS):
        began = time.monotonic()
        run()
        times.append(time.monotonic() - began)
    return statistics.median(times)


def main() -> None:
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    studio = load()
    ada = studio.identity("examples/ada.png")
    prompt = "a watercolour of a person laughing on a beach"
    cases = {
        "base": lambda: studio.generate(Request(prompt=prompt)),
        "Image Adapter": lambda: studio.generate(Request(prompt=prompt, controlnet_scale=0), ada),
        "both": lambda: studio.generate(Request(prompt=prompt), ada),
        "both, fast": lambda: studio.generate(Request(prompt=prompt, speed="fast"), ada),
    }
    if TURBO in manifest()["files"]:
        cases["both, turbo"] = lambda: studio.generate(Request(prompt=prompt, speed="turbo"), ada)
    for run in cases.values():
        run()
    times = {name: seconds(run) for name, run in cases.items()}
    for name, value in times.items():
        print(f"{name:15} {value:.2f} s  {value / times['base']:.2f} x base")
    with tempfile.TemporaryDirectory() as folder:
        generate = ["generate", "--face", "examples/ada.png", "--prompt", prompt, "--out", f"{folder}/out.png"]
        value = seconds(lambda: subprocess.run([sys.executable, "-c", "import selfsame"], check=True))
        print(f"{'import selfsame':15} {value:.2f} s")
        helped = [sys.executable, "-c", "from selfsame.cli.main import entry; entry()", "--help"]
        value = seconds(lambda: subprocess.run(helped, check=True, capture_output=True))
        print(f"{'--help':15} {value:.2f} s")
        cold = [measured(generate) for _ in range(RUNS)]
        print(f"{'cold':15} {statistics.median(took for took, _ in cold):.2f} s  peak memory {max(peak for _, peak in cold):.2f} GB")


if __name__ == "__main__":
    main()
