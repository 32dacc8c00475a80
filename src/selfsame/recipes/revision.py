"""Which revision of this code made a result, and which code exactly."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path


def revision() -> str:
    """The checkout's commit, short, with "-dirty" when files differ from it; "unknown" when this code lies in no checkout of its own."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # installed inside somebody's own repository it is not tracked there
        return _git("describe", "--always", "--dirty", "--abbrev=7", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@cache
def source_digest() -> str:
    """Short hash of this package's source files as they lie there, committed or not."""
    said = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        said.update(hashlib.sha256(path.read_bytes()).digest())
    return said.hexdigest()[:16]


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout.strip()
