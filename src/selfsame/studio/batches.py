"""Many pictures from a manifest: one order a line, each picture beside others of its kind, a bad line never in the way of the rest."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfsame.images.files import InputError, write_image
from selfsame.studio.family import Family, Job
from selfsame.studio.orders import Order, order_json
from selfsame.studio.ready import jobs_of
from selfsame.studio.request import Made

RESULTS = "results.jsonl"
AT_ONCE = 256  # lines that are read and prepared together
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FILES = ("face", "identity", "people", "poses", "pose", "start")


@dataclass(frozen=True)
class Line:
    """One line of a manifest."""

    number: int  # from 1
    name: str
    order: Order | None
    error: str = ""


@dataclass(frozen=True)
class Result:
    """What became of a line."""

    name: str
    line: int
    status: str  # made, kept (it was there already) or failed
    error: str = ""
    seconds: float = 0.0
    files: tuple[str, ...] = ()
    scores: tuple[float | None, ...] = ()  # of each picture: the judge's cosine with the photo; None: no face
    people: tuple[tuple[dict[str, Any], ...], ...] = ()  # of each picture with several people: who was found where
    parameters: Mapping[str, Any] | None = None
    digest: str = ""  # of the order and its files


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
        raw: list[tuple[int, Any]] = _table(path, text)
    elif path.suffix in (".jsonl", ".ndjson"):
        raw = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    else:
        raise InputError(f"{path}: a manifest ends in .jsonl or .csv")
    if not raw:
        raise InputError(f"{path}: holds no orders")
    lines: list[Line] = []
    taken: set[str] = set()
    for number, content in raw:
        line = _line(number, content, path.parent)
        if line.order and line.name in taken:
            line = Line(number, line.name, None, f"line {number}: the id {line.name!r} was used above; give every line its own")
        taken.add(line.name)
        lines.append(line)
    return lines


def _table(path: Path, text: str) -> list[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num} is no table row ({error})") from None
    return [(n, {k: v for k, v in row.items() if v != ""} if None not in row else "") for n, row in rows]


def _line(number: int, content: Any, folder: Path) -> Line:
    name = f"{number:04d}"
    try:
        values = json.loads(content) if isinstance(content, str) and content else content
        if not isinstance(values, dict):
            raise InputError("is no JSON object" if content else "has more cells than the header")
        name = str(values.pop("id", name))
        if not NAME.fullmatch(name):
            raise InputError(f"id {name!r}: give letters, digits, '.', '-' and '_', beginning with a letter or digit")
        order = Order.of(values, folder)
        _ = order.request  # checks itself
        return Line(number, name, order)
    except json.JSONDecodeError as error:
        return Line(number, name, None, f"line {number}: is no JSON ({error.msg} at {error.pos})")
    except ValueError as error:
        return Line(number, name, None, f"line {number}: {error}")


def _digest(order: Order) -> str:
    """Of everything that decides about an order's pictures."""
    said = hashlib.sha256(json.dumps(order_json(order), sort_keys=True).encode())
    paths = [p for name in FILES for p in _paths(getattr(order, name))]
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                said.update(hashlib.sha256(file.read_bytes()).digest())
    return said.hexdigest()[:16]


def _paths(value: Any) -> Sequence[Path]:
    return value if isinstance(value, tuple) else [value] if value is not None else []


def known_results(folder: Path) -> dict[str, dict[str, Any]]:
    """What an earlier run into this folder made, by name; a line that was cut off is left out."""
    path = folder / RESULTS
    known: dict[str, dict[str, Any]] = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(text)
        except json.JSONDecodeError:
            continue
        known[entry["name"]] = entry
    return known


class Prepared:
    """An order whose pictures are to be painted."""

    def __init__(self, line: Line, order: Order, digest: str, jobs: list[Job], notes: tuple[str, ...], photos: list[np.ndarray]) -> None:
        self.line, self.order, self.digest, self.jobs, self.notes, self.photos = line, order, digest, jobs, notes, photos
        self.made: dict[int, Made] = {}
        self.seconds, self.is_done = 0.0, False


