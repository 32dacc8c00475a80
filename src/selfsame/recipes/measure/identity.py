"""InstantID by its pinned protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsame.data.tables import open_table
from selfsame.evaluation.metrics import ratio_interval
from selfsame.evaluation.report import Report, with_span, write_report
from selfsame.mannequins.render import Picture
from selfsame.methods.instantid.method import InstantID
from selfsame.methods.instantid.objective import InstantIDTrainer
from selfsame.models.mannequin import load_image_encoder
from selfsame.perception.embedders import ENCODER_CROP, embed, to_crops
from selfsame.recipes.caches import clip_features
from selfsame.recipes.common import Options, fingerprint_of
from selfsame.recipes.instantid import ABLATIONS, READ, WHOLE, Variant, instantid, people_in
from selfsame.recipes.measure.judging import measured_with, notes_on_weights, oracle_pictures, worst_of
from selfsame.recipes.measure.others import Others, answered, flattery
from selfsame.recipes.measure.person_lora import CALLED, with_lora
from selfsame.recipes.measure.pictures import THEIRS, Kept, Paint, hand_out, questions_of
from selfsame.recipes.measure.protocols import (
    IDENTITY,
    Task,
    asked,
    canonical_kps,
    canonical_landmarks,
    checked_protocol,
    everything_of,
    extent,
    reference_photo,
)
from selfsame.recipes.measure.swap import face_swapped
from selfsame.recipes.measure.table import Table
from selfsame.recipes.measure.trainings import Trainings, chosen
from selfsame.recipes.naming import SOMEBODY
from selfsame.studio.crowd import Shown
from selfsame.studio.painting import Row as PaintRow
from selfsame.studio.request import OWN, Request, Strengths
from selfsame.studio.studio import ENCODER_NAME, Studio, load

ROW_NAMES = ("base without a face", "Image Adapter alone", "IdentityNet alone", "both", "both, 4 photos", "oracle")
# Asked for by name (--rows): what more photos bring, what speed costs, a baseline that pastes, and one that learns each person.
LORA = "LoRA of the person"
EXTRA = ("both, 2 photos", "both, 8 photos", "both, fast", "both, turbo", "face swap", LORA)
NOBODYS = ("base without a face", "face swap", LORA, "oracle")  # rows that no face encoder conditioned
UNPOSED = ("base without a face", "Image Adapter alone", "face swap", LORA)  # rows whose model sees no key points
BATCH = 4
SHORT_RATE = 1e-3  # of trainings that are compared: from the base's weights and short
ABLATED = 25  # people, unless more are asked for
ABOUT_ABLATIONS = (
    "none of these rows is of the weights that ship: all are trained here on the base that ships, by this project's recipe "
    "without the loss on the forming face, but for what their names say"
)


@dataclass(frozen=True)
class Rival:
    """Another training of InstantID or of its base, as a row of its own."""

    method: InstantID
    variant: Variant
    unet: Any = None  # a base of its own; None: the one that ships

    def studio(self, beside: Studio) -> Studio:
        """A studio that paints with it."""
        return Studio(str(beside.device)).with_parts(unet=self.unet or beside.unet, vae=beside.vae, instantid=self.method)


def painter_of(studio: Studio, name: str, split: str, request: Request, tick: Callable[[int], None], rival: Rival | None = None) -> Paint:
    """What paints tasks of one row of the table."""
    if name == "oracle":
        return lambda tasks: oracle_pictures(studio, split, tasks, tick)
    if name == "face swap":
        base = painter_of(studio, "base without a face", split, request, tick)
        return lambda tasks: _swapped(studio, tasks, split, base(tasks))
    if name == LORA:
        return lambda tasks: _by_lora(studio, tasks, split, request, tick)
    if name == "both, fast":
        request = replace(request, speed="fast")
    if name == "both, turbo":  # steps and guidance are its own
        request = replace(request, speed="turbo", num_steps=0, guidance_scale=OWN)
    photos_of = re.search(r"(\d+) photos", name)
    scales = {"Image Adapter alone": (1.0, 0.0), "IdentityNet alone": (0.0, 1.0)}.get(name, (1.0, 1.0))
    strengths = Strengths(adapter_scale=scales[0], controlnet_scale=scales[1]) if rival is None else rival.variant.strengths
    painting = studio if rival is None else rival.studio(studio)
    tower = load_image_encoder() if rival is not None and rival.variant.reads == "clip" else None
    dense = rival is not None and rival.variant.points == "dense"

    @cache
    def embedding(person: int) -> torch.Tensor:
        photos = [reference_photo(split, person, k) for k in range(int(photos_of[1]) if photos_of else 1)]
        crops = to_crops([p.image for p in photos], [_seen_kps(studio, p) for p in photos], ENCODER_CROP)
        seen = embed(studio.encoder, crops) if tower is None else clip_features(tower, crops)
        return seen.mean(0, keepdim=True)[None]

    def shown(task: Task) -> tuple[Shown, ...]:
        if name.endswith("without a face"):
            return ()
        points = canonical_landmarks(task.view) if dense else canonical_kps(task.view)[0]
        return (Shown(embedding(task.person), points, strengths=strengths),)

    def paint(tasks: Sequence[Task]) -> list[np.ndarray]:
        images: list[np.ndarray] = []
        for start in range(0, len(tasks), BATCH):
            chunk = tasks[start : start + BATCH]
            images += painting.paint([PaintRow(t.prompt, faces=shown(t)) for t in chunk], request, [t.seed for t in chunk])[0]
            tick(len(chunk))
        return images

    return paint


def _of_oracle(tasks: Sequence[Task], judged: Mapping[str, list[dict[str, float]]]) -> list[str]:
    """How much of the oracle's rank-1 each row of both parts reaches, by gallery and over photo-like prompts."""
    lines = []
    for name in (n for n in judged if n.startswith(("both", THEIRS)) and "oracle" in judged):
        for said, key, style in (
            ("photo-like prompts, of 100", "rank1", "photo"),
            ("all styles, of 100", "rank1", ""),
            ("all styles, of 20 matched", "matched", ""),
        ):
            mine = [i for i, t in enumerate(tasks) if style in ("", t.attributes["style"])]
            ours, oracle = ([judged[row][i][key] for i in mine] for row in (name, "oracle"))
            share = ratio_interval(ours, oracle, [tasks[i].person for i in mine])
            lines.append(f"rank-1, {name}, over the oracle's, {said}: {with_span(share)}")
    return lines


