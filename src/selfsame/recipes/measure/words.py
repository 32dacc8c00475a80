"""StableIdentity by its pinned protocol: people learned as words, beside Textual Inversion, the base and the oracle."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsame.data.tables import open_table
from selfsame.evaluation.metrics import bootstrap_interval, frechet_distance, mean, paired_interval, ratio_interval
from selfsame.evaluation.report import Report, Row, span, with_span, write_report
from selfsame.mannequins.people import celebrities
from selfsame.methods.stableidentity.modules import WordProjection
from selfsame.methods.stableidentity.objective import TwoPhaseLoss
from selfsame.methods.stableidentity.samples import PhotoSamples
from selfsame.perception.reader import reader_features
from selfsame.recipes.bases import LearnBase, mannequin_base
from selfsame.recipes.common import Options, fingerprint_of
from selfsame.recipes.measure.judging import Judges, Seen, diversity, measured_with, notes_on_weights, oracle_pictures, rows_by_style, shown_face, worst_of
from selfsame.recipes.measure.pictures import Kept
from selfsame.recipes.measure.protocols import WORDS, Task, asked, checked_protocol, extent, reference_photo, tasks_of
from selfsame.recipes.measure.trainings import Trainings
from selfsame.recipes.naming import READ as NAMING_READS
from selfsame.recipes.naming import SOMEBODY, Variant, naming
from selfsame.recipes.stableidentity import AS_TAUGHT, REFINING, Learning, learn
from selfsame.studio.painting import Row as PaintRow
from selfsame.studio.request import Request, nearest
from selfsame.studio.studio import Studio, load
from selfsame.values.identity import Identity, LearnedWords
from selfsame.weights import mannequin

OURS = "StableIdentity"
METHODS: dict[str, Learning] = {
    OURS: AS_TAUGHT,
    # Noise errors over the whole picture, as published; as many samples as the method itself takes when it takes any.
    "Textual Inversion": Learning(
        method="textual-inversion", steps=REFINING.steps, batch_size=REFINING.batch_size, loss=TwoPhaseLoss(switch=0.0, has_mask=False)
    ),
}
# One choice of the method changed at a time (the paper's Table 2, and its threshold from end to end; noise alone is what stands above).
REFINED = f"{OURS}, {REFINING.steps} steps"
ABLATIONS: dict[str, Learning] = {
    REFINED: REFINING,
    "no mask": replace(REFINING, loss=replace(REFINING.loss, has_mask=False)),
    "reconstruction only": replace(REFINING, loss=replace(REFINING.loss, switch=1.0)),
    **{f"threshold {share}": replace(REFINING, loss=replace(REFINING.loss, switch=share)) for share in (0.2, 0.4, 0.6, 0.8)},
    "all timesteps alike": replace(REFINING, log_sigma=None),
    "the paper's samples": replace(REFINING, samples=PhotoSamples()),
    "as published": Learning(start="fresh"),
}
# These begin elsewhere, so each is taught anew, in as many steps as `BRIEF`, beside which it stands.
BRIEF = f"{OURS}, taught here"
TAUGHT: dict[str, tuple[Learning, Variant]] = {
    BRIEF: (AS_TAUGHT, Variant()),
    "no AdaIN": (replace(AS_TAUGHT, landing="none"), Variant(landing="none")),
    "CLIP encoder": (replace(AS_TAUGHT, encoder="clip"), Variant(reads="clip")),
    "taught names alone": (AS_TAUGHT, Variant(paints=False)),
    "taught without the forming face's loss": (AS_TAUGHT, Variant(likeness=0.0)),
}
ABLATED = 12  # people, unless more are asked for
BATCH = 4


READ = ("base/", "encoder.", "detector.", "parser.", "face_vit.", "words.")  # shipped files that words depend on


def kept_in(out: Path, name: str, how: Learning, start: str = "") -> Path:
    """The folder of people learned in one way from these very weights: words of others are not taken for them.

    Args:
        start: a mark of the projection that they begin with, when it is none that ships.
    """
    read = (*READ, "clip_image.") if how.encoder == "clip" else READ
    weights = {file: digest for file, digest in mannequin.manifest()["files"].items() if file.startswith(read)}
    key = hashlib.sha256(json.dumps([weights, asdict(how), start], sort_keys=True, default=str).encode()).hexdigest()[:10]
    return out / "learned" / f"{name.replace(' ', '-').lower()}-{key}"


def learned(base: LearnBase, split: str, person: int, how: Learning, folder: Path) -> LearnedWords:
    """A person of the protocol as words; learned once, kept in a folder."""
    path = folder / f"{person}.safetensors"
    if not path.exists():
        run = folder / f"{person}.learning"
        learn(base, [reference_photo(split, person, 0).image], f"<p{person}>", run, replace(how, look_every=0)).save(path)
    words = Identity.load(path).words
    assert words is not None
    return words


def _painted(
    studio: Studio, tasks: Sequence[Task], who: Callable[[Task], str | LearnedWords], request: Request, tick: Callable[[int], None]
) -> list[np.ndarray]:
    """Pictures of tasks, each of somebody: a name, or learned words."""
    images: list[np.ndarray] = []
    for start in range(0, len(tasks), BATCH):
        chunk = tasks[start : start + BATCH]
        people = [who(t) for t in chunk]
        words = {w.placeholder: w for w in people if isinstance(w, LearnedWords)}  # one person may stand in several rows
        names = [w.placeholder if isinstance(w, LearnedWords) else w for w in people]
        rows = [PaintRow(t.prompt.replace(SOMEBODY, name, 1)) for t, name in zip(chunk, names, strict=True)]
        images += studio.paint(rows, request, [t.seed for t in chunk], words=tuple(words.values()))[0]
        tick(len(chunk))
    return images


def ablated(out: Path, options: Options, *, people: int = 0, only: Sequence[str] = (), on_progress: Callable[[float, str], None] = lambda s, n: None) -> Report:
    """StableIdentity with one choice changed at a time: of its loss, from the start that ships; of what comes before, each taught here in so many steps.

    Args:
        options: of every teaching; `runs/ablations` gets a folder for each.
        people: of the protocol; 0: `ABLATED`.
        only: only these of `ABLATIONS` and `TAUGHT`, beside what they are compared with.

    Raises:
        InputError: an unknown ablation.
    """
    for name in only:
        nearest(name, (*ABLATIONS, *TAUGHT), "ablation")
    loss = [name for name in ABLATIONS if not only or name in only]
    start = [name for name in TAUGHT if not only or name in only]
    rows = ([OURS, REFINED, *(name for name in loss if name != REFINED)] if loss else []) + [BRIEF] * bool(start) + [name for name in start if name != BRIEF]
    variants = {name: variant for name, (_, variant) in TAUGHT.items()}
    data = open_table(options.data, "train").digest if start else ""
    trainings = Trainings("words", naming, variants, options, NAMING_READS, data, on_progress)

    def made(name: str) -> WordProjection:
        projection = trainings.trained(name).module.words[0]  # type: ignore[index]
        assert isinstance(projection, WordProjection)
        return projection

    taught = {name: partial(made, name) for name in rows if name in TAUGHT}
    return words(out, people=people or ABLATED, only=rows, taught=taught, more=trainings.seen, on_progress=on_progress)


def _words_of(vectors: Mapping[int, LearnedWords], task: Task) -> LearnedWords:
    return vectors[task.person]


def words(
    out: Path,
    *,
    people: int = 0,
    only: Sequence[str] = (),
    methods: dict[str, Learning] | None = None,
    taught: Mapping[str, Callable[[], WordProjection]] | None = None,
    more: Sequence[str] = (),
    on_progress: Callable[[float, str], None] = lambda share, note: None,
) -> Report:
    """Run the words protocol. People that were learned stay in `out/learned`, pictures in `out/pictures`: a run that was stopped goes on.

    Args:
        out: folder for report.json and report.html.
        people: only the first so many of the protocol's people; 0: all. The gallery stays whole.
        only: only these rows, those of `ABLATIONS` too.
        methods: other ways to learn, by the names of their rows.
        taught: other starts than the one that ships, for rows of `TAUGHT`.
        more: what the report shall say besides.

    Raises:
        ValueError: an unknown row, or more people than the protocol has.
    """
    p = checked_protocol(WORDS)
    shown = METHODS if methods is None else methods
    count, names = asked(p, people, only, ("base, nobody named", "celebrities by name", *shown, "oracle"), (*ABLATIONS, *(taught or {})))
    methods = ABLATIONS | {name: how for name, (how, _) in TAUGHT.items()} | shown
    studio = load()
    base, judges, tasks = mannequin_base(studio), Judges(studio, p, count), tasks_of(p, count)
    request = Request(num_steps=p["num_steps"], guidance_scale=p["guidance_scale"], solver=p["solver"])
    photos = [reference_photo(p["split"], i, 0).image for i in range(count)]
    faces = [shown_face(photo, kps) for photo, kps in zip(photos, judges.kps(photos), strict=True)]
    famous = [" ".join(n) for n in celebrities()]
    total = (len(names) + 1) * len(tasks)
    rows, by_style, strips = [], [], []
    answered: list[Seen] = []
    measured: dict[str, dict[str, list[float]]] = {}  # by row, then by what is compared

    kept = Kept(out, p)

    def row(name: str, paint: Callable[[Sequence[Task], Callable[[int], None]], list[np.ndarray]], mark: Any = "") -> list[np.ndarray]:
        def tick(done: int) -> None:
            on_progress(done / total, name)

        return kept.row(name, tasks, lambda mine: paint(mine, tick), tick, mark)

    def by(who: Callable[[Task], str | LearnedWords]) -> Callable[[Sequence[Task], Callable[[int], None]], list[np.ndarray]]:
        return lambda mine, tick: _painted(studio, mine, who, request, tick)

    stars = row("celebrities by name", by(lambda t: famous[t.person]))
    cloud = reader_features(judges.reader, stars)
    for name in names:
        began, learning = time.monotonic(), 0.0
        vectors: dict[int, LearnedWords] = {}
        if name in methods:
            how, learning_from, mark = methods[name], base, ""
            if taught and name in taught:
                projection, began = taught[name](), time.monotonic()
                mark, learning_from = fingerprint_of([projection], name), replace(base, taught={how.layers: lambda p=projection: (p,)})
            folder = kept_in(out, name, how, mark)
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                on_progress(0, f"{name}: learning {i + 1} of {count}")
                vectors[i] = learned(learning_from, p["split"], i, how, folder)
            learning = time.monotonic() - began
            images = row(name, by(partial(_words_of, vectors)), [asdict(how), mark])
        elif name == "oracle":
            images = row(name, partial(oracle_pictures, studio, p["split"]))
        elif name == "celebrities by name":
            images = stars
            on_progress(len(stars) / total, name)
        else:
            images = row(name, by(lambda t: SOMEBODY))
        seen = judges.kps(images)
        results = judges.results(tasks, images, seen, asked_kps=False)
        if name == OURS:
            together = zip(tasks, results, images, strict=True)
            answered = [Seen.of_one(t.prompt, None if r["no_face"] else r["cosine"], image, t.person) for t, r, image in together]
        spread = [diversity(judges, shown_face(image, kps), faces[t.person]) for image, kps, t in zip(images, seen, tasks, strict=True)]
        strips.append((name, images[: p["prompts_per_person"]]))
        mine = {key: [r[key] for r in results] for key in ("rank1", "cosine", "attributes")}
        measured[name] = mine | {"trusted": [c * d for c, d in zip(mine["cosine"], spread, strict=True)]}
        low, high = bootstrap_interval(mine["cosine"], [t.person for t in tasks], num_draws=p["bootstrap"])
        columns: dict[str, float | str] = {
            "rank-1 of 100": mean(mine["rank1"]),
            "of 20 matched": mean([r["matched"] for r in results]),
            "cosine": mean(mine["cosine"]),
            "95 %": span(low, high),
            "attributes": mean(mine["attributes"]),
            "face diversity": mean(spread),
            "trusted": mean(measured[name]["trusted"]),
            "frechet": frechet_distance(reader_features(judges.reader, images), cloud),
            "no face": mean([r["no_face"] for r in results]),
            "s": kept.seconds[name],
        }
        if images is stars:  # other people than the protocol's: how alike they are to those says nothing, nor how far from themselves
            columns |= dict.fromkeys(("rank-1 of 100", "of 20 matched", "cosine", "face diversity", "trusted", "frechet"), float("nan")) | {"95 %": "-"}
        if vectors:
            columns["learning s"] = learning / count
            columns["range"] = max(float(np.abs(w.vectors[0]).max()) for w in vectors.values())
        rows.append(Row(name, columns))
        by_style += rows_by_style(name, tasks, results)
    notes = extent(p, count)
    table = studio.text[1].get_input_embeddings().weight.detach()
    ids = torch.tensor([studio.text[0](n, add_special_tokens=False)["input_ids"] for n in famous])
    notes.append(f"celebrities' own embeddings reach {float(table[ids].abs().max()):.4f}")
    for name in (n for n in names if n in methods):
        whole = BRIEF if name in TAUGHT else REFINED if name in ABLATIONS and name != REFINED else OURS
        if name == whole or whole not in measured:
            continue
        for key, what in (("attributes", "attributes"), ("rank1", "rank-1"), ("cosine", "judge cosine"), ("trusted", "trusted diversity")):
            difference = paired_interval(measured[whole][key], measured[name][key], [t.person for t in tasks])
            notes.append(f"{what}, {whole} minus {name}: {with_span(difference, 'people')}")
    if "oracle" in measured:
        for name in (n for n in names if n in methods):
            share = ratio_interval(measured[name]["rank1"], measured["oracle"]["rank1"], [t.person for t in tasks])
            notes.append(f"rank-1, {name}, over the oracle's: {with_span(share)}")
    notes.append("a picture without a face counts as cosine 0 and as missed")
    notes += [*more, *notes_on_weights()]
    strips.insert(0, ("photos", photos[:1]))
    report = Report("People learned as words", {**p, **measured_with()}, rows, by_style, notes, strips, worst_of(answered, p["split"]))
    write_report(report, out)
    return report
