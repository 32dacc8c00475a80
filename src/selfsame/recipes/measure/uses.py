"""InstantID's other uses by their pinned protocols: several people, views, mixes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsame.evaluation.metrics import bootstrap_interval, is_first, is_monotonic, mean, paired_interval, point_error, ratio_interval
from selfsame.evaluation.report import Report, Row, span, write_report
from selfsame.mannequins.attributes import SCENES, Look, View
from selfsame.mannequins.captions import NUMBER_WORDS, SCENE_PHRASES
from selfsame.mannequins.people import split_person
from selfsame.mannequins.render import PersonIn, Scene, draw
from selfsame.mannequins.scenes import draw_light
from selfsame.mannequins.world import CANONICAL_VIEWS, SIZE, WORLD_VERSION, average_kps
from selfsame.models.latents import encode
from selfsame.perception.embedders import ENCODER_CROP, embed, to_crops
from selfsame.recipes.common import to_pixels
from selfsame.recipes.measure.judging import Seen, judge_gallery, measured_with, notes_on_weights, worst_of
from selfsame.recipes.measure.protocols import asked, protocol, reference_photo
from selfsame.studio.crowd import Shown
from selfsame.studio.painting import Row as PaintRow
from selfsame.studio.places import Person, Places, Pose
from selfsame.studio.request import Request, Strengths
from selfsame.studio.studio import ENCODER_NAME, load
from selfsame.values.identity import Identity, mixed

PEOPLE, VIEWS, MIX = "people-1", "views-1", "mix-2"
GROUP_SCALE = 0.56  # of heads in a group's canonical picture: as large as the world draws them
Tick = Callable[[float, str], None]


def pinned(name: str, digest: Callable[[Mapping[str, Any]], str]) -> dict[str, Any]:
    """A protocol that this code asks as it was pinned.

    Raises:
        ValueError: it would ask for something else.
    """
    p = protocol(name)
    if p["world"] != WORLD_VERSION or p["asked_sha256"] != digest(p):
        raise ValueError(f"protocol {name} was pinned for other prompts, people, seeds or points than this code asks for: pin a new protocol")
    return p


def _hashed(asked_for: Any) -> str:
    return hashlib.sha256(json.dumps(asked_for, sort_keys=True).encode()).hexdigest()


def _extent(p: Mapping[str, Any], count: int, what: str) -> list[str]:
    """What a report says of how much was measured."""
    notes = [f"{count} {what}, protocol {p['name']}, world {p['world']}"]
    if count < p["people"]:
        notes.append(f"only {count} of the protocol's {p['people']}: not comparable with full runs")
    return notes


class Bench:
    """A studio, the judge's gallery, and each person's photo as a user would have it."""

    def __init__(self, p: Mapping[str, Any], device: str) -> None:
        self.p, self.studio, self.split = p, load(device=device), p["split"]
        self.gallery = judge_gallery(self.studio, self.split, range(p["gallery_people"]))
        self.request = Request(num_steps=p["num_steps"], guidance_scale=p["guidance_scale"], solver=p["solver"])
        self._known: dict[tuple[int, int], Identity] = {}

    def identity(self, person: int, photo: int = 0) -> Identity:
        """From a photo; key points from the detector, the true ones where it finds nothing."""
        if (person, photo) not in self._known:
            picture = reference_photo(self.split, person, photo)
            found = self.studio.faces(picture.image)
            kps = found[0].kps if found else picture.kps[0]
            row = embed(self.studio.encoder, to_crops([picture.image], [kps], ENCODER_CROP)).numpy()
            size = np.array([picture.image.shape[:2]])
            self._known[person, photo] = Identity(row, ENCODER_NAME, kps[None].astype(np.float32), size, (f"{self.split} {person} {photo}",))
        return self._known[person, photo]

    def vector(self, image: np.ndarray, near: np.ndarray | None = None) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The judge's unit vector and key points of the largest face, or of the one nearest to a place (x, y) and within a quarter of the height of it."""
        found = self.studio.faces(image)
        if near is not None:
            far = [float(np.linalg.norm(f.kps.mean(0) - near)) for f in found]
            found = [found[i] for i in np.argsort(far) if far[i] < image.shape[0] / 4]
        if not found:
            return None, None
        return self.studio.vectors(image, [found[0].kps])[0].numpy(), found[0].kps

    def through_vae(self, image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.studio.decode(encode(self.studio.vae, to_pixels(image[None])))[0]

    def report(
        self, title: str, rows: Sequence[Row], notes: Sequence[str], strips: Sequence[tuple[str, Sequence[np.ndarray]]], seen: Sequence[Seen], out: Path
    ) -> Report:
        about = {**self.p, **measured_with()}
        made = Report(title, about, rows, (), [*notes, *notes_on_weights()], strips, worst_of(seen, self.split))
        write_report(made, out)
        return made


# ---------------------------------------------------------------------------------------------- several people


@dataclass(frozen=True)
class Group:
    """One picture of several people."""

    people: tuple[int, ...]
    scene: str
    prompt: str
    seed: int

    @property
    def width(self) -> int:
        return {2: 192, 3: 256}[len(self.people)]


def groups_of(p: Mapping[str, Any], cases: int) -> list[Group]:
    """The first cases of the protocol; every third is of three people."""
    made = []
    for i in range(cases):
        rng = np.random.default_rng([p["seed"], i])
        count = 3 if i % 3 == 2 else 2
        people = tuple(int(v) for v in rng.choice(p["gallery_people"], count, replace=False))
        scene = SCENES[int(rng.integers(len(SCENES)))]
        made.append(Group(people, scene, f"a photo of {NUMBER_WORDS[count]} {SCENE_PHRASES[scene][0]}", int(rng.integers(2**31))))
    return made


def group_view(count: int, place: int, width: int) -> View:
    """Where person number `place` of so many stands, upright and from the front."""
    return replace(_group_frontal(), x=width / SIZE * ((2 * place + 1) / count - 1))


def group_kps(count: int, place: int, width: int) -> np.ndarray:
    """Key points (5 2 pixels) of the average face there."""
    return average_kps(_group_frontal())[0] + [(2 * place + 1) * width / count / 2 - SIZE / 2, 0]


def _group_frontal() -> View:
    return replace(CANONICAL_VIEWS[0], scale=GROUP_SCALE, y=0.2)


def people_digest(p: Mapping[str, Any]) -> str:
    groups = [[g.people, g.prompt, g.seed] for g in groups_of(p, p["people"])]
    return _hashed([groups, [group_kps(n, k, w).round(1).tolist() for n, w in ((2, 192), (3, 256)) for k in range(n)]])


def people(out: Path, *, cases: int = 0, only: Sequence[str] = (), device: str = "cpu", on_progress: Tick = lambda share, note: None) -> Report:
    """Two and three people in one picture, each judged where they were to stand.

    Raises:
        ValueError: an unknown row, or more cases than the protocol has.
    """
    p = pinned(PEOPLE, people_digest)
    count, names = asked(p, cases, only, ("both, a region each", "both, without regions", "IdentityNet alone", "oracle"))
    bench, groups, face = Bench(p, device), groups_of(p, count), average_kps(_group_frontal())[1]
    rows, strips = [], []
    seen: list[Seen] = []
    judged: dict[str, list[float]] = {}
    for name in names:
        hits, errors, missing, pictures, whose = [], [], [], [], []
        began = time.monotonic()
        for i, g in enumerate(groups):
            image = _group_picture(bench, g, name)
            pictures.append(image)
            for k, person in enumerate(g.people):
                kps = group_kps(len(g.people), k, g.width)
                vector, found = bench.vector(image, kps.mean(0))
                hits.append(float(is_first(vector, bench.gallery, person)))
                errors.append(point_error(found, kps, face))
                missing.append(float(vector is None))
                whose.append(i)
            if name == names[0]:
                right = sum(hits[-len(g.people) :])
                seen.append(Seen(right / len(g.people), f"{g.prompt}: {right:.0f} of {len(g.people)} in their places", image, g.people))
            on_progress(1 / len(groups) / len(names), name)
        judged[name] = hits
        low, high = bootstrap_interval(hits, whose, num_draws=p["bootstrap"])
        of = {n: mean([hit for hit, i in zip(hits, whose, strict=True) if len(groups[i].people) == n]) for n in (2, 3)}
        columns: dict[str, float | str] = {"rank-1 of 100, two": of[2], "three": of[3], "all": mean(hits), "95 %": span(low, high)}
        columns |= {"kps error": mean(errors), "no face there": mean(missing), "s": (time.monotonic() - began) / len(groups)}
        rows.append(Row(name, columns))
        strips.append((name, pictures[:6]))
    notes = [
        *_extent(p, count, "pictures of two and three people"),
        "no face within a quarter of the height of its place is a miss; key-point errors are over those found",
        *_of_groups(groups, judged, names[0]),
    ]
    return bench.report("Several people in one picture", rows, notes, strips, seen, out)


def _of_groups(groups: Sequence[Group], judged: Mapping[str, Sequence[float]], first: str) -> list[str]:
    """How much of the oracle each row reaches, and by how much the first row is better than the others; whole pictures are drawn."""
    whose = [i for i, g in enumerate(groups) for _ in g.people]
    lines = []
    for count in (2, 3):
        at = [k for k, i in enumerate(whose) if len(groups[i].people) == count]
        mine, of = {name: [hits[k] for k in at] for name, hits in judged.items()}, [whose[k] for k in at]
        for name in (n for n in mine if at and n != "oracle" and "oracle" in mine):
            middle, low, high = ratio_interval(mine[name], mine["oracle"], of)
            lines.append(f"rank-1, {count} people, {name}, over the oracle's: {middle:.3f} ({low:.3f} to {high:.3f})")
        for name in (n for n in mine if at and n not in ("oracle", first)):
            middle, low, high = paired_interval(mine[first], mine[name], of)
            lines.append(f"rank-1, {count} people, {first} minus {name}: {middle:+.3f} ({low:+.3f} to {high:+.3f}, paired over pictures)")
    return lines


def _group_picture(bench: Bench, g: Group, name: str) -> np.ndarray:
    n = len(g.people)
    if name == "oracle":
        rng = np.random.default_rng([0x6809, g.seed])
        subjects = [PersonIn(split_person(bench.split, who), Look(), group_view(n, k, g.width)) for k, who in enumerate(g.people)]
        return bench.through_vae(draw([Scene(tuple(subjects), g.scene, "photo", draw_light(g.scene, rng), g.seed, SIZE, g.width)])[0].image)
    request = replace(bench.request, width=g.width, height=SIZE)
    strengths = Strengths(adapter_scale=0.0 if name == "IdentityNet alone" else 1.0)
    everyone = [Person(bench.identity(who)) for who in g.people]
    masks = Places.of(everyone, SIZE, g.width).masks
    faces = tuple(
        Shown(bench.studio.embedding(person.identity, "mean"), group_kps(n, k, g.width), None if "without" in name else masks[k], strengths)
        for k, person in enumerate(everyone)
    )
    return bench.studio.paint([PaintRow(g.prompt, faces=faces)], request, [g.seed])[0][0]


# ---------------------------------------------------------------------------------------------- views


def views_digest(p: Mapping[str, Any]) -> str:
    return _hashed([[average_kps(_view(yaw))[0].round(1).tolist() for yaw in p["yaws"]], [_view_task(p, i) for i in range(p["people"])]])


def _view(yaw: float) -> View:
    return replace(CANONICAL_VIEWS[0], yaw_deg=yaw)


def _view_task(p: Mapping[str, Any], person: int) -> tuple[str, int]:
    rng = np.random.default_rng([p["seed"], person])
    scene = SCENES[int(rng.integers(len(SCENES)))]
    return f"a photo of a person {SCENE_PHRASES[scene][0]}", int(rng.integers(2**31))


def views(out: Path, *, people: int = 0, only: Sequence[str] = (), device: str = "cpu", on_progress: Tick = lambda share, note: None) -> Report:
    """One person from several sides: key points where they were asked for, and still the same person.

    Raises:
        ValueError: an unknown row, or more people than the protocol has.
    """
    p = pinned(VIEWS, views_digest)
    count, names = asked(p, people, only, [f"yaw {yaw:+d}" for yaw in p["yaws"]])
    bench = Bench(p, device)
    rows, strips, cosines = [], [], {}
    seen: list[Seen] = []
    for yaw in p["yaws"]:
        name = f"yaw {yaw:+d}"
        if name not in names:
            continue
        kps, width = average_kps(_view(yaw))
        pictures, errors, hits, sims, began = [], [], [], [], time.monotonic()
        for i in range(count):
            prompt, seed = _view_task(p, i)
            image = bench.studio.generate(replace(bench.request, prompt=prompt, seed=seed), bench.identity(i), pose=Pose(kps, SIZE, SIZE))[0].pixels
            vector, found = bench.vector(image)
            errors.append(point_error(found, kps, width))
            hits.append(float(is_first(vector, bench.gallery, i)))
            sims.append(0.0 if vector is None else float(bench.gallery[i] @ vector))
            pictures.append(image)
            seen.append(Seen.of_one(name, None if vector is None else sims[-1], image, i))
            on_progress(1 / count / len(names), name)
        cosines[yaw] = sims
        columns: dict[str, float | str] = {"kps error": mean(errors), "95 % of kps error": span(*bootstrap_interval([e for e in errors if not np.isnan(e)]))}
        columns |= {"no face": float(np.isnan(errors).mean()), "rank-1 of 100": mean(hits), "cosine": mean(sims)}
        rows.append(Row(name, columns | {"s": (time.monotonic() - began) / count}))
        strips.append((name, pictures[:8]))
    notes = _extent(p, count, f"people at {len(p['yaws'])} yaws")
    notes.append("key-point errors are over pictures with a face; cosine and rank-1 count one without as missed")
    for yaw, sims in cosines.items():
        if yaw and 0 in cosines:
            middle, low, high = paired_interval(sims, cosines[0])
            notes.append(f"judge cosine, yaw {yaw:+d} minus frontal: {middle:+.3f} ({low:+.3f} to {high:+.3f}, paired over people)")
    return bench.report("One person from several sides", rows, notes, strips, seen, out)


# ---------------------------------------------------------------------------------------------- mixes


def pairs_of(p: Mapping[str, Any], count: int) -> list[tuple[int, int, str, tuple[int, ...]]]:
    """Two people, a prompt and the seeds of each."""
    made = []
    for i in range(count):
        rng = np.random.default_rng([p["seed"], i])
        a, b = (int(v) for v in rng.choice(p["gallery_people"], 2, replace=False))
        prompt = f"a photo of a person {SCENE_PHRASES[SCENES[int(rng.integers(len(SCENES)))]][0]}"
        made.append((a, b, prompt, tuple(int(v) for v in rng.integers(2**31, size=p["seeds"]))))
    return made


def mix_digest(p: Mapping[str, Any]) -> str:
    return _hashed([pairs_of(p, p["people"]), p["shares"]])


def never_turns_back(towards: np.ndarray) -> bool:
    """Whether likeness to the first end only falls and to the second only rises; 2 steps cosines."""
    return is_monotonic(towards[0].tolist(), rising=False) and is_monotonic(towards[1].tolist(), rising=True)


def mixes(out: Path, *, pairs: int = 0, only: Sequence[str] = (), device: str = "cpu", on_progress: Tick = lambda share, note: None) -> Report:
    """From one person to another in steps: the judge sees less of the first and more of the second.

    Raises:
        ValueError: an unknown row, or more pairs than the protocol has.
    """
    p = pinned(MIX, mix_digest)
    count, names = asked(p, pairs, only, ("linear", "spherical"))
    bench = Bench(p, device)
    kps = average_kps(CANONICAL_VIEWS[0])[0]
    rows, strips, curves = [], [], []
    seen: list[Seen] = []
    for how in names:
        on_average, single, missing, pictures, all_towards, began = [], [], [], [], [], time.monotonic()
        for a, b, prompt, seeds in pairs_of(p, count):
            ends = [bench.identity(a), bench.identity(b)]
            between = [mixed(ends, [1 - s, s], how) for s in p["shares"]]
            row = [PaintRow(prompt, faces=(Shown(torch.from_numpy(who.embeddings)[None], kps),)) for who in between]
            strip = [bench.studio.paint(row, bench.request, [seed] * len(row))[0] for seed in seeds]
            vectors = [[bench.vector(image)[0] for image in images] for images in strip]
            towards = np.array([[[0.0 if v is None else float(bench.gallery[who] @ v) for v in line] for who in (a, b)] for line in vectors])  # seeds 2 steps
            missing.append(mean([float(any(v is None for v in line)) for line in vectors]))
            single += [float(never_turns_back(line)) for line in towards]
            middle = towards.mean(0)
            on_average.append(float(never_turns_back(middle)))
            all_towards.append(middle)
            pictures.append(strip[0])
            spans = middle[0, 0] - middle[0, -1], middle[1, -1] - middle[1, 0]
            said = f"{how}: cosine to the ends {spans[0]:+.2f} and {spans[1]:+.2f}"
            seen.append(Seen(on_average[-1] + float(np.sum(spans)), said, np.concatenate(strip[0], 1), (a, b)))
            on_progress(1 / count / len(names), how)
        low, high = bootstrap_interval(on_average, num_draws=p["bootstrap"])
        curve = np.mean(all_towards, axis=0)
        columns: dict[str, float | str] = {"monotonic to both ends": mean(on_average), "95 %": span(low, high), "single strips": mean(single)}
        columns["cosine from end to end"] = float(np.mean([curve[0, 0] - curve[0, -1], curve[1, -1] - curve[1, 0]]))
        rows.append(Row(how, columns | {"strips with a step without a face": mean(missing), "s": (time.monotonic() - began) / count}))
        strips += [(how, images) for images in pictures[:3]]
        steps = ", ".join(f"{s:g}: {x:.3f} and {y:.3f}" for s, x, y in zip(p["shares"], *curve, strict=True))
        curves.append(f"{how}, mean cosine to the first and to the second at each share: {steps}")
    notes = [*_extent(p, count, f"pairs, {len(p['shares'])} steps of {p['seeds']} seeds each"), *curves]
    notes.append("monotonic: the mean cosine over the seeds never turns back; a picture without a face counts as 0, likeness to nobody")
    return bench.report("From one person to another", rows, notes, strips, seen, out)
