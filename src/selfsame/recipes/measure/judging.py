"""How pictures are judged: whom the judge sees, what the reader reads, where the points are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from selfsame.evaluation.metrics import bootstrap_interval, copy_paste, is_first, mean, point_error
from selfsame.evaluation.report import WORST, Case, Row, span
from selfsame.mannequins.attributes import STYLES
from selfsame.mannequins.people import SPLITS, split_person
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import WORLD_VERSION, neutral_scene
from selfsame.models.latents import encode
from selfsame.perception.embedders import JUDGE_CROP, embed, to_crops
from selfsame.perception.reader import AttributeReader, agreement, perceptual_distance, read
from selfsame.recipes.common import to_pixels
from selfsame.recipes.measure.protocols import Task, canonical_kps, oracle_picture, reference_photo
from selfsame.recipes.revision import revision
from selfsame.studio.studio import Studio
from selfsame.weights import mannequin

COLUMNS = {  # a picture's numbers, and what tables call their means
    "rank1": "rank-1 of 100", "matched": "of 20 matched", "cosine": "cosine", "attributes": "attributes", "kps": "kps error", "no_face": "no face",
    "copied": "copy-paste", "alike": "alike among themselves",
}  # fmt: skip
INTERVALS = {"rank1": "rank-1", "matched": "matched", "cosine": "cosine", "attributes": "attributes"}  # numbers whose means have one, and what it is called
UNLENT = 8  # number of the photo that no row is given: copy-paste compares with it


def judge_gallery(studio: Studio, split: str, people: Sequence[int]) -> np.ndarray:
    """Unit judge vectors of one neutral render each, by exact key points. n d."""
    pictures = [draw([neutral_scene(split_person(split, i))])[0] for i in people]
    rows = embed(studio.judge, to_crops([p.image for p in pictures], [p.kps[0] for p in pictures], JUDGE_CROP))
    return F.normalize(rows, dim=1).numpy()


def matched_people(split: str, person: int, count: int = 20) -> list[int]:
    """The person and those of the split nearest in hair colour and skin."""
    who = split_person(split, person)

    def far(i: int) -> float:
        other = split_person(split, i)
        skin = np.abs(other.skin_rgb() - who.skin_rgb()).sum()
        hair = np.abs(other.hair_rgb() - who.hair_rgb()).sum()
        return float(skin + hair)

    others = sorted((i for i in range(SPLITS[split][1]) if i != person), key=far)
    return [person, *others[: count - 1]]


def reader_net() -> AttributeReader:
    net = AttributeReader()
    mannequin.load_into(net, "reader.safetensors")
    return net


@dataclass(frozen=True)
class Seen:
    """A judged picture that may be worth a look."""

    score: float  # the lower, the sooner
    said: str
    image: np.ndarray = field(repr=False)
    people: tuple[int, ...]  # who was asked for

    @classmethod
    def of_one(cls, what: str, cosine: float | None, image: np.ndarray, person: int) -> Seen:
        """A picture of one person; without a face (None) it is worse than any cosine."""
        return cls(-2.0, f"{what}: no face found", image, (person,)) if cosine is None else cls(cosine, f"{what}: cosine {cosine:.2f}", image, (person,))


def worst_of(seen: Sequence[Seen], split: str) -> list[Case]:
    """The worst pictures beside the photos of who was asked for, worst first."""
    worst = sorted(seen, key=lambda s: s.score)[:WORST]
    return [Case(s.said, [*(reference_photo(split, who, 0).image for who in s.people), s.image]) for s in worst]


class Judges:
    """The judge's gallery, the matched galleries and the reader, ready for the tasks of a protocol."""

    def __init__(self, studio: Studio, p: dict[str, Any], people: int) -> None:
        self.studio, self.reader, self.split = studio, reader_net(), p["split"]
        self.gallery = judge_gallery(studio, self.split, range(p["gallery_people"] if "gallery_people" in p else p["people"]))
        self._photos: dict[int, tuple[np.ndarray | None, np.ndarray | None]] = {}
        self.matched = {i: judge_gallery(studio, self.split, matched_people(self.split, i)) for i in range(people)}

    def kps(self, images: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        """Key points of the largest face of each picture, None where there is none."""
        found = [self.studio.faces(image) for image in images]
        return [f[0].kps if f else None for f in found]

    def vector(self, image: np.ndarray, kps: np.ndarray) -> np.ndarray:
        """The judge's unit vector of the face with these key points."""
        return F.normalize(embed(self.studio.judge, to_crops([image], [kps], JUDGE_CROP))[0], dim=0).numpy()

    def results(
        self, tasks: Sequence[Task], images: Sequence[np.ndarray], seen: Sequence[np.ndarray | None], *, asked_kps: bool = True
    ) -> list[dict[str, float]]:
        """One row of numbers a picture; no face counts as missed, and as likeness 0 wherever likeness is compared.

        Args:
            seen: the pictures' key points, as `kps` finds them.
            asked_kps: whether key points were asked for.
        """
        rows, vectors = [], []
        for task, image, found, words in zip(tasks, images, seen, read(self.reader, list(images)), strict=True):
            vector = None if found is None else self.vector(image, found)
            kps, width = canonical_kps(task.view)
            right, asked = agreement(task.attributes, words)
            vectors.append(vector)
            lent, other = self.photos(task.person)
            there = np.zeros_like(self.gallery[0]) if vector is None else vector  # no face is like nobody
            copied = float("nan") if lent is None or other is None else copy_paste(there, lent, other)
            rows.append(
                {
                    "rank1": float(is_first(vector, self.gallery, task.person)),
                    "matched": float(is_first(vector, self.matched[task.person], 0)),
                    "cosine": float(self.gallery[task.person] @ there),
                    "attributes": right / asked,
                    "kps": point_error(found if asked_kps else None, kps, width),
                    "no_face": float(found is None),
                    "copied": copied,
                }
            )
        for i, row in enumerate(rows):
            own, beside = vectors[i], [v for k, v in enumerate(vectors) if k != i and tasks[k].person == tasks[i].person]
            row["alike"] = mean([0.0 if own is None or v is None else float(own @ v) for v in beside])
        return rows

    def photos(self, person: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The judge's vectors of the photo that lends the face and of one that no row is given; None where no face is found."""
        if person not in self._photos:
            images = [reference_photo(self.split, person, k).image for k in (0, UNLENT)]
            first, other = (None if kps is None else self.vector(image, kps) for image, kps in zip(images, self.kps(images), strict=True))
            self._photos[person] = first, other
        return self._photos[person]


def face_pixels(image: np.ndarray, kps: np.ndarray) -> torch.Tensor:
    """The judge's crop of a face, enlarged for the reader: 1 3 128 128."""
    return F.interpolate(to_crops([image], [kps], JUDGE_CROP), (128, 128), mode="bilinear", align_corners=False)


def shown_face(image: np.ndarray, kps: np.ndarray | None) -> torch.Tensor | None:
    """`face_pixels`, None where no face was found."""
    return None if kps is None else face_pixels(image, kps)


def diversity(judges: Judges, a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    """How differently two faces (`face_pixels`) look, 0 when either is missing."""
    return 0.0 if a is None or b is None else float(perceptual_distance(judges.reader, a, b))


def spread(judges: Judges, images: Sequence[np.ndarray], seen: Sequence[np.ndarray | None]) -> float:
    """How differently the faces of pictures look from one another, the mean over pairs; a pair in which one shows none adds nothing."""
    faces = [shown_face(image, kps) for image, kps in zip(images, seen, strict=True)]
    return mean([diversity(judges, a, b) for a, b in combinations(faces, 2)])


def means_of(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each number that is not NaN, under its column's name."""
    return {head: mean([r[key] for r in results]) for key, head in COLUMNS.items()}


def columns_of(results: list[dict[str, float]], seconds: float, draws: int, people: Sequence[int]) -> dict[str, float | str]:
    spans = {f"95 % of {said}": span(*bootstrap_interval([r[key] for r in results], people, num_draws=draws)) for key, said in INTERVALS.items()}
    return {**means_of(results), **spans, "s": seconds}


def oracle_pictures(studio: Studio, split: str, tasks: Sequence[Task], tick: Callable[[int], None]) -> list[np.ndarray]:
    """The renderer's right pictures through the VAE: what a perfect model would give."""
    images: list[np.ndarray] = []
    for start in range(0, len(tasks), 16):
        pixels = np.stack([oracle_picture(split, t) for t in tasks[start : start + 16]])
        with torch.no_grad():
            images += studio.decode(encode(studio.vae, to_pixels(pixels)))
        tick(len(pixels))
    return images


def rows_by_style(name: str, tasks: Sequence[Task], results: Sequence[dict[str, float]]) -> list[Row]:
    """Plain means for each style that was asked for."""
    rows = []
    for style in STYLES:
        mine = [r for r, t in zip(results, tasks, strict=True) if t.attributes["style"] == style]
        if mine:
            rows.append(Row(f"{name}, {style}", {**means_of(mine)}))
    return rows


def measured_with() -> dict[str, Any]:
    """What a report must name besides its protocol: the revision of the code and every shipped weight's hash."""
    return {"commit": revision(), "weights_sha256": mannequin.manifest()["files"]}


def notes_on_weights() -> list[str]:
    """What a reader of the report must know of the weights."""
    made_for = {v["world"] for v in mannequin.manifest()["provenance"].values()}
    if made_for == {WORLD_VERSION}:
        return []
    return [f"some weights were trained on another world (versions {', '.join(sorted(made_for))}) than the one measured in ({WORLD_VERSION})"]
