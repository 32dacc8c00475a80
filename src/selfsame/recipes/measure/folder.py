"""Anybody's folder of pictures, judged: how alike each is to its person, whether a photo was copied, how different one person's pictures are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch.nn.functional as F

from selfsame.evaluation.metrics import bootstrap_interval, copy_paste, is_first, mean
from selfsame.evaluation.report import WORST, Case, Report, Row, span, write_report
from selfsame.images.files import InputError, read_image, read_metadata
from selfsame.methods.instantid.checkpoint import OFFICIAL_ENCODER
from selfsame.perception.embedders import ENCODER_CROP, embed, to_crops
from selfsame.perception.real_faces import reader_of
from selfsame.recipes.measure.judging import measured_with
from selfsame.studio.ready import is_picture
from selfsame.studio.studio import ENCODER_NAME, Studio

FLAG = " (also the conditioner)"  # behind a judge's name
See = Callable[[np.ndarray], np.ndarray | None]  # a picture -> unit vector of its largest face, None without one


@dataclass(frozen=True)
class FaceJudge:
    """A face encoder that scores."""

    name: str
    see: See
    known_as: tuple[str, ...] = ()  # what else it is called where it conditions: its encoder's name, the hash of its file

    def conditioned(self, conditioner: str) -> bool:
        """Whether it also made pictures, whose scores by it then flatter them.

        Args:
            conditioner: of the pictures, by its name or hash; "": none, or nobody knows.
        """
        return bool(conditioner) and conditioner in (self.name, *self.known_as)

    def called(self, conditioner: str) -> str:
        """Its name in a table."""
        return self.name + FLAG * self.conditioned(conditioner)


@dataclass
class Known:
    """A person: photos, the first of which the pictures were made from."""

    name: str
    photos: list[Path]
    pictures: list[Path] = field(default_factory=list)


def conditioner_called(text: str) -> str:
    """The name or hash of what conditioned pictures, said as a judge is.

    Raises:
        InputError: neither a name that is known nor a folder of face models.
    """
    if text in ("", "judge", "encoder", ENCODER_NAME, OFFICIAL_ENCODER):
        return text
    if not Path(text).is_dir():
        raise InputError(f"conditioner {text!r}: choose judge, encoder, or a folder of face models, as for --judges")
    return reader_of(Path(text)).digest


def judge_called(name: str, studio: Studio) -> FaceJudge:
    """The miniature's `judge` or `encoder`, or a folder of real face models.

    Raises:
        InputError: it is neither.
    """
    if name == "judge":

        def see(image: np.ndarray) -> np.ndarray | None:
            vector = studio.judged(image)
            return None if vector is None else vector.numpy()

        return FaceJudge(name, see)
    if name == "encoder":

        def read(image: np.ndarray) -> np.ndarray | None:
            found = studio.faces(image)
            return F.normalize(embed(studio.encoder, to_crops([image], [found[0].kps], ENCODER_CROP))[0], dim=0).numpy() if found else None

        return FaceJudge(name, read, (ENCODER_NAME,))
    if not Path(name).is_dir():
        raise InputError(f"judge {name!r}: choose judge or encoder (the miniature's), or a folder of face models such as antelopev2's")
    reader = reader_of(Path(name))

    def look(image: np.ndarray) -> np.ndarray | None:
        found = reader(image)
        return None if not found else found[0].embedding / np.linalg.norm(found[0].embedding)

    return FaceJudge(reader.name, look, (reader.name, reader.digest))


def judges_called(names: Sequence[str], studio: Studio) -> list[FaceJudge]:
    """`judge_called` of several, each under a name of its own: where two say the same of themselves, with what was asked for.

    Raises:
        InputError: one of them is no judge, or is asked for twice.
    """
    if twice := [name for k, name in enumerate(names) if name in names[:k]]:
        raise InputError(f"judge {twice[0]!r} is named twice; once will do")
    judges = [judge_called(name, studio) for name in names]
    said = [judge.name for judge in judges]
    return [replace(j, name=f"{j.name} ({asked})") if said.count(j.name) > 1 else j for j, asked in zip(judges, names, strict=True)]


def people_in(pictures: Path, references: Path) -> tuple[list[Known], list[str]]:
    """Whose pictures a folder holds: `ada.png`, `ada-1.png`, `ada_beach.png` or all of `ada/` belong to the reference `ada.png` or `ada/`; the longest fits.

    Returns:
        Everybody with a reference, also those without pictures, and the pictures of nobody.

    Raises:
        InputError: a folder is missing, has no pictures, or pictures of nobody.
    """
    for folder in (pictures, references):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
    if pictures.resolve() == references.resolve():
        raise InputError(f"{pictures}: every picture would be compared with itself; give the photos that they were made from as --references")
    known: dict[str, Known] = {}
    for entry in sorted(references.iterdir()):
        photos = sorted(p for p in (entry.iterdir() if entry.is_dir() else [entry]) if is_picture(p))
        name = entry.stem if entry.is_file() else entry.name
        if photos:
            known.setdefault(name, Known(name, [])).photos += photos
    if not known:
        raise InputError(f"{references}: no pictures; put a photo NAME.png or a folder of photos NAME/ there for each person")
    files = sorted(p for p in pictures.rglob("*") if is_picture(p) and not any(part.startswith(".") for part in p.relative_to(pictures).parts))
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
    return list(known.values()), strangers


def conditioner_of(pictures: Iterable[Sequence[Path]]) -> str:
    """Which face encoder conditioned pictures that say how they were made; "" where none does."""
    for path in (p for group in pictures for p in group):
        try:
            said = read_metadata(path) if path.suffix.lower() == ".png" else {}
        except InputError:
            continue
        model = str(said.get("model", ""))  # all that pictures said at first
        usual = ENCODER_NAME if model == "mannequin" else OFFICIAL_ENCODER if model else ""
        if encoder := str(said.get("encoder", usual)):
            return encoder
    return ""


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
        conditioner: what the pictures were conditioned on, by the same names: flagged where it judges. Pictures that selfsame made say so themselves.

    Raises:
        InputError: a folder or judge that cannot be used.
    """
    if not judges:
        raise InputError("no judge: name judge or encoder (the miniature's), or a folder of face models, with --judges")
    people, strangers = people_in(pictures, references)
    made_by = conditioner_called(conditioner) or conditioner_of(person.pictures for person in people)
    studio = Studio()
    seers = judges_called(judges, studio)
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
        scores, faceless = _scores(people, seen)
        if len(faceless) == len(people):
            raise InputError(f"{judge.name} finds no face in any reference; use photos with an upright, whole face")
        notes += [f"{judge.name}: no face in any photo of {name}: all pictures of this person count as missed" for name in faceless]
        groups = [int(s["person"]) for s in scores]
        low, high = bootstrap_interval([s["cosine"] for s in scores], groups)
        columns: dict[str, float | str] = {"pictures": str(len(scores)), "cosine": mean([s["cosine"] for s in scores]), "95 %": span(low, high)}
        columns |= {"gallery": str(len(people) - len(faceless)), "found first in it": mean([s["first"] for s in scores])}
        columns["copy-paste"] = mean([s["copied"] for s in scores])
        columns["no face"] = mean([s["no face"] for s in scores])
        columns["alike among themselves"] = mean([v for p in people for v in _among(p, seen)])
        rows.append(Row(judge.called(made_by), columns))
        if not cases:
            cases = _worst(people, scores, seen)
    if strangers:
        notes.append(f"{len(strangers)} pictures are named after nobody and were not judged, such as {strangers[0]}")
    if any(j.conditioned(made_by) for j in seers):
        notes.append("a judge that also conditioned the pictures flatters them: compare such rows with nothing else")
    notes.append("a picture without a face counts as missed, and as likeness 0 wherever likeness is compared")
    notes.append("copy-paste needs a second photo: (cosine to the photo - cosine to the other) / (1 - the photos' own)")
    notes.append("'alike among themselves' is the mean cosine between pictures of one person: near 1 the pictures repeat one face, expression and all")
    about = {"pictures": str(pictures), "references": str(references), "people": len(people), **measured_with()}
    about["judges"] = {judge.name: judge.known_as[-1] if judge.known_as else "" for judge in seers}  # with the hash of what is no file of ours
    report = Report("A folder of pictures", about, rows, (), sorted(set(notes)), (), cases)
    write_report(report, out)
    return report


