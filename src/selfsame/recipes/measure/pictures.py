"""A table's pictures as files: a run that was stopped goes on, anybody can look at them, and another tool's are judged by the same names."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from selfsame.data.shards import write_json
from selfsame.images.files import InputError, read_image, read_json, write_image
from selfsame.mannequins.world import SIZE
from selfsame.recipes.measure.protocols import Task, canonical_kps, reference_photo
from selfsame.recipes.revision import revision
from selfsame.weights.mannequin import manifest

PHOTOS = 4  # of each person that a protocol hands out
Paint = Callable[[Sequence[Task]], list[np.ndarray]]


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
        self.folder, self.asked = out / "pictures", [manifest()["files"], revision(), asked]
        self.seconds: dict[str, float] = {}  # a picture of each row; nan for rows that an earlier run painted

    def row(self, name: str, tasks: Sequence[Task], paint: Paint, tick: Callable[[int], None], mark: Any = "") -> list[np.ndarray]:
        """The pictures of a row, of which those are painted that are not there yet.

        Args:
            tasks: one person's beside one another.
            paint: paints some tasks of one person and says so to `tick` itself.
            mark: what else tells this row's pictures from another's of its name.
        """
        key = hashlib.sha256(json.dumps([self.asked, name, mark], sort_keys=True, default=str).encode()).hexdigest()[:8]
        folder = self.folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        painted, began = 0, time.monotonic()
        images: list[np.ndarray] = []
        for _, mine in groupby(zip(tasks, names_of(tasks), strict=True), key=lambda pair: pair[0].person):
            asked = [(t, folder / file) for t, file in mine]
            missing = [(t, path) for t, path in asked if not path.exists()]
            tick(len(asked) - len(missing))
            for (_, path), image in zip(missing, paint([t for t, _ in missing]) if missing else (), strict=True):
                write_image(path, image)
            painted += len(missing)
            images += [read_image(path) for _, path in asked]
        self.seconds[name] = (time.monotonic() - began) / painted if painted == len(tasks) else float("nan")
        return images


def hand_out(p: dict[str, Any], tasks: Sequence[Task], out: Path) -> Path:
    """What a protocol asks for, as any other tool can take it: `asked.json` and `photos/`; `theirs` reads its answers."""
    (out / "photos").mkdir(parents=True, exist_ok=True)
    people = list(dict.fromkeys(t.person for t in tasks))
    for person in people:
        for k in range(PHOTOS):
            write_image(out / "photos" / f"{person:03d}-{k}.png", reference_photo(p["split"], person, k).image)
    asked = [
        {"file": file, "photos": [f"photos/{t.person:03d}-{k}.png" for k in range(PHOTOS)], "prompt": t.prompt, "seed": t.seed, "size": [SIZE, SIZE]}
        | {"kps": canonical_kps(t.view)[0].round(2).tolist()}
        for t, file in zip(tasks, names_of(tasks), strict=True)
    ]
    path = out / "asked.json"
    write_json(path, {"protocol": p["name"], "pictures": asked})
    return path


def theirs(folder: Path, tasks: Sequence[Task], protocol: str) -> tuple[list[np.ndarray], list[str]]:
    """Another tool's answers, and what a report must say of those that cannot be judged: they are blank, so nobody is found in them.

    Args:
        protocol: that is judged by; `asked.json` in the folder or beside it says which was answered.

    Raises:
        InputError: none of them is there, or they answer another protocol.
    """
    names = names_of(tasks)
    if not any((folder / name).is_file() for name in names):
        raise InputError(
            f"{folder}: none of the protocol's pictures is here, such as {names[0]}; `selfsame evaluate identity --ask` writes what each shall show"
        )
    images, notes = [], []
    asked = next((path for path in (folder / "asked.json", folder.resolve().parent / "asked.json") if path.is_file()), None)
    if asked is None:
        notes.append(f"{folder}: no asked.json in it or beside it; the pictures are taken for answers to {protocol}")
    elif (asks := read_json(asked).get("protocol")) != protocol:
        raise InputError(f"{asked}: asks protocol {asks}, this version judges by {protocol}: write the questions anew with --ask and answer those")
    for name in names:
        image = np.full((SIZE, SIZE, 3), 127, np.uint8)
        try:
            found = read_image(folder / name)
            if found.shape[0] != found.shape[1]:
                raise InputError(f"{folder / name}: {found.shape[1]} x {found.shape[0]}, not square")
            image = found if len(found) == SIZE else cv2.resize(found, (SIZE, SIZE), interpolation=cv2.INTER_AREA if len(found) > SIZE else cv2.INTER_CUBIC)
        except InputError as error:
            notes.append(f"counts as without a face: {error}")
        images.append(image)
    return images, notes
