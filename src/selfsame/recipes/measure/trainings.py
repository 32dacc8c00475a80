"""Trainings that a table compares: one recipe, whole and with one choice changed at a time, so many steps each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from selfsame.images.files import InputError
from selfsame.recipes.common import Options, Trained
from selfsame.studio.request import nearest
from selfsame.training.run import Progress
from selfsame.weights.mannequin import digest_of

V = TypeVar("V")


@dataclass
class Trainings(Generic[V]):
    """Each is trained when it is asked for. Its folder's name says what it is, how long it lasts, how fast it learns and what from: a run that was stopped
    goes on, one of another length or rate, of other choices or on other models is another run."""

    of: str
    recipe: Callable[[Options, V, str], Trained]
    variants: Mapping[str, V]  # by the names of their rows, the whole one first
    options: Options
    reads: Sequence[str]  # shipped files or folders that they learn from
    data: str  # hash of the dataset that they learn from
    tell: Callable[[float, str], None] = lambda share, note: None
    seen: list[str] = field(default_factory=list)  # what a report shall say of those that were trained

    def folder(self, name: str) -> str:
        """Of a run, below the folder of all runs."""
        how = self.options.learning_rate, self.options.batch_size
        key = hashlib.sha256(f"{self.variants[name]!r} {digest_of(self.reads)} {self.data} {how}".encode()).hexdigest()[:8]
        return f"ablations/{self.of}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{self.options.steps}-{key}"

    def trained(self, name: str) -> Trained:
        """The result of one, with its figures noted."""

        def show(at: Progress) -> None:
            self.tell(0, f"training {name}: {at.step} of {at.max_steps}, loss {at.loss:.3f}")

        made = self.recipe(replace(self.options, on_progress=show), self.variants[name], self.folder(name))
        rate = f", learning rate {self.options.learning_rate:g}" if self.options.learning_rate else ""
        self.seen.append(f"{name}: trained here, {made.samples} samples{rate}; {', '.join(f'{k} {v:.4g}' for k, v in made.figures.items())}")
        return made


def chosen(variants: Mapping[str, V], only: Sequence[str], lacks: Callable[[V], str]) -> tuple[dict[str, V], list[str]]:
    """The whole one and those asked for, without any all that the data suffices for; and what a report shall say of those left out.

    Args:
        lacks: what the data lacks for a variant, with the remedy, "" for nothing.

    Raises:
        InputError: an unknown one, or one that is asked for and the data does not suffice for.
    """
    for name in only:
        nearest(name, tuple(variants), "ablation")
    asked = {name: variant for k, (name, variant) in enumerate(variants.items()) if not only or k == 0 or name in only}
    lacking = {name: said for name, variant in asked.items() if (said := lacks(variant))}
    if lacking and only:
        name, said = next(iter(lacking.items()))
        raise InputError(f"{name}: {said}")
    left_out = [f"left out, {name}: {said}" for name, said in lacking.items()]
    return {name: variant for name, variant in asked.items() if name not in lacking}, left_out
