"""How the command line speaks: warnings and errors on one line, progress where somebody is looking."""

from __future__ import annotations

import errno
import sys
from typing import Any

FULL = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EFBIG: "files may not grow so large here: choose another folder, or raise the limit (ulimit -f)",
    errno.EDQUOT: "the quota is spent: free some space or choose another folder",
}


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def fail(error: Exception) -> int:
    """One line and exit code 2 for what a user can mend; anything else is our mistake and keeps its traceback."""
    from selfsame.images.files import InputError, disk_is_full
    from selfsame.weights.mannequin import WeightsError

    if isinstance(error, OSError) and not isinstance(error, WeightsError) and (error.filename or error.errno in FULL) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"selfsame: {where}{error.strerror.lower()}; {FULL.get(error.errno or 0, 'check the path and what may be read and written there')}", file=sys.stderr
        )
        return 2
    if not isinstance(error, OSError | InputError) and disk_is_full(error):
        print(f"selfsame: no space left on device; {FULL[errno.ENOSPC]}", file=sys.stderr)
        return 2
    if isinstance(error, (InputError, WeightsError, FileNotFoundError, FloatingPointError)) or type(error) is ValueError:
        print(f"selfsame: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if isinstance(error, RuntimeError) and ("out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower()):
        remedy = "paint smaller (--height, --width), fewer at once, photographs with --memory low; learn and train with a smaller --batch-size"
        print(f"selfsame: out of memory ({' '.join(str(error).split())[:120]}); {remedy}", file=sys.stderr)
        return 2
    raise error


class bar:
    """A progress bar on stderr when somebody is looking; calls add to it."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total

    def __enter__(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        shown, alone = sys.stderr.isatty(), sys.stdout.isatty()  # what goes to a file or a pipe goes there, not to the screen beside the bar
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown, redirect_stdout=alone)
        self.progress.start()
        task = self.progress.add_task(self.what, total=self.total, note="")

        def tick(count: float, note: str = "") -> None:
            self.progress.update(task, advance=count, note=note)

        return tick

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
