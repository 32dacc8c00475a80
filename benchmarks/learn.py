"""A person learned as two words from the command line, with the defaults: seconds and peak memory."""

from __future__ import annotations

import os
import tempfile

from commands import measured


def main() -> None:
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        took, peak = measured(["learn", "--face", "examples/ada.png", "--out", f"{folder}/ada.safetensors"])
    print(f"learn  {took:.0f} s  {peak:.2f} GB")


if __name__ == "__main__":
    main()