def _swapped(studio: Studio, tasks: Sequence[Task], split: str, painted: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pictures of the base, each with the photo's face laid over it."""
    images = []
    for image, task in zip(painted, tasks, strict=True):
        photo, found = reference_photo(split, task.person, 0), studio.faces(image)
        images.append(face_swapped(image, found[0].kps if found else None, photo.image, _seen_kps(studio, photo)))
    return images


def _by_lora(studio: Studio, tasks: Sequence[Task], split: str, request: Request, tick: Callable[[int], None]) -> list[np.ndarray]:
    """Pictures of one person, by the base after it has learned the photo."""
    painting = Studio(str(studio.device)).with_parts(vae=studio.vae, unet=with_lora(studio, [reference_photo(split, tasks[0].person, 0).image]))
    images = painting.paint([PaintRow(t.prompt.replace(SOMEBODY, CALLED, 1)) for t in tasks], request, [t.seed for t in tasks])[0]
    tick(len(tasks))
    return images


def _seen_kps(studio: Studio, photo: Picture) -> np.ndarray:
    """Key points as a user gets them: from the detector; the true ones where it finds nothing."""
    found = studio.faces(photo.image)
    return found[0].kps if found else photo.kps[0]


def ablated(out: Path, options: Options, *, people: int = 0, only: Sequence[str] = (), **measuring: Any) -> Report:
    """Train InstantID anew, whole and with one choice changed at a time, so many steps each, and measure all of them. Runs that were stopped go on.

    Args:
        options: of every training; `runs/ablations` gets a folder for each.
        people: of the protocol; 0: `ABLATED`.
        only: only these of `ABLATIONS`, always beside the whole one. Without it, those that the data has too few people for are left out.
        measuring: of `identity`.

    Raises:
        InputError: an unknown ablation, or too few people for one that is asked for.
    """
    there = people_in(options.data)

    def lacks(variant: Variant) -> str:
        return "" if variant.people <= there else f"{options.data} shows {there}: selfsame render --split train with a larger --count"

    variants, left_out = chosen({"both": WHOLE} | ABLATIONS, only, lacks)
    more = [ABOUT_ABLATIONS, *left_out]
    tell = measuring.get("on_progress", lambda share, note: None)
    options = replace(options, learning_rate=options.learning_rate or SHORT_RATE)
    trainings = Trainings("instantid", instantid, variants, options, READ, open_table(options.data, "train").digest, tell, more)

    def made(name: str) -> Rival:
        module = trainings.trained(name).module
        assert isinstance(module, InstantIDTrainer)
        module.detach()
        return Rival(module.method.to(torch.device(measuring.get("device", "cpu"))), variants[name])

    rivals = {name: partial(made, name) for name in variants}
    return identity(out, people=people or ABLATED, only=("base without a face", *rivals, "oracle"), rivals=rivals, more=trainings.seen, **measuring)


def ask(out: Path, *, people: int = 0) -> Path:
    """Write what the protocol asks, for any tool: prompts, seeds, key points and photos. Its pictures are judged by `identity(pictures=...)`."""
    p = checked_protocol(IDENTITY)
    count, _ = asked(p, people, (), ())
    return hand_out(p, questions_of(everything_of(p, count)), out)


def identity(
    out: Path,
    *,
    people: int = 0,
    only: Sequence[str] = (),
    pictures: Path | None = None,
    judges: Sequence[str] = (),
    conditioner: str = "",
    rivals: Mapping[str, Callable[[], Rival]] | None = None,
    more: Sequence[str] = (),
    device: str = "cpu",
    on_progress: Callable[[float, str], None] = lambda share, note: None,
) -> Report:
    """Run the identity protocol. Pictures stay in `out/pictures`, so a run that was stopped goes on.

    Args:
        out: folder for report.json and report.html.
        people: only the first so many of the protocol's people; 0: all. The gallery stays whole.
        only: only these rows, those of `EXTRA` too.
        pictures: another tool's answers to what `ask` wrote, as one more row.
        judges: others beside the protocol's, as for `folder`.
        conditioner: what conditioned the pictures of another tool.
        rivals: other trainings by the names of their rows, trained once all else has been checked.
        more: what the report shall say besides.

    Raises:
        InputError: a judge or folder that cannot be used.
        ValueError: an unknown row, or more people than the protocol has.
    """
    p = checked_protocol(IDENTITY)
    count, names = asked(p, people, only, ROW_NAMES, (*EXTRA, *(rivals or {})))
    studio, split, notes = load(device=device), p["split"], extent(p, count)
    table = Table(studio, p, count, Others(studio, judges, split, p["people"]))
    tool = ""
    if pictures:
        tool, answers, made_by, missing = answered(pictures, questions_of(table.tasks), p["name"], conditioner)
        table.add(tool, answers, float("nan"), asked_kps=True, conditioner=made_by)
        table.main_row = tool
        notes += missing
    trained = {name: make() for name, make in (rivals or {}).items()}
    request = Request(num_steps=p["num_steps"], guidance_scale=p["guidance_scale"], solver=p["solver"])
    kept = Kept(out, p)
    for name in names:

        def tick(done: int, name: str = name) -> None:
            on_progress(done / len(names) / len(table.tasks), name)

        rival = trained.get(name)
        mark = "" if rival is None else [repr(rival.variant), fingerprint_of([rival.method], name)]
        images = kept.row(name, table.tasks, painter_of(studio, name, split, request, tick, rival), tick, mark)
        own = "" if name in NOBODYS or (rival is not None and rival.variant.reads != "face") else ENCODER_NAME
        posed = name not in UNPOSED and (rival is None or rival.variant.use_net)
        table.add(name, images, kept.seconds[name], asked_kps=posed, conditioner=own)
    notes += more  # complete only now: trainings say what they gave
    notes += table.compared(
        [
            *((tool, name) for name in ("both", "oracle")),
            *(("both", name) for name in ("Image Adapter alone", "IdentityNet alone", "face swap", LORA)),
            *((name, "base without a face") for name in names if name.startswith("both")),
            *((name, "both") for name in names if name.startswith("both, ")),
            *(("both", name) for name in trained if name != "both"),
        ]
    )
    notes += _of_oracle(table.of_main(table.tasks), table.judged)
    notes.append("copy-paste: (cosine to the photo that lent the face - cosine to one that no row saw) / (1 - the photos' own), 1 for a copied photo")
    notes.append("'alike among themselves' is the mean cosine between the pictures of one person: near 1 they repeat one face, expression and all")
    notes.append("diversity over seeds: how differently the faces of one prompt look from seed to seed, by the reader's features, the mean over pairs")
    notes.append("a picture without a face counts as missed, and as likeness 0 wherever likeness is compared; key-point errors are over pictures with a face")
    notes += flattery(table.rows)
    references = [reference_photo(split, t.person, 0).image for t in table.of_main(table.tasks)[:8]]
    report = Report(
        "InstantID on held-out people", {**p, **measured_with()}, table.rows, table.by_style, [*notes, *notes_on_weights()],
        [("reference photo", references), *table.strips], worst_of(table.seen, split),
    )  # fmt: skip
    write_report(report, out)
    return report
