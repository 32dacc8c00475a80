"""`selfsame`: the command line. Parsing only; the studio, the recipes and the evaluation do the work."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any, get_args

import tyro

from selfsame.cli.batch import Batch
from selfsame.cli.convert import Convert
from selfsame.cli.edit import Edit
from selfsame.cli.generate import Generate
from selfsame.cli.learn import Learn
from selfsame.cli.look import Faces, Render
from selfsame.cli.models import Doctor, Models
from selfsame.cli.prepare import Prepare
from selfsame.cli.say import fail
from selfsame.cli.train import Evaluate, Train

Command = (
    Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Edit, tyro.conf.subcommand("edit")]
    | Annotated[Batch, tyro.conf.subcommand("batch")]
    | Annotated[Learn, tyro.conf.subcommand("learn")]
    | Annotated[Faces, tyro.conf.subcommand("faces")]
    | Annotated[Render, tyro.conf.subcommand("render")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)

DESCRIPTION = (
    "One picture in, the selfsame person in a new picture. Try: selfsame generate --face ada.png --prompt 'a watercolour of a person laughing on a beach'"
)


def _parsed(args: list[str]) -> Any:
    """The command that the arguments name; what tyro draws as a box of many lines becomes one."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if args[:1] == ["generate"] and any(a == "--like" or a.startswith("--like=") for a in args):
                return tyro.cli(Generate, args=args[1:], default=Generate.like_defaults(args), prog="selfsame generate")
            return tyro.cli(Command, args=args, prog="selfsame", description=DESCRIPTION, config=(tyro.conf.OmitSubcommandPrefixes,))  # type: ignore[call-overload]
    except SystemExit as error:
        if error.code:
            print(f"selfsame: {one_line(said.getvalue(), args)}", file=sys.stderr)
        raise


def check_lists(command: Any, args: Sequence[str]) -> None:
    """Refuse a flag of several values that is given without any, as an unset variable of a shell leaves it: it would be as if nobody had said it."""
    said = {a.partition("=")[0].replace("_", "-") for a in args}
    for f in fields(command):
        flag = f"--{f.name.replace('_', '-')}"
        if flag in said and getattr(command, f.name) == ():
            raise ValueError(f"{flag}: give at least one value, or leave the flag out")


def one_line(box: str, args: Sequence[str]) -> str:
    """The message inside a box of the parser, and where the help is."""
    rows = [line.strip("│ ").strip() for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    sections = [" ".join(part.split()) for part in re.split(r"─{4,}", " ".join(rows))]
    told = [s for s in sections if s and not s.startswith(("For full helptext", "Argument helptext"))]
    known = {a.__metadata__[0].name for a in get_args(Command)}
    command = f"selfsame {args[0]}" if args and args[0] in known else "selfsame"
    return f"{'; '.join(told)}; see `{command} --help`"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when all went well, 1 when an item of a batch failed, 2 for bad input, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        command = _parsed(args)
        check_lists(command, args)
        return command.run()
    except KeyboardInterrupt:
        print("stopped; nothing was left half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # somebody reads only the head of what we print
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return fail(error)


def entry() -> None:
    """The console script."""
    raise SystemExit(main())
