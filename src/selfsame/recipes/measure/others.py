"""Judges beside a protocol's own: each has its gallery of everybody's neutral render."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfsame.evaluation.metrics import is_first, mean
from selfsame.evaluation.report import Row
from selfsame.images.files import InputError
from selfsame.mannequins.people import split_person
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import neutral_scene
from selfsame.recipes.measure.folder import FLAG, FaceJudge, conditioner_called, conditioner_of, judges_called
from selfsame.recipes.measure.pictures import THEIRS, Question, theirs
from selfsame.studio.studio import Studio

OWN_JUDGE = "judge"  # the protocols' own, by the name that it is asked for by


class Others:
    """Any number of judges."""

    def __init__(self, studio: Studio, names: Sequence[str], split: str, people: int) -> None:
        """
        Args:
            names: as of `judge_called`; the protocol's own is left out.
            people: in the gallery.

        Raises:
            InputError: one cannot be used.
        """
        self.judges = judges_called([name for name in names if name != OWN_JUDGE], studio)
        self.split, self.people = split, people
        self._galleries: dict[str, np.ndarray] = {}

    def columns(self, images: Sequence[np.ndarray], whose: Sequence[int], conditioner: str) -> dict[str, float | str]:
        """What they say of pictures with one face each; a picture without a face counts as cosine 0 and as missed.

        Args:
            whose: the person of each.
            conditioner: what made them: marked where it is one of the judges.
        """
        said: dict[str, float | str] = {}
        for judge in self.judges:
            gallery, vectors = self.gallery(judge), [judge.see(image) for image in images]
            called = judge.called(conditioner)
            said[f"rank-1, {called}"] = mean([float(is_first(v, gallery, who)) for v, who in zip(vectors, whose, strict=True)])
            said[f"cosine, {called}"] = mean([0.0 if v is None else float(gallery[who] @ v) for v, who in zip(vectors, whose, strict=True)])
        return said

    def gallery(self, judge: FaceJudge) -> np.ndarray:
        """Vectors of everybody's neutral render, zeros where the judge finds no face: that person is never found."""
        if judge.name not in self._galleries:
            seen = [judge.see(draw([neutral_scene(split_person(self.split, i))])[0].image) for i in range(self.people)]
            length = next((len(v) for v in seen if v is not None), 0)
            if not length:
                raise InputError(f"judge {judge.name} finds no face in any of the world's portraits: it is of no use here")
            self._galleries[judge.name] = np.stack([np.zeros(length, np.float32) if v is None else v for v in seen])
        return self._galleries[judge.name]


def answered(pictures: Path, questions: Sequence[Question], protocol: str, conditioner: str) -> tuple[str, list[np.ndarray], str, list[str]]:
    """Another tool's row: its name, its answers, what conditioned them, what a report must say of those that cannot be judged.

    Args:
        conditioner: as somebody said it; "": what the pictures say themselves.

    Raises:
        InputError: none is there, they answer another protocol, or no such conditioner.
    """
    images, notes = theirs(pictures, questions, protocol)
    made_by = conditioner_called(conditioner) or conditioner_of([sorted(pictures.glob("*.png"))])
    name = f"{THEIRS}{pictures.resolve().name}"
    if made_by == OWN_JUDGE:
        notes.append(f"{name}: the protocol's judge conditioned these pictures, which flatters them: compare all that it says with nothing else")
        name += " (judged by what conditioned it)"
    return name, images, made_by, notes


def flattery(rows: Sequence[Row]) -> list[str]:
    """What a report must say when a judge also conditioned."""
    marked = any(FLAG in column for row in rows for column in row.columns)
    return ["a judge that also conditioned the pictures flatters them: compare its columns with nothing else"] if marked else []
