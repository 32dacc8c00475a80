"""Measurements: InstantID by the pinned protocol, and the figure of every small model."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsame.evaluation.metrics import bootstrap_interval, is_first, mean, paired_interval, point_error
from selfsame.evaluation.report import Report, Row, text_table, write_report
from selfsame.mannequins.attributes import CLOTHES, COLOUR_NAMES, EXPRESSIONS, SCENES, STYLES, Look
from selfsame.mannequins.captions import caption_person
from selfsame.mannequins.people import SPLITS, FirstHalf, LastHalf, Person, split_person
from selfsame.mannequins.render import PersonIn, Picture, Scene, draw, faces_of
from selfsame.mannequins.scenes import draw_light
from selfsame.mannequins.world import CANONICAL_VIEWS, WORLD_VERSION, draw_look, draw_view, neutral_scene
from selfsame.models.latents import encode
from selfsame.perception.embedders import ENCODER_CROP, JUDGE_CROP, embed, to_crops
from selfsame.perception.reader import AttributeReader, agreement, read
from selfsame.recipes.common import to_pixels
from selfsame.studio.request import Request
from selfsame.studio.studio import Row as PaintRow
from selfsame.studio.studio import Studio, load
from selfsame.weights import mannequin

ROW_NAMES = ("base without a face", "Image Adapter alone", "IdentityNet alone", "both", "both, 4 photos", "oracle")
BATCH = 4


@dataclass(frozen=True)
class Task:
    """One picture to be asked for and judged."""

    person: int  # index in the split
    attributes: dict[str, str]
    prompt: str
    view: int  # canonical view
    seed: int


def average_person() -> Person:
    """Nobody: every number at its middle."""
    first = FirstHalf(0.5, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    last = LastHalf(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    return Person(first, last)


def canonical_kps(view: int) -> tuple[np.ndarray, float]:
    """Key points (5 2 pixels at 128) and face width of the average face in a canonical view."""
    scene = Scene((PersonIn(average_person(), Look(), CANONICAL_VIEWS[view]),))
    kps, boxes = faces_of(scene)
    return kps[0].astype(np.float64), float(boxes[0][2] - boxes[0][0])


def protocol() -> dict[str, Any]:
    """The pinned protocol that ships."""
    return json.loads((resources.files("selfsame.evaluation") / "protocols/identity-2.json").read_text())


def asked_digest(p: dict[str, Any]) -> str:
    """Hash of everything a run of the protocol asks for: prompts, seeds, views, key points in tenths of a pixel, the judge's crop."""
    asked = {
        "tasks": [asdict(t) for t in tasks_of(p, p["people"])],
        "kps": [canonical_kps(i)[0].round(1).tolist() for i in range(len(CANONICAL_VIEWS))],
        "crop": asdict(JUDGE_CROP),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def checked_protocol() -> dict[str, Any]:
    """The pinned protocol.

    Raises:
        ValueError: this code would ask for something else than the protocol says.
    """
    p = protocol()
    if p["world"] != WORLD_VERSION or p["asked_sha256"] != asked_digest(p):
        raise ValueError(
            f"protocol {p['name']} was pinned for other prompts, seeds, views or another world than this code draws (world {WORLD_VERSION}): "
            "figures would not compare; use the release it was pinned with, or pin a new protocol"
        )
    return p


def tasks_of(p: dict[str, Any], people: int) -> list[Task]:
    """All pictures of the protocol for its first `people` people."""
    tasks = []
    for person in range(people):
        for k in range(p["prompts_per_person"]):
            rng = np.random.default_rng([p["seed"], person, k])
            style = "photo" if k % 2 == 0 else STYLES[1 + (person + 3 * (k // 2)) % (len(STYLES) - 1)]
            attributes = {
                "style": style,
                "scene": SCENES[int(rng.integers(len(SCENES)))],
                "expression": EXPRESSIONS[int(rng.integers(len(EXPRESSIONS)))],
                "clothes": CLOTHES[int(rng.integers(len(CLOTHES)))],
                "clothes_colour": COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))],
            }
            prompt = caption_person(attributes, None, None)
            tasks.append(Task(person, attributes, prompt, int(rng.integers(len(CANONICAL_VIEWS))), int(rng.integers(2**31))))
    return tasks


def reference_photo(split: str, person: int, k: int) -> Picture:
    """Photo k of a person, as a user might have it."""
    rng = np.random.default_rng([0x9407, SPLITS[split][0] + person, k])
    place = SCENES[int(rng.integers(len(SCENES)))]
    subject = PersonIn(split_person(split, person), draw_look(rng), draw_view(rng))
    return draw([Scene((subject,), place, "photo", draw_light(place, rng), int(rng.integers(2**31)))])[0]


def oracle_picture(split: str, task: Task) -> np.ndarray:
    """What a perfect model would paint: the person with everything that was asked, in the asked view."""
    a = task.attributes
    look = Look(expression=a["expression"], clothes=a["clothes"], clothes_colour=a["clothes_colour"])
    rng = np.random.default_rng([0x0AC1E, task.seed])
    scene = Scene(
        (PersonIn(split_person(split, task.person), look, CANONICAL_VIEWS[task.view]),), a["scene"], a["style"], draw_light(a["scene"], rng), task.seed
    )
    return draw([scene])[0].image


def judge_gallery(studio: Studio, split: str, people: Sequence[int]) -> np.ndarray:
    """Unit judge vectors of one neutral render each, by exact key points. n d."""
    pictures = [draw([neutral_scene(split_person(split, i))])[0] for i in people]
    rows = embed(studio.judge, to_crops([p.image for p in pictures], [p.kps[0] for p in pictures], JUDGE_CROP))
    return torch.nn.functional.normalize(rows, dim=1).numpy()


def matched_people(split: str, person: int, count: int = 20) -> list[int]:
    """The person and those of the split nearest in hair colour and skin."""
    who = split_person(split, person)

    def far(i: int) -> float:
        other = split_person(split, i)
        skin = np.abs(other.skin_rgb() - who.skin_rgb()).sum()
        hair = np.abs(other.hair_rgb() - who.hair_rgb()).sum()
        return float(skin + hair)

    others = sorted((i for i in range(SPLITS[split][1]) if i != person), key=far)
    return [person, *others[: count - 1]]


def _reader() -> AttributeReader:
    net = AttributeReader()
    mannequin.load_into(net, "reader.safetensors")
    return net


def _paint_row(studio: Studio, name: str, tasks: Sequence[Task], split: str, request: Request, tick: Callable[[int], None]) -> list[np.ndarray]:
    """All pictures of one row of the table."""
    images: list[np.ndarray] = []
    if name == "oracle":
        for start in range(0, len(tasks), 16):
            pixels = np.stack([oracle_picture(split, t) for t in tasks[start : start + 16]])
            with torch.no_grad():
                images += studio.decode(encode(studio.vae, to_pixels(pixels)))
            tick(len(pixels))
        return images
    scales = {"Image Adapter alone": (1.0, 0.0), "IdentityNet alone": (0.0, 1.0)}.get(name, (1.0, 1.0))
    request = replace(request, adapter_scale=scales[0], controlnet_scale=scales[1])
    embeddings: dict[int, torch.Tensor] = {}
    for start in range(0, len(tasks), BATCH):
        chunk = tasks[start : start + BATCH]
        rows = []
        for t in chunk:
            embedding = kps = None
            if name != "base without a face":
                if t.person not in embeddings:
                    photos = [reference_photo(split, t.person, k) for k in range(4 if name.endswith("4 photos") else 1)]
                    crops = to_crops([p.image for p in photos], [_seen_kps(studio, p) for p in photos], ENCODER_CROP)
                    embeddings[t.person] = embed(studio.encoder, crops).mean(0, keepdim=True)[None]
                embedding, kps = embeddings[t.person], canonical_kps(t.view)[0]
            rows.append(PaintRow(t.prompt, "", embedding, kps))
        images += studio.paint(rows, request, [t.seed for t in chunk])[0]
        tick(len(chunk))
    return images


def _seen_kps(studio: Studio, photo: Picture) -> np.ndarray:
    """Key points as a user gets them: from the detector; the true ones where it finds nothing."""
    found = studio.faces(photo.image)
    return found[0].kps if found else photo.kps[0]


def identity(
    out: Path, *, people: int = 0, only: Sequence[str] = (), device: str = "cpu", on_progress: Callable[[float, str], None] = lambda share, note: None
) -> Report:
    """Run the identity protocol.

    Args:
        out: folder for report.json and report.html.
        people: only the first so many of the protocol's people; 0: all. The gallery stays whole.
        only: only these rows.

    Raises:
        ValueError: an unknown row, or more people than the protocol has.
    """
    p = checked_protocol()
    count = people or p["people"]
    if not 1 <= count <= p["people"]:
        raise ValueError(f"--people {people}: the protocol has 1 to {p['people']}")
    names = tuple(only) or ROW_NAMES
    for name in names:
        if name not in ROW_NAMES:
            raise ValueError(f"row {name!r} is unknown: choose from {', '.join(ROW_NAMES)}")
    studio, net, split = load(device=device), _reader(), p["split"]
    tasks = tasks_of(p, count)
    gallery = judge_gallery(studio, split, range(p["people"]))
    matched = {i: judge_gallery(studio, split, matched_people(split, i)) for i in range(count)}
    request = Request(num_steps=p["num_steps"], guidance_scale=p["guidance_scale"], solver=p["solver"])
    total = len(names) * len(tasks)
    rows, by_style, strips = [], [], []
    cosines: dict[str, list[float]] = {}
    for name in names:
        began = time.monotonic()
        images = _paint_row(studio, name, tasks, split, request, lambda n, name=name: on_progress(n / total, name))
        seconds = (time.monotonic() - began) / len(tasks)
        strips.append((name, images[:8]))
        seen = read(net, images)
        results: list[dict[str, float]] = []
        for task, image, words in zip(tasks, images, seen, strict=True):
            found = studio.faces(image)
            vector = None
            if found:
                vector = torch.nn.functional.normalize(embed(studio.judge, to_crops([image], [found[0].kps], JUDGE_CROP))[0], dim=0).numpy()
            kps, width = canonical_kps(task.view)
            right, asked = agreement(task.attributes, words)
            results.append(
                {
                    "rank1": float(is_first(vector, gallery, task.person)),
                    "matched": float(is_first(vector, matched[task.person], 0)),
                    "cosine": float(gallery[task.person] @ vector) if vector is not None else 0.0,
                    "attributes": right / asked,
                    "kps": point_error(found[0].kps if found else None, kps, width),
                    "no_face": float(not found),
                }
            )
        cosines[name] = [r["cosine"] for r in results]
        rows.append(Row(name, _columns(results, seconds, p["bootstrap"], [t.person for t in tasks])))
        for style in STYLES:
            mine = [r for r, t in zip(results, tasks, strict=True) if t.attributes["style"] == style]
            if mine:
                by_style.append(
                    Row(f"{name}, {style}", {k: mean([r[k] for r in mine]) for k in ("rank1", "matched", "cosine", "attributes", "kps", "no_face")})
                )
    notes = [f"{count} people x {p['prompts_per_person']} prompts, protocol {p['name']}, world {p['world']}"]
    if count < p["people"]:
        notes.append(f"only {count} of the protocol's {p['people']} people: not comparable with full runs")
    for a, b in (("both", "Image Adapter alone"), ("both", "IdentityNet alone"), ("both, 4 photos", "both")):
        if a in cosines and b in cosines:
            middle, low, high = paired_interval(cosines[a], cosines[b], [t.person for t in tasks])
            notes.append(f"judge cosine, {a} minus {b}: {middle:+.3f} ({low:+.3f} to {high:+.3f}, paired bootstrap over people)")
    notes.append("a picture without a face counts as cosine 0 and as missed; key-point errors are over pictures with a face")
    made_for = {v["world"] for v in mannequin.manifest()["provenance"].values()}
    if made_for != {WORLD_VERSION}:
        notes.append(f"some weights were trained on another world (versions {', '.join(sorted(made_for))}) than the one measured in ({WORLD_VERSION})")
    references = [reference_photo(split, t.person, 0).image for t in tasks[:8]]
    report = Report(
        "InstantID on held-out people",
        {**p, "weights_sha256": mannequin.manifest()["files"]},
        rows,
        by_style,
        notes,
        [("reference photo", references), *strips],
    )
    write_report(report, out)
    return report


def _columns(results: list[dict[str, float]], seconds: float, draws: int, people: Sequence[int]) -> dict[str, float | str]:
    low, high = bootstrap_interval([r["cosine"] for r in results], people, num_draws=draws)
    return {
        "rank-1 of 100": mean([r["rank1"] for r in results]),
        "of 20 matched": mean([r["matched"] for r in results]),
        "cosine": mean([r["cosine"] for r in results]),
        "95 %": f"{low:.3f}..{high:.3f}",
        "attributes": mean([r["attributes"] for r in results]),
        "kps error": mean([r["kps"] for r in results]),
        "no face": mean([r["no_face"] for r in results]),
        "s": seconds,
    }


def models(data: Path, out: Path, *, device: str = "cpu") -> int:
    """The held-out figure of every small model, as a table and models.json."""
    from selfsame.data.tables import open_table
    from selfsame.mannequins.people import celebrities, person_named
    from selfsame.perception.embedders import rank1
    from selfsame.recipes.faces import detector_figures, face_rows
    from selfsame.recipes.vae import vae_figures
    from selfsame.recipes.words import reader_figures

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
    rows.append(Row("detector", dict(detector_figures(studio.detector, table, 400))))
    rows.append(Row("vae", dict(vae_figures(studio.vae, table, 256))))
    rows.append(Row("reader", dict(reader_figures(_reader(), table))))

    # The base: attribute accuracy of its pictures, and named people drawn right among the first 100 celebrities.
    rng = np.random.default_rng(5)
    tasks = tasks_of(protocol(), 50)
    request = Request()
    drawn: list[np.ndarray] = []
    for start in range(0, len(tasks), BATCH):
        drawn += studio.paint([PaintRow(t.prompt) for t in tasks[start : start + BATCH]], request, [t.seed for t in tasks[start : start + BATCH]])[0]
    scores = [agreement(t.attributes, w) for t, w in zip(tasks, read(_reader(), drawn), strict=True)]
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
    (out / "models.json").write_text(json.dumps({r.name: r.columns for r in rows}, indent=1))
    print(text)
    return 0
