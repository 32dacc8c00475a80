"""The identity protocol's table: what is asked, who judges, and what has been measured so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfsame.evaluation.metrics import is_first, mean, paired_interval
from selfsame.evaluation.report import Row
from selfsame.images.files import InputError
from selfsame.mannequins.people import split_person
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import neutral_scene
from selfsame.recipes.measure.folder import FaceJudge
from selfsame.recipes.measure.judging import Judges, Seen, columns_of, rows_by_style, spread
from selfsame.recipes.measure.protocols import everything_of
from selfsame.studio.studio import Studio


class Table:
    """What is asked, and what has been measured so far."""

    def __init__(self, studio: Studio, p: dict[str, Any], people: int, main: str) -> None:
        """
        Args:
            main: the row whose worst pictures are shown; without it the first.
        """
        self.p, self.judges, self.main_row = p, Judges(studio, p, people), main
        self.tasks = everything_of(p, people)
        self.main = [i for i, t in enumerate(self.tasks) if not t.again]  # what is judged; the others show how much seeds change
        self.groups = [self.tasks[i].person for i in self.main]
        self.judged: dict[str, list[dict[str, float]]] = {}
        self.rows: list[Row] = []
        self.by_style: list[Row] = []
        self.strips: list[tuple[str, Sequence[np.ndarray]]] = []
        self.seen: list[Seen] = []
        self._galleries: dict[str, np.ndarray] = {}

    def of_main(self, values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in self.main]

    def add(self, name: str, images: Sequence[np.ndarray], seconds: float, *, asked_kps: bool, others: Sequence[FaceJudge] = (), conditioner: str = "") -> None:
        """Judge a row's pictures, all of `tasks`.

        Args:
            conditioner: what made them: it is marked where it is one of `others`.
        """
        points, tasks, own = self.judges.kps(images), self.of_main(self.tasks), self.of_main(images)
        results = self.judges.results(tasks, own, self.of_main(points), asked_kps=asked_kps)
        self.judged[name] = results
        columns = columns_of(results, seconds, self.p["bootstrap"], self.groups)
        columns["diversity over seeds"] = mean([spread(self.judges, [images[i] for i in rows], [points[i] for i in rows]) for rows in self._seeds()])
        for judge in others:
            columns |= self._by(judge, own, conditioner)
        self.rows.append(Row(name, columns))
        self.by_style += rows_by_style(name, tasks, results)
        self.strips.append((name, own[:8]))
        if name == self.main_row or not self.seen:
            together = zip(tasks, results, own, strict=True)
            self.seen = [Seen.of_one(t.prompt, None if r["no_face"] else r["cosine"], image, t.person) for t, r, image in together]

    def _seeds(self) -> list[list[int]]:
        """Pictures that differ by their seed alone."""
        again = [i for i, t in enumerate(self.tasks) if t.again]
        firsts = {self.tasks[i].person: next(k for k in self.main if self.tasks[k].person == self.tasks[i].person) for i in again}
        return [[first, *(i for i in again if self.tasks[i].person == who)] for who, first in firsts.items()]

    def _by(self, judge: FaceJudge, images: Sequence[np.ndarray], conditioner: str) -> dict[str, float | str]:
        """What another judge says; a picture without a face counts as cosine 0 and as missed."""
        gallery = self._gallery(judge)
        vectors = [judge.see(image) for image in images]
        cosines = [0.0 if v is None else float(gallery[who] @ v) for v, who in zip(vectors, self.groups, strict=True)]
        hits = [float(is_first(v, gallery, who)) for v, who in zip(vectors, self.groups, strict=True)]
        called = judge.called(conditioner)
        return {f"rank-1, {called}": mean(hits), f"cosine, {called}": mean(cosines)}

    def _gallery(self, judge: FaceJudge) -> np.ndarray:
        """Vectors of everybody's neutral render, zeros where the judge finds no face: that person is never found."""
        if judge.name not in self._galleries:
            self._galleries[judge.name] = self._portraits(judge)
        return self._galleries[judge.name]

    def _portraits(self, judge: FaceJudge) -> np.ndarray:
        split = self.p["split"]
        seen = [judge.see(draw([neutral_scene(split_person(split, i))])[0].image) for i in range(self.p["people"])]
        length = next((len(v) for v in seen if v is not None), 0)
        if not length:
            raise InputError(f"judge {judge.name} finds no face in any of the world's portraits: it is of no use here")
        return np.stack([np.zeros(length, np.float32) if v is None else v for v in seen])

    def compared(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Differences of rows, paired over people."""
        notes = []
        for a, b in pairs:
            for what, key in (("rank-1", "rank1"), ("judge cosine", "cosine"), ("attributes", "attributes")):
                if a in self.judged and b in self.judged:
                    ours, theirs_ = ([r[key] for r in self.judged[row]] for row in (a, b))
                    middle, low, high = paired_interval(ours, theirs_, self.groups)
                    notes.append(f"{what}, {a} minus {b}: {middle:+.3f} ({low:+.3f} to {high:+.3f}, paired bootstrap over people)")
        return notes
