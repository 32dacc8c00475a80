"""What the benchmarks of commands share: one command in a process of its own, its seconds and its peak memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence


def measured(args: Sequence[str]) -> tuple[float, float]:
    """Seconds of `selfsame ARGS` from the shell's point of view, and its peak memory in GB (Linux: VmHWM of its own process).

    Raises:
        SystemExit: it failed; what it said is printed.
    """
    asked = f"from selfsame.cli.main import main; code = main({list(args)!r}); print(open('/proc/self/status').read()); raise SystemExit(code)"
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    took = time.monotonic() - began
    if ended.returncode:
        raise SystemExit(f"selfsame {' '.join(args)}: {ended.stderr.strip()}")
    peak = int(next(line for line in ended.stdout.splitlines() if line.startswith("VmHWM:")).split()[1])
    return took, peak * 1024 / 1e9
