"""Many pictures from a manifest: one order a line, each picture beside others of its kind, a bad line never in the way of the rest."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selfsame.images.files import InputError, read_image, read_metadata, spare_resolved, write_image, written_whole
from selfsame.studio.family import Family, Job
from selfsame.studio.orders import Order, order_json
from selfsame.studio.ready import about_picture, files_digest, jobs_of
from selfsame.studio.request import Made

RESULTS = "results.jsonl"
RESULT = "result"  # what a picture's file says of how it came out
AT_ONCE = 256  # lines that are read and prepared together
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Line:
    """One line of a manifest."""

    number: int  # from 1
    name: str
    order: Order | None
    error: str = ""

    @property
    def count(self) -> int:
        """How many pictures it asks for."""
        return self.order.count if self.order else 0

    @property
    def files(self) -> list[str]:
        """The names of its pictures."""
        return [f"{self.name}.png"] if self.count == 1 else [f"{self.name}-{k + 1}.png" for k in range(self.count)]


@dataclass(frozen=True)
class Result:
    """What became of a line."""

    name: str
    line: int
    status: str  # made, kept (it was there already) or failed
    error: str = ""
    notes: tuple[str, ...] = ()  # warnings
    seconds: float = 0.0
    files: tuple[str, ...] = ()
    scores: tuple[float | None, ...] = ()  # of each picture: the judge's cosine with the photo; None: no face
    people: tuple[tuple[dict[str, Any], ...], ...] = ()  # of each picture with several people: who was found where
    parameters: Mapping[str, Any] | None = None
    digest: str = ""  # of the order, its files and the model


@dataclass(frozen=True)
class Into:
    """Where a manifest's pictures go, and how."""

    folder: Path  # it must exist; what lies there and is no picture of this manifest is not written over
    manifest: str = ""  # its file's name, which is written into the pictures
    made_by: Mapping[str, Any] = field(default_factory=dict)  # what else decides about the pictures, and is written into them: the model, its folders
    score: bool = True  # whether the judge looks at each picture with one person


def read_manifest(path: str | Path) -> list[Line]:
    """The lines of a JSONL or CSV manifest. Fields are those of an order, and `id`, which names the pictures.

    Raises:
        InputError: no such file, another ending, or nothing in it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a manifest, a JSON object a line (.jsonl) or a table with a header (.csv)")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if path.suffix == ".csv":
        raw: list[tuple[int, Any]] = _table(text)
    elif path.suffix in (".jsonl", ".ndjson"):
        raw = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        raise InputError(f"{path}: a manifest ends in .jsonl or .csv")
    if not raw:
        raise InputError(f"{path}: holds no orders")
    lines: list[Line] = []
    taken: dict[str, int] = {}  # file or id -> the line that has it
    for number, content in raw:
        line = _line(number, content, path.parent)
        twice = next((f for f in line.files if f in taken), None)
        if twice is not None:
            line = Line(number, line.name, None, f"line {number}: {twice} is written by line {taken[twice]} already; give this one another id")
        elif line.order and line.name in taken:
            line = Line(number, line.name, None, f"line {number}: id {line.name!r} is that of line {taken[line.name]} already; give this one another id")
        if line.order:
            taken |= dict.fromkeys([*line.files, line.name], number)
        lines.append(line)
    return lines


def _table(text: str) -> list[tuple[int, Any]]:
    """Rows by the numbers of their first lines, each a dict of its filled cells, or the error that it is no row; after one reading goes on in the next line."""
    lines = list(io.StringIO(text, newline=""))
    rows: list[tuple[int, Any]] = []
    header: list[str] = []
    at = 0
    while at < len(lines):
        reader, number = csv.reader((lines[i] for i in range(at, len(lines))), strict=True), at + 1
        try:
            cells, at = next(reader), at + reader.line_num
        except csv.Error as error:
            rows.append((number, InputError(f"no table row ({error}): is a quote left open?")))
            at += 1
            continue
        if not header:
            header = cells
        elif len(cells) > len(header):
            rows.append((number, InputError("has more cells than the header")))
        elif cells:
            rows.append((number, {k: v for k, v in zip(header, cells, strict=False) if v}))
    return rows


def _line(number: int, content: Any, folder: Path) -> Line:
    name = f"{number:04d}"
    try:
        if isinstance(content, InputError):
            raise content
        if "\ufffd" in str(content):
            raise InputError("holds bytes that are not UTF-8; save the manifest as UTF-8 (Excel: CSV UTF-8)")
        values = json.loads(content) if isinstance(content, str) else content
        if not isinstance(values, dict):
            raise InputError("is no JSON object")
        said = values.pop("id", None)
        given = name if said is None else str(said)
        if not NAME.fullmatch(given):
            raise InputError(f"id {given!r}: give letters, digits, '.', '-' and '_', beginning with a letter or digit")
        name = given
        order = Order.of(values, folder, is_table=not isinstance(content, str))
        _ = order.request  # checks itself
        order.check_together()
        for file in order.files:
            file.resolve()  # refuses what no system can name
        return Line(number, name, order)
    except json.JSONDecodeError as error:
        return Line(number, name, None, f"line {number}: is no JSON ({error.msg} at {error.pos})")
    except Exception as error:  # whatever a line holds, the others go on
        return Line(number, name, None, _said(number, error))


def _said(number: int, error: Exception) -> str:
    """One line about an error; its kind where it is none of ours."""
    text = " ".join(str(error).split()) or "no message"
    return f"line {number}: {text}" if isinstance(error, ValueError | OSError) else f"line {number}: {type(error).__name__}: {text}"


def _digest(order: Order, files: str, made_by: Mapping[str, Any]) -> str:
    """Of everything that decides about an order's pictures."""
    return hashlib.sha256(json.dumps([order_json(order), made_by, files], sort_keys=True).encode()).hexdigest()[:16]


