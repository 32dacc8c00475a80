"""Anybody's folder of pictures, judged: how alike each is to its person, whether a photo was copied, how different one person's pictures are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch.nn.functional as F

from selfsame.evaluation.metrics import bootstrap_interval, copy_paste, is_first, mean
from selfsame.evaluation.report import Case, Report, Row, write_report
from selfsame.images.files import InputError, read_image
from selfsame.perception.embedders import ENCODER_CROP, embed, to_crops
from selfsame.perception.real_faces import reader_of
from selfsame.studio.ready import PICTURES
from selfsame.studio.studio import ENCODER_NAME, Studio

WORST = 24  # pictures that the page shows first
See = Callable[[np.ndarray], np.ndarray | None]  # a picture -> unit vector of its largest face, None without one


@dataclass(frozen=True)
class FaceJudge:
    """A face encoder that scores."""

    name: str
    see: See
    is_conditioner: bool = False  # it also made the pictures: its scores flatter them


@dataclass
class Known:
    """A person: photos, the first of which the pictures were made from."""

    name: str
    photos: list[Path]
    pictures: list[Path] = field(default_factory=list)


def judge_called(name: str, studio: Studio, conditioner: str) -> FaceJudge:
    """The miniature's `judge` or `encoder`, or a folder of real face models.

    Raises:
        InputError: it is neither.
    """
    flagged = name == conditioner
    if name == "judge":

        def see(image: np.ndarray) -> np.ndarray | None:
            vector = studio.judged(image)
            return None if vector is None else vector.numpy()

        return FaceJudge(name, see, flagged)
    if name == "encoder":

        def read(image: np.ndarray) -> np.ndarray | None:
            found = studio.faces(image)
            return F.normalize(embed(studio.encoder, to_crops([image], [found[0].kps], ENCODER_CROP))[0], dim=0).numpy() if found else None

        return FaceJudge(name, read, flagged or conditioner == ENCODER_NAME)
    if not Path(name).is_dir():
        raise InputError(f"judge {name!r}: choose judge or encoder (the miniature's), or a folder of face models such as antelopev2's")
    reader = reader_of(Path(name))

    def look(image: np.ndarray) -> np.ndarray | None:
        found = reader(image)
        return None if not found else found[0].embedding / np.linalg.norm(found[0].embedding)

    return FaceJudge(reader.name, look, conditioner in (name, reader.name))


def people_in(pictures: Path, references: Path) -> list[Known]:
    """Whose pictures a folder holds: `ada.png`, `ada-1.png`, `ada_beach.png` or all of `ada/` belong to the reference `ada.png` or `ada/`; the longest fits.

    Raises:
        InputError: a folder is missing, has no pictures, or pictures of nobody.
    """
    for folder in (pictures, references):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
    known = {}
    for entry in sorted(references.iterdir()):
        photos = sorted(p for p in entry.iterdir() if p.suffix.lower() in PICTURES) if entry.is_dir() else [entry] if entry.suffix.lower() in PICTURES else []
        if photos:
            known[entry.stem if entry.is_file() else entry.name] = Known(entry.stem if entry.is_file() else entry.name, photos)
    if not known:
        raise InputError(f"{references}: no pictures; put a photo NAME.png or a folder of photos NAME/ there for each person")
    files = sorted(p for p in pictures.rglob("*") if p.suffix.lower() in PICTURES)
    if not files:
        raise InputError(f"{pictures}: no pictures in this folder")
    strangers = []
    for path in files:
        label = path.relative_to(pictures).as_posix()
        fitting = [n for n in known if label.startswith(n) and not label[len(n) : len(n) + 1].isalnum()]
        if fitting:
            known[max(fitting, key=len)].pictures.append(path)
        else:
            strangers.append(label)
    if len(strangers) == len(files):
        raise InputError(f"{pictures}: {strangers[0]} and the others are named after nobody in {references}; a picture of ada.png is called ada-1.png")
    return [k for k in known.values() if k.pictures]


def folder(
    pictures: Path,
    references: Path,
    out: Path,
    *,
    judges: Sequence[str] = ("judge",),
    conditioner: str = "",
    on_progress: Callable[[float, str], None] = lambda share, note: None,
) -> Report:
    """Judge image files, whoever made them.

    Args:
        judges: any number of `judge`, `encoder` (the miniature's) and folders of real face models.
        conditioner: what the pictures were conditioned on, by the same names: flagged where it judges.

    Raises:
        InputError: a folder or judge that cannot be used.
    """
    people = people_in(pictures, references)
    studio = Studio()
    seers = [judge_called(name, studio, conditioner) for name in judges]
    count = sum(len(p.pictures) + len(p.photos) for p in people) * len(seers)
    rows, cases, notes = [], [], []
    for judge in seers:
        seen: dict[Path, np.ndarray | None] = {}
        for person in people:
            for path in (*person.photos, *person.pictures):
                try:
                    seen[path] = judge.see(read_image(path))
                except InputError as error:
                    seen[path] = None
                    notes.append(f"left as without a face: {error}")
                on_progress(1 / count, judge.name)
        scores = _scores(people, seen)
        if not scores:
            raise InputError(f"{judge.name} finds no face in any reference; use photos with an upright, whole face")
        low, high = bootstrap_interval([s["cosine"] for s in scores], [int(s["person"]) for s in scores])
        columns: dict[str, float | str] = {"pictures": float(len(scores)), "cosine": mean([s["cosine"] for s in scores]), "95 %": f"{low:.3f}..{high:.3f}"}
        columns |= {key: mean([s[key] for s in scores]) for key in ("first of all", "copy-paste", "no face")}
        columns["alike among themselves"] = mean([v for p in people for v in _among(p, seen)])
        rows.append(Row(judge.name + (" (also the conditioner)" if judge.is_conditioner else ""), columns))
        if not cases:
            cases = _worst(people, scores)
    if any(j.is_conditioner for j in seers):
        notes.append("a judge that also conditioned the pictures flatters them: compare such rows with nothing else")
    notes.append("a picture without a face counts as cosine 0 and as missed")
    notes.append("copy-paste needs a second photo: (cosine to the photo - cosine to the other) / (1 - the photos' own)")
    notes.append("'alike among themselves' is the mean cosine between pictures of one person: near 1 the pictures repeat one face, expression and all")
    about = {"pictures": str(pictures), "references": str(references), "judges": list(judges), "people": len(people)}
    report = Report("A folder of pictures", about, rows, (), sorted(set(notes)), (), cases)
    write_report(report, out)
    return report


def _scores(people: Sequence[Known], seen: Mapping[Path, np.ndarray | None]) -> list[dict[str, float]]:
    """One row of numbers a picture, of people whose first photo shows a face; in their order."""
    able = [p for p in people if seen[p.photos[0]] is not None]
    gallery = np.stack([seen[p.photos[0]] for p in able]) if able else np.zeros((0, 1))  # type: ignore[misc]
    rows = []
    for i, person in enumerate(able):
        others = [v for v in (seen[p] for p in person.photos[1:]) if v is not None]
        for k, path in enumerate(person.pictures):
            vector = seen[path]
            copied = [copy_paste(vector, gallery[i], other) for other in others] if vector is not None else []
            rows.append(
                {
                    "person": float(people.index(person)),
                    "picture": float(k),
                    "cosine": 0.0 if vector is None else float(gallery[i] @ vector),
                    "first of all": float(is_first(vector, gallery, i)),
                    "copy-paste": mean(copied) if copied else float("nan"),
                    "no face": float(vector is None),
                }
            )
    return rows


def _among(person: Known, seen: Mapping[Path, np.ndarray | None]) -> list[float]:
    vectors = [v for v in (seen[p] for p in person.pictures) if v is not None]
    return [float(a @ b) for a, b in combinations(vectors, 2)]


def _worst(people: Sequence[Known], scores: Sequence[Mapping[str, float]]) -> list[Case]:
    """Pictures beside their photos, the least alike first."""
    cases = []
    for s in sorted(scores, key=lambda s: s["cosine"])[:WORST]:
        person = people[int(s["person"])]
        path = person.pictures[int(s["picture"])]
        said = "no face found" if s["no face"] else f"cosine {s['cosine']:.2f}" + ("" if s["first of all"] else ", taken for somebody else")
        cases.append(Case(f"{path.name}: {said}", [x for x in (_readable(person.photos[0]), _readable(path)) if x is not None]))
    return cases


def _readable(path: Path) -> np.ndarray | None:
    try:
        return read_image(path)
    except InputError:
        return None
