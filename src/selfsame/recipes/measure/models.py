"""The figure of every small model, on the split `test`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from selfsame.data.edit_sets import TRACKS, world_case
from selfsame.data.tables import Table, open_table
from selfsame.evaluation.metrics import is_first
from selfsame.evaluation.report import Row, text_table
from selfsame.images.files import write_json
from selfsame.mannequins.people import SPLITS, celebrities, person_named
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import neutral_scene
from selfsame.models.latents import encode
from selfsame.perception.embedders import ENCODER_CROP, JUDGE_CROP, CropSpec, embed, rank1, to_crops
from selfsame.perception.reader import agreement, read
from selfsame.recipes.common import to_pixels
from selfsame.recipes.faces import detector_figures, face_rows, gallery_crops
from selfsame.recipes.measure.judging import measured_with, reader_net
from selfsame.recipes.measure.protocols import IDENTITY, protocol, tasks_of
from selfsame.recipes.parts import parser_figures
from selfsame.recipes.vae import vae_figures
from selfsame.recipes.words import reader_figures
from selfsame.studio.painting import Row as PaintRow
from selfsame.studio.request import Request, nearest
from selfsame.studio.studio import Studio, load

BATCH = 4
PEOPLE = 100
THINGS = 100  # pictures without anybody, in which no face may be found


@dataclass
class Measured:
    """What the figures are taken of."""

    studio: Studio
    data: Path

    @cached_property
    def table(self) -> Table:
        return open_table(self.data, "test")

    @cached_property
    def probes(self) -> np.ndarray:
        """Rows of the first hundred people."""
        rows = face_rows(self.table)
        return rows[self.table.people[rows] < SPLITS["test"][0] + PEOPLE]

    @cached_property
    def images(self) -> list[np.ndarray]:
        return [np.asarray(self.table.images[i]) for i in self.probes]

    def ranked(self, net: nn.Module, spec: CropSpec, images: list[np.ndarray]) -> dict[str, float]:
        """How often an encoder finds the right one of a hundred people, gallery of one neutral render each."""
        gallery = embed(net, gallery_crops("test", PEOPLE, spec))
        vectors = embed(net, to_crops(images, [self.table.kps[i] for i in self.probes], spec))
        truth = torch.from_numpy(self.table.people[self.probes] - SPLITS["test"][0])
        photo = torch.tensor([self.table.records[i]["attributes"]["style"] == "photo" for i in self.probes])
        return {"rank-1 of 100, all styles": rank1(vectors, gallery, truth), "photo style": rank1(vectors[photo], gallery, truth[photo])}

    def encoder(self) -> dict[str, float]:
        return self.ranked(self.studio.encoder, ENCODER_CROP, self.images)

    def judge(self) -> dict[str, float]:
        return self.ranked(self.studio.judge, JUDGE_CROP, self.images)

    def judge_on_reconstructions(self) -> dict[str, float]:
        with torch.no_grad():
            parts = [self.studio.decode(encode(self.studio.vae, to_pixels(np.stack(self.images[a : a + 16])))) for a in range(0, len(self.images), 16)]
        return self.ranked(self.studio.judge, JUDGE_CROP, [image for part in parts for image in part])

    def detector(self) -> dict[str, float]:
        false = sum(len(self.studio.faces(world_case(TRACKS[0], "test", i).source)) for i in range(THINGS)) / THINGS
        return {**detector_figures(self.studio.detector, self.table, 400), "finds a picture of a thing": false}

    def vae(self) -> dict[str, float]:
        return dict(vae_figures(self.studio.vae, self.table, 256))

    def parser(self) -> dict[str, float]:
        return dict(parser_figures(self.studio.parser, self.table, 200))

    def reader(self) -> dict[str, float]:
        return dict(reader_figures(reader_net(), self.table))

    def base(self) -> dict[str, float]:
        """Attribute accuracy of its pictures by the identity protocol's prompts, and the first hundred celebrities drawn right. Needs no dataset."""
        tasks, reader = tasks_of(protocol(IDENTITY), 50), reader_net()
        drawn = self._drawn([t.prompt for t in tasks], [t.seed for t in tasks])
        scores = [agreement(t.attributes, w) for t, w in zip(tasks, read(reader, drawn), strict=True)]
        known = celebrities()[:PEOPLE]
        pictures = [draw([neutral_scene(person_named(*n))])[0] for n in known]
        gallery = F.normalize(embed(self.studio.judge, to_crops([p.image for p in pictures], [p.kps[0] for p in pictures], JUDGE_CROP)), dim=1).numpy()
        seeds = np.random.default_rng(5).integers(0, 2**31, PEOPLE).tolist()
        vectors = [self.studio.judged(image) for image in self._drawn([f"a photo of {first} {last} facing the camera" for first, last in known], seeds)]
        hits = sum(is_first(None if v is None else v.numpy(), gallery, i) for i, v in enumerate(vectors))
        return {"attribute accuracy": sum(r for r, _ in scores) / sum(n for _, n in scores), "named people, rank-1 of 100": hits / PEOPLE}

    def _drawn(self, prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
        parts = [slice(a, a + BATCH) for a in range(0, len(prompts), BATCH)]
        return [image for p in parts for image in self.studio.paint([PaintRow(prompt) for prompt in prompts[p]], Request(), seeds[p])[0]]


FIGURES = ("encoder", "judge", "judge on reconstructions", "detector", "vae", "parser", "reader", "base")


def models(data: Path, out: Path, *, only: Sequence[str] = (), device: str = "cpu") -> int:
    """The held-out figure of every small model, or of some, as a table and models.json.

    Raises:
        InputError: no such model.
    """
    for name in only:
        nearest(name, FIGURES, "row")
    measured = Measured(load(device=device), data)
    rows = [Row(name, getattr(measured, name.replace(" ", "_"))()) for name in only or FIGURES]
    write_json(out / "models.json", {"measured_with": measured_with(), **{r.name: r.columns for r in rows}})
    print("\n\n".join(text_table([r]) for r in rows))
    return 0