def _scores(people: Sequence[Known], seen: Mapping[Path, np.ndarray | None]) -> tuple[list[dict[str, float]], list[str]]:
    """One row of numbers a picture, in the order of people, and the names of those whose photos show no face: their pictures are missed.

    A person's reference is the first photo with a face.
    """
    shown = {p.name: [v for v in (seen[path] for path in p.photos) if v is not None] for p in people}
    able = [p.name for p in people if shown[p.name]]
    gallery = np.stack([shown[name][0] for name in able]) if able else np.zeros((0, 1))
    rows = []
    for i, person in enumerate(people):
        photos = shown[person.name]
        for k, path in enumerate(person.pictures):
            vector = seen[path]
            alike, is_right, copied = 0.0, False, []
            if photos:
                there = np.zeros_like(photos[0]) if vector is None else vector  # no face is like nobody
                alike, is_right = float(photos[0] @ there), is_first(vector, gallery, able.index(person.name))
                copied = [copy_paste(there, photos[0], other) for other in photos[1:]]
            rows.append(
                {
                    "person": float(i),
                    "picture": float(k),
                    "cosine": alike,
                    "first": float(is_right),
                    "copied": mean(copied) if copied else float("nan"),
                    "no face": float(vector is None),
                }
            )
    return rows, [p.name for p in people if not shown[p.name]]


def _among(person: Known, seen: Mapping[Path, np.ndarray | None]) -> list[float]:
    vectors = [seen[p] for p in person.pictures]
    return [0.0 if a is None or b is None else float(a @ b) for a, b in combinations(vectors, 2)]


def _worst(people: Sequence[Known], scores: Sequence[Mapping[str, float]], seen: Mapping[Path, np.ndarray | None]) -> list[Case]:
    """Pictures beside the photos that they were compared with, the least alike first."""
    cases = []
    for s in sorted(scores, key=lambda s: (not s["no face"], s["cosine"]))[:WORST]:
        person = people[int(s["person"])]
        path = person.pictures[int(s["picture"])]
        said = "no face found" if s["no face"] else f"cosine {s['cosine']:.2f}" + ("" if s["first"] else ", taken for somebody else")
        photo = next((photo for photo in person.photos if seen[photo] is not None), person.photos[0])
        cases.append(Case(f"{path.name}: {said}", [x for x in (_readable(photo), _readable(path)) if x is not None]))
    return cases


def _readable(path: Path) -> np.ndarray | None:
    try:
        return read_image(path)
    except InputError:
        return None