def known_results(folder: Path) -> dict[str, dict[str, Any]]:
    """What earlier runs into this folder made, by name: the last entry of each; a line that was cut off is left out."""
    path = folder / RESULTS
    known: dict[str, dict[str, Any]] = {}
    for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and entry.get("status") == "made" and isinstance(entry.get("name"), str):
            known[entry["name"]] = entry
    return known


class Prepared:
    """An order whose pictures are to be painted; those that a run before this one left whole are not painted again."""

    def __init__(
        self, line: Line, files: str, digest: str, jobs: list[Job], notes: tuple[str, ...], photos: list[Path],
        there: Sequence[Mapping[str, Any] | None], seconds: float,
    ) -> None:  # fmt: skip
        """
        Args:
            there: how each picture that is there came out; None: it is to be painted.
        """
        assert line.order is not None
        self.line, self.order, self.files, self.digest, self.jobs, self.seconds = line, line.order, files, digest, jobs, seconds
        self.notes, self.photos, self.is_done = list(notes), photos, False
        self.scores: dict[int, float | None] = {}
        self.people: dict[int, tuple[dict[str, Any], ...]] = {}
        self.left = [k for k, said in enumerate(there) if said is None]
        for k, said in enumerate(there):
            self.hear(k, said or {})

    def hear(self, k: int, said: Mapping[str, Any]) -> None:
        """What is known of a picture, now or from the run that made it."""
        if "score" in said:
            self.scores[k] = said["score"]
        if "people" in said:
            self.people[k] = tuple(said["people"])
        self.notes += [note for note in said.get("notes", ()) if note not in self.notes]
        self.seconds += float(said.get("seconds", 0.0))


def _about(path: Path) -> dict[str, Any]:
    """What a picture's file says of itself; nothing where there is none of ours, or not a whole one."""
    try:
        return read_metadata(path) if path.is_file() else {}
    except InputError:
        return {}


def run_batch(
    studio: Family,
    lines: Sequence[Line],
    into: Into,
    on_picture: Callable[[int], None] = lambda count: None,
) -> Iterator[Result]:
    """Carry out a manifest's lines; pictures are written as they come, and results as lines are done, to `results.jsonl` beside them.

    A run that was stopped goes on: pictures that are there, made by the same order from the same files and model, are kept.

    Args:
        on_picture: hears of pictures as they are done or kept.
    """
    folder = into.folder
    known = known_results(folder)
    latest: dict[str, Mapping[str, Any]] = dict(known)
    failed: list[Mapping[str, Any]] = []

    def noted(result: Result) -> Result:
        entry = {"manifest": into.manifest, **asdict(result)}
        if result.status != "kept":
            _append(folder, entry)
        if result.status == "made":
            latest[result.name] = entry
        elif result.status == "failed":
            if latest.get(result.name, {}).get("manifest") == into.manifest:
                del latest[result.name]  # what an earlier order of this name made is not what is asked for now
            failed.append(entry)
        return result

    spared = {file.resolve() for line in lines if line.order is not None for file in line.order.files}  # no line's picture takes what another one reads
    for first in range(0, len(lines), AT_ONCE):
        ready: list[Prepared] = []
        for line in lines[first : first + AT_ONCE]:
            result = _prepared(studio, line, into, known, spared)
            if isinstance(result, Prepared):
                ready.append(result)
                on_picture(line.count - len(result.left))
                continue
            on_picture(max(1, line.count))
            yield noted(result)
        for result in _painted(studio, ready, into, on_picture):
            yield noted(result)
    _rewrite(folder, [*latest.values(), *failed])