def run_batch(
    studio: Family, lines: Sequence[Line], folder: Path, *, score: bool = True, on_picture: Callable[[int], None] = lambda count: None
) -> Iterator[Result]:
    """Carry out a manifest's lines; results come as lines are done, and are written to `results.jsonl` in the folder at once.

    A run that was stopped goes on: lines whose pictures are there, made by the same order from the same files, are kept.

    Args:
        folder: for pictures and results; it must exist.
        score: whether the judge looks at each picture with one person.
        on_picture: hears of pictures as they are done or kept.
    """
    known = known_results(folder)
    for first in range(0, len(lines), AT_ONCE):
        ready: list[Prepared] = []
        for line in lines[first : first + AT_ONCE]:
            result = _prepared(studio, line, folder, known)
            if isinstance(result, Prepared):
                ready.append(result)
                continue
            if result.status == "failed":
                _append(folder, result)
            on_picture(max(1, len(result.files)))
            yield result
        jobs = [(p, k) for p in ready for k in range(len(p.jobs))]
        yield from _painted(studio, jobs, folder, score, on_picture)


def _prepared(studio: Family, line: Line, folder: Path, known: Mapping[str, dict[str, Any]]) -> Prepared | Result:
    if line.order is None:
        return Result(line.name, line.number, "failed", line.error)
    try:
        digest = _digest(line.order)
        before = known.get(line.name, {})
        if before.get("status") == "made" and before.get("digest") == digest and all((folder / f).is_file() for f in before["files"]):
            return Result(line.name, line.number, "kept", files=tuple(before["files"]), digest=digest)
        return Prepared(line, line.order, digest, *jobs_of(line.order, studio))
    except (ValueError, OSError) as error:
        return Result(line.name, line.number, "failed", f"line {line.number}: {' '.join(str(error).split())}")


def _painted(studio: Family, jobs: Sequence[tuple[Prepared, int]], folder: Path, score: bool, on_picture: Callable[[int], None]) -> Iterator[Result]:
    """Pictures of prepared orders, together as far as that goes; when something fails, one by one, so that only the order at fault is lost."""
    for after in sorted({(p.order.retries, p.order.refine_faces) for p, _ in jobs}):
        mine = [(p, k) for p, k in jobs if (p.order.retries, p.order.refine_faces) == after]
        try:
            yield from _those(studio, mine, after, folder, score, on_picture)
        except (ValueError, RuntimeError):
            for prepared in dict.fromkeys(p for p, _ in mine):
                left = [(prepared, k) for k in range(len(prepared.jobs)) if k not in prepared.made]
                if prepared.is_done:
                    continue
                try:
                    yield from _those(studio, left, after, folder, score, on_picture)
                except (ValueError, RuntimeError) as error:
                    result = Result(prepared.line.name, prepared.line.number, "failed", f"line {prepared.line.number}: {' '.join(str(error).split())}")
                    _append(folder, result)
                    yield result


def _those(
    studio: Family, jobs: Sequence[tuple[Prepared, int]], after: tuple[int, float], folder: Path, score: bool, on_picture: Callable[[int], None]
) -> Iterator[Result]:  # fmt: skip
    began = time.monotonic()
    for i, made in studio.paint_jobs([p.jobs[k] for p, k in jobs], retries=after[0], refine=after[1]):
        prepared, k = jobs[i]
        now = time.monotonic()
        prepared.seconds, began = prepared.seconds + now - began, now
        prepared.made[k] = made
        on_picture(1)
        if len(prepared.made) == len(prepared.jobs):
            result = _written(studio, prepared, folder, score)
            _append(folder, result)
            yield result


def _written(studio: Family, p: Prepared, folder: Path, score: bool) -> Result:
    names, scores, people = [], [], []
    for k, made in sorted(p.made.items()):
        name = f"{p.line.name}.png" if len(p.jobs) == 1 else f"{p.line.name}-{k + 1}.png"
        write_image(folder / name, made.pixels, {"request": made.request.to_json(), "order": p.order.extras})
        names.append(name)
        if score and p.photos and studio.judges:
            scores.append(studio.likeness(made.pixels, p.photos[0], which=p.order.which))
        if made.matches:
            people.append(tuple({"person": m.person, "in_place": m.ok, "alike": m.likeness} for m in made.matches))
    p.made.clear()
    p.is_done = True
    notes = "; ".join(p.notes)
    return Result(p.line.name, p.line.number, "made", notes, round(p.seconds, 3), tuple(names), tuple(scores), tuple(people), order_json(p.order), p.digest)


def _append(folder: Path, result: Result) -> None:
    with open(folder / RESULTS, "a") as f:
        f.write(json.dumps(asdict(result), default=str) + "\n")
