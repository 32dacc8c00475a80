"""The identity protocol's table: what is asked, who judges, and what has been measured so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfsame.evaluation.metrics import mean, paired_interval
from selfsame.evaluation.report import Row, with_span
from selfsame.recipes.measure.judging import Judges, Seen, columns_of, rows_by_style, spread
from selfsame.recipes.measure.others import Others
from selfsame.recipes.measure.protocols import everything_of
from selfsame.studio.studio import Studio


class Table:
    """What is asked, and what has been measured so far."""

    def __init__(self, studio: Studio, p: dict[str, Any], people: int, others: Others) -> None:
        self.p, self.judges, self.others = p, Judges(studio, p, people), others
        self.main_row = "both"  # whose worst pictures are shown; without it the first row's
        self.tasks = everything_of(p, people)
        self.main = [i for i, t in enumerate(self.tasks) if not t.again]  # what is judged; the others show how much seeds change
        self.groups = [self.tasks[i].person for i in self.main]
        self.judged: dict[str, list[dict[str, float]]] = {}
        self.rows: list[Row] = []
        self.by_style: list[Row] = []
        self.strips: list[tuple[str, Sequence[np.ndarray]]] = []
        self.seen: list[Seen] = []

    def of_main(self, values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in self.main]

    def add(self, name: str, images: Sequence[np.ndarray], seconds: float, *, asked_kps: bool, conditioner: str = "") -> None:
        """Judge a row's pictures, all of `tasks`.

        Args:
            conditioner: what made them: it is marked where it is one of the other judges.
        """
        points, tasks, own = self.judges.kps(images), self.of_main(self.tasks), self.of_main(images)
        results = self.judges.results(tasks, own, self.of_main(points), asked_kps=asked_kps)
        self.judged[name] = results
        columns = columns_of(results, seconds, self.p["bootstrap"], self.groups)
        columns["diversity over seeds"] = mean([spread(self.judges, [images[i] for i in rows], [points[i] for i in rows]) for rows in self._seeds()])
        columns |= self.others.columns(own, self.groups, conditioner)
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

    def compared(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Differences of rows, paired over people."""
        notes = []
        for a, b in pairs:
            for what, key in (("rank-1", "rank1"), ("judge cosine", "cosine"), ("attributes", "attributes")):
                if a in self.judged and b in self.judged:
                    ours, theirs_ = ([r[key] for r in self.judged[row]] for row in (a, b))
                    difference = paired_interval(ours, theirs_, self.groups)
                    notes.append(f"{what}, {a} minus {b}: {with_span(difference, 'people')}")
        return notes
