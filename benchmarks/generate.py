"""One picture, warm (median of five) with what the parts of InstantID cost over the base model, then cold from the command line, and `--help`."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time

from selfsame import Request, load

RUNS = 5


def seconds(run) -> float:
    times = []
    for _ in range(RUNS):
        began = time.monotonic()
        run()
        times.append(time.monotonic() - began)
    return statistics.median(times)


def main() -> None:
    studio = load()
    ada = studio.identity("examples/ada.png")
    prompt = "a watercolour of a person laughing on a beach"
    cases = {
        "base": lambda: studio.generate(Request(prompt=prompt)),
        "Image Adapter": lambda: studio.generate(Request(prompt=prompt, controlnet_scale=0), ada),
        "both": lambda: studio.generate(Request(prompt=prompt), ada),
    }
    for run in cases.values():
        run()
    times = {name: seconds(run) for name, run in cases.items()}
    for name, value in times.items():
        print(f"{name:15} {value:.2f} s  {value / times['base']:.2f} x base")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from selfsame.cli.main import entry; entry()"]
        generate = ["generate", "--face", "examples/ada.png", "--prompt", prompt, "--out", f"{folder}/out.png"]
        for name, args in (("cold", generate), ("--help", ["--help"])):
            value = seconds(lambda args=args: subprocess.run([*command, *args], check=True, capture_output=True))
            print(f"{name:15} {value:.2f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
