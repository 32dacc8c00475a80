"""A table's pictures as files: a run that was stopped goes on, anybody can look at them, and another tool's are judged by the same names."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from selfsame.images.files import InputError, read_image, read_json, write_image, write_json
from selfsame.mannequins.world import SIZE
from selfsame.recipes.measure.protocols import Task, canonical_kps, reference_photo
from selfsame.recipes.revision import source_digest
from selfsame.weights.mannequin import manifest

THEIRS = "pictures of "  # how a row of another tool's pictures is called, with its folder's name
PHOTOS = 4  # of each person that a protocol hands out
Paint = Callable[[Sequence[Task]], list[np.ndarray]]


@dataclass(frozen=True)
class Part:
    """Somebody who shall stand in a picture."""

    person: int  # index in the split
    kps: np.ndarray  # 5 2 pixels
    share: float = 1.0  # of a face mixed from several people


@dataclass(frozen=True)
class Question:
    """One picture that a protocol asks for."""

    file: str
    prompt: str
    seed: int
    height: int
    width: int
    parts: tuple[Part, ...]  # from left to right, or one face mixed of them


def questions_of(tasks: Sequence[Task]) -> list[Question]:
    """The identity protocol's."""
    return [Question(file, t.prompt, t.seed, SIZE, SIZE, (Part(t.person, canonical_kps(t.view)[0]),)) for t, file in zip(tasks, names_of(tasks), strict=True)]


def names_of(tasks: Sequence[Task]) -> list[str]:
    """File names: the person, and which of the person's pictures."""
    counts: dict[int, int] = {}
    names = []
    for t in tasks:
        counts[t.person] = counts.get(t.person, -1) + 1
        names.append(f"{t.person:03d}-{counts[t.person]}.png")
    return names


class Kept:
    """Rows' pictures below `out/pictures`, each row in a folder whose name tells by which weights, code and questions it was painted."""

    def __init__(self, out: Path, asked: Any) -> None:
        """
        Args:
            asked: whatever pictures depend on besides the weights that ship.
        """
        self.folder, self.asked = out / "pictures", [manifest()["files"], source_digest(), asked]
        self.seconds: dict[str, float] = {}  # a picture of each row; nan for rows that an earlier run painted

    def row(self, name: str, tasks: Sequence[Task], paint: Paint, tick: Callable[[int], None], mark: Any = "") -> list[np.ndarray]:
        """The pictures of a row, of which those are painted that are not there yet.

        Args:
            tasks: one person's beside one another.
            paint: paints some tasks of one person and says so to `tick` itself.
            mark: what else tells this row's pictures from another's of its name.
        """
        return self.files(name, names_of(tasks), [t.person for t in tasks], lambda at: paint([tasks[i] for i in at]), tick, mark)

    def files(
        self,
        name: str,
        files: Sequence[str],
        groups: Sequence[Hashable],
        paint: Callable[[Sequence[int]], Sequence[np.ndarray]],
        tick: Callable[[int], None],
        mark: Any = "",
    ) -> list[np.ndarray]:
        """The pictures of a row by their files' names.

        Args:
            groups: of each file; neighbours of one group are painted together.
            paint: paints some files of one group, by their numbers, and says so to `tick` itself.
        """
        key = hashlib.sha256(json.dumps([self.asked, name, mark], sort_keys=True, default=str).encode()).hexdigest()[:8]
        folder = self.folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        painted, began = 0, time.monotonic()
        images: list[np.ndarray] = []
        for _, mine in groupby(range(len(files)), key=lambda i: groups[i]):
            numbers = list(mine)
            missing = [i for i in numbers if not (folder / files[i]).exists()]
            tick(len(numbers) - len(missing))
            for i, image in zip(missing, paint(missing) if missing else (), strict=True):
                write_image(folder / files[i], image)
            painted += len(missing)
            images += [read_image(folder / files[i]) for i in numbers]
        self.seconds[name] = (time.monotonic() - began) / painted if 0 < painted == len(files) else float("nan")
        return images


def hand_out(p: Mapping[str, Any], questions: Sequence[Question], out: Path) -> Path:
    """What a protocol asks for, as any other tool can take it: `asked.json` and `photos/`; `theirs` reads its answers."""
    (out / "photos").mkdir(parents=True, exist_ok=True)
    for person in dict.fromkeys(part.person for q in questions for part in q.parts):
        for k in range(PHOTOS):
            write_image(out / "photos" / f"{person:03d}-{k}.png", reference_photo(p["split"], person, k).image)
    asked = [
        {"file": q.file, "prompt": q.prompt, "seed": q.seed, "size": [q.height, q.width]}
        | {
            "people": [
                {"photos": [f"photos/{part.person:03d}-{k}.png" for k in range(PHOTOS)], "kps": part.kps.round(2).tolist(), "share": part.share}
                for part in q.parts
            ]
        }
        for q in questions
    ]
    path = out / "asked.json"
    write_json(path, {"protocol": p["name"], "pictures": asked})
    return path


def _asked_by(path: Path) -> str:
    """The protocol that wrote an asked.json."""
    content = read_json(path)
    if not isinstance(content, dict) or "protocol" not in content:
        raise InputError(f"{path}: not what --ask writes; write the questions anew with --ask, or take this file away")
    return str(content["protocol"])


def theirs(folder: Path, questions: Sequence[Question], protocol: str) -> tuple[list[np.ndarray], list[str]]:
    """Another tool's answers, and what a report must say of those that cannot be judged: they are blank, so nobody is found in them.

    Args:
        protocol: that is judged by; `asked.json` in the folder or beside it says which was answered.

    Raises:
        InputError: none of them is there, or they answer another protocol.
    """
    if not any((folder / q.file).is_file() for q in questions):
        raise InputError(f"{folder}: none of the protocol's pictures is here, such as {questions[0].file}; --ask writes what each shall show")
    images, notes = [], []
    asked = next((path for path in (folder / "asked.json", folder.resolve().parent / "asked.json") if path.is_file()), None)
    if asked is None:
        notes.append(f"{folder}: no asked.json in it or beside it; the pictures are taken for answers to {protocol}")
    elif (asks := _asked_by(asked)) != protocol:
        raise InputError(f"{asked}: asks protocol {asks}, this version judges by {protocol}: write the questions anew with --ask and answer those")
    for q in questions:
        image = np.full((q.height, q.width, 3), 127, np.uint8)
        try:
            found = read_image(folder / q.file)
            height, width = found.shape[:2]
            if abs(height * q.width - width * q.height) > max(q.height, q.width):  # a pixel of rounding
                raise InputError(f"{folder / q.file}: {width} x {height}, not of the shape that was asked for, {q.width} x {q.height}")
            how = cv2.INTER_AREA if height > q.height else cv2.INTER_CUBIC
            image = found if (height, width) == (q.height, q.width) else cv2.resize(found, (q.width, q.height), interpolation=how)
        except InputError as error:
            notes.append(f"counts as without a face: {error}")
        images.append(image)
    return images, notes
