"""The figure of every small model, on the split `test`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from selfsame.data.edit_sets import TRACKS, world_case
from selfsame.data.shards import write_json
from selfsame.data.tables import open_table
from selfsame.evaluation.metrics import is_first
from selfsame.evaluation.report import Row, text_table
from selfsame.mannequins.people import SPLITS, celebrities, person_named, split_person
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import neutral_scene
from selfsame.models.latents import encode
from selfsame.perception.embedders import ENCODER_CROP, JUDGE_CROP, embed, rank1, to_crops
from selfsame.perception.reader import agreement, read
from selfsame.recipes.common import to_pixels
from selfsame.recipes.faces import detector_figures, face_rows
from selfsame.recipes.measure.judging import measured_with, reader_net
from selfsame.recipes.measure.protocols import IDENTITY, protocol, tasks_of
from selfsame.recipes.parts import parser_figures
from selfsame.recipes.vae import vae_figures
from selfsame.recipes.words import reader_figures
from selfsame.studio.painting import Row as PaintRow
from selfsame.studio.request import Request
from selfsame.studio.studio import load

BATCH = 4
THINGS = 100  # pictures without anybody, in which no face may be found


def models(data: Path, out: Path, *, device: str = "cpu") -> int:
    """The held-out figure of every small model, as a table and models.json."""
    studio, table = load(device=device), open_table(data, "test")
    rows: list[Row] = []
    probes = face_rows(table)
    probes = probes[table.people[probes] < SPLITS["test"][0] + 100]
    truth = torch.from_numpy(table.people[probes] - SPLITS["test"][0])
    images = [np.asarray(table.images[i]) for i in probes]
    neutral = [draw([neutral_scene(split_person("test", i))])[0] for i in range(100)]
    for name, net, spec in (("encoder", studio.encoder, ENCODER_CROP), ("judge", studio.judge, JUDGE_CROP)):
        gallery = embed(net, to_crops([p.image for p in neutral], [p.kps[0] for p in neutral], spec))
        vectors = embed(net, to_crops(images, [table.kps[i] for i in probes], spec))
        photo = torch.tensor([table.records[i]["attributes"]["style"] == "photo" for i in probes])
        rows.append(Row(name, {"rank-1 of 100, all styles": rank1(vectors, gallery, truth), "photo style": rank1(vectors[photo], gallery, truth[photo])}))
        if name == "judge":
            with torch.no_grad():
                parts = [studio.decode(encode(studio.vae, to_pixels(np.stack(images[a : a + 16])))) for a in range(0, len(images), 16)]
            again = [i for part in parts for i in part]
            vectors = embed(net, to_crops(again, [table.kps[i] for i in probes], spec))
            rows.append(Row("judge on VAE reconstructions", {"rank-1 of 100, all styles": rank1(vectors, gallery, truth)}))
    things = [world_case(TRACKS[0], "test", i).source for i in range(THINGS)]
    false = sum(len(studio.faces(image)) for image in things) / THINGS
    rows.append(Row("detector", {**detector_figures(studio.detector, table, 400), "finds a picture of a thing": false}))
    rows.append(Row("vae", dict(vae_figures(studio.vae, table, 256))))
    rows.append(Row("parser", dict(parser_figures(studio.parser, table, 200))))
    rows.append(Row("reader", dict(reader_figures(reader_net(), table))))

    # The base: attribute accuracy of its pictures, and named people drawn right among the first 100 celebrities.
    rng = np.random.default_rng(5)
    tasks = tasks_of(protocol(IDENTITY), 50)
    request = Request()
    drawn: list[np.ndarray] = []
    for start in range(0, len(tasks), BATCH):
        drawn += studio.paint([PaintRow(t.prompt) for t in tasks[start : start + BATCH]], request, [t.seed for t in tasks[start : start + BATCH]])[0]
    scores = [agreement(t.attributes, w) for t, w in zip(tasks, read(reader_net(), drawn), strict=True)]
    base = {"attribute accuracy": sum(r for r, _ in scores) / sum(n for _, n in scores)}
    known = celebrities()[:100]
    pictures = [draw([neutral_scene(person_named(*n))])[0] for n in known]
    gallery = torch.nn.functional.normalize(embed(studio.judge, to_crops([p.image for p in pictures], [p.kps[0] for p in pictures], JUDGE_CROP)), dim=1).numpy()
    hits = 0
    for start in range(0, 100, BATCH):
        chunk = range(start, min(100, start + BATCH))
        prompts = [PaintRow(f"a photo of {known[i][0]} {known[i][1]} facing the camera") for i in chunk]
        for i, image in zip(chunk, studio.paint(prompts, request, [int(s) for s in rng.integers(0, 2**31, len(prompts))])[0], strict=True):
            vector = studio.judged(image)
            hits += is_first(None if vector is None else vector.numpy(), gallery, i)
    rows.append(Row("base", {**base, "named people, rank-1 of 100": hits / 100}))
    text = "\n\n".join(text_table([r]) for r in rows)
    write_json(out / "models.json", {"measured_with": measured_with(), **{r.name: r.columns for r in rows}})
    print(text)
    return 0