def _prepared(studio: Family, line: Line, into: Into, known: Mapping[str, dict[str, Any]], spared: Collection[Path]) -> Prepared | Result:
    if line.order is None:
        return Result(line.name, line.number, "failed", line.error)
    try:
        began, files = time.monotonic(), files_digest(line.order)
        digest, outputs = _digest(line.order, files, into.made_by), [into.folder / f for f in line.files]
        said = [_about(path) for path in outputs]
        there = [about.get(RESULT) or {} if about.get("digest") == digest else None for about in said]  # this very order made those
        if known.get(line.name, {}).get("digest") == digest and None not in there:
            return Result(line.name, line.number, "kept", files=tuple(line.files), digest=digest)
        spare_resolved(outputs, spared)
        for path, about, kept in zip(outputs, said, there, strict=True):
            if kept is None and path.exists() and about.get("manifest") != into.manifest:
                whose = f"is a picture of {about['manifest']}" if about.get("manifest") else "is no picture of this manifest"
                raise InputError(f"{path} is there already and {whose}; give this line another id, or choose another --out")
        jobs, notes, photos = jobs_of(line.order, studio)
        return Prepared(line, files, digest, jobs, notes, photos, there, time.monotonic() - began)
    except Exception as error:
        return Result(line.name, line.number, "failed", _said(line.number, error))


def _painted(studio: Family, ready: Sequence[Prepared], into: Into, on_picture: Callable[[int], None]) -> Iterator[Result]:
    """Pictures of prepared orders, together as far as that goes; when something fails, one by one, so that only the order at fault is lost."""

    def those(some: Sequence[Prepared], after: tuple[int, float]) -> Iterator[Result]:
        left = [(p, k) for p in some for k in p.left]
        for i, made in studio.paint_jobs([p.jobs[k] for p, k in left], retries=after[0], refine=after[1]):
            p, k = left[i]
            _write(studio, p, k, made, into)
            on_picture(1)
            if not p.left:
                yield _done(p)

    for after in sorted({(p.order.retries, p.order.refine_faces) for p in ready}):
        mine = [p for p in ready if (p.order.retries, p.order.refine_faces) == after]
        yield from (_done(p) for p in mine if not p.left)  # all of it was there, but not its result
        try:
            yield from those([p for p in mine if p.left], after)
        except Exception:
            for p in mine:
                if p.is_done:
                    continue
                try:
                    yield from those([p], after)
                except Exception as error:
                    on_picture(len(p.left))
                    yield Result(p.line.name, p.line.number, "failed", _said(p.line.number, error), tuple(p.notes))


def _write(studio: Family, p: Prepared, k: int, made: Made, into: Into) -> None:
    """One picture, judged and written; what is known of it stands in the file, for a run that goes on after this one."""
    began = time.monotonic()
    said: dict[str, Any] = {"notes": list(made.notes)}
    if into.score and studio.judges and p.photos:
        said["score"] = studio.likeness(made.pixels, read_image(p.photos[0]), which=p.order.which)
    if len(made.matches) > 1:
        said["people"] = [m.to_json() for m in made.matches]
    said["seconds"] = round(made.seconds + time.monotonic() - began, 3)
    about = {**about_picture(p.order, p.jobs[k], made, p.files), **into.made_by}
    about |= {"memory": studio.preset, "manifest": into.manifest, "digest": p.digest, RESULT: said}
    write_image(into.folder / p.line.files[k], made.pixels, about)
    p.hear(k, said)
    p.left.remove(k)


def _done(p: Prepared) -> Result:
    p.is_done = True
    pictures = range(len(p.line.files))
    scores = tuple(p.scores.get(k) for k in pictures) if p.scores else ()
    people = tuple(p.people.get(k, ()) for k in pictures) if p.people else ()
    files, seconds = tuple(p.line.files), round(p.seconds, 3)
    return Result(p.line.name, p.line.number, "made", "", tuple(p.notes), seconds, files, scores, people, order_json(p.order), p.digest)


def _append(folder: Path, entry: Mapping[str, Any]) -> None:
    path = folder / RESULTS
    with open(path, "a+b") as f:
        if f.tell():
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":  # the end of a run that was killed
                f.write(b"\n")
        f.write((json.dumps(entry, default=str) + "\n").encode())


def _rewrite(folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """One entry a line at the end of a run: everything that was ever made here, and what failed this time."""
    with written_whole(folder / RESULTS) as partial:
        partial.write_text("".join(json.dumps(e, default=str) + "\n" for e in entries))
