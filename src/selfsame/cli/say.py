"""How the command line speaks: warnings and errors on one line, progress where somebody is looking."""

from __future__ import annotations

import sys


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def fail(error: Exception) -> int:
    """One line and exit code 2 for what a user can mend; anything else is our mistake and keeps its traceback."""
    from selfsame.images.files import InputError
    from selfsame.weights.mannequin import WeightsError

    if isinstance(error, (InputError, WeightsError, FileNotFoundError, FloatingPointError)) or type(error) is ValueError:
        print(f"selfsame: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    raise error
