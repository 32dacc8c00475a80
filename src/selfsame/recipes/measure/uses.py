"""InstantID's other uses by their pinned protocols: several people, views, mixes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsame.evaluation.metrics import bootstrap_interval, is_first, is_monotonic, mean, paired_interval, point_error, ratio_interval
from selfsame.evaluation.report import Report, Row, span, with_span, write_report
from selfsame.mannequins.attributes import SCENES, Look, View
from selfsame.mannequins.captions import NUMBER_WORDS, SCENE_PHRASES
from selfsame.mannequins.people import split_person
from selfsame.mannequins.render import PersonIn, Scene, draw
from selfsame.mannequins.scenes import draw_light
from selfsame.mannequins.world import CANONICAL_VIEWS, SIZE, average_kps
from selfsame.models.latents import encode
from selfsame.perception.embedders import ENCODER_CROP, embed, to_crops
from selfsame.recipes.common import to_pixels
from selfsame.recipes.measure.judging import Seen, judge_gallery, measured_with, notes_on_weights, worst_of
from selfsame.recipes.measure.others import Others, answered, flattery
from selfsame.recipes.measure.pictures import Kept, Part, Question, hand_out
from selfsame.recipes.measure.protocols import asked, checked_protocol, extent, reference_photo
from selfsame.studio.crowd import Shown
from selfsame.studio.painting import Row as PaintRow
from selfsame.studio.places import Person, Places, Pose
from selfsame.studio.places import columns as side_by_side
from selfsame.studio.request import Request, Strengths
from selfsame.studio.studio import ENCODER_NAME, load
from selfsame.values.identity import Identity, mixed

PEOPLE, VIEWS, MIX = "people-1", "views-1", "mix-2"
GROUP_SCALE = 0.56  # of heads in a group's canonical picture: as large as the world draws them
Tick = Callable[[float, str], None]


def _hashed(asked_for: Any) -> str:
    return hashlib.sha256(json.dumps(asked_for, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Asking:
    """How a protocol is measured, whichever it is."""

    out: Path  # folder for the report, and for the pictures, so that a run that was stopped goes on
    pictures: Path | None = None  # another tool's answers to `ask`, as one more row
    judges: Sequence[str] = ()  # others beside the protocol's, as for `folder`
    conditioner: str = ""  # what conditioned the other tool's pictures
    device: str = "cpu"
    on_progress: Tick = lambda share, note: None


class Bench:
    """A studio, the judge's gallery, each person's photo as a user would have it, and the pictures that are judged."""

    def __init__(self, p: dict[str, Any], asking: Asking) -> None:
        self.p, self.studio, self.split, self.asking = p, load(device=asking.device), p["split"], asking
        self.gallery = judge_gallery(self.studio, self.split, range(p["gallery_people"]))
        self.others = Others(self.studio, asking.judges, self.split, p["gallery_people"])
        self.request = Request(num_steps=p["num_steps"], guidance_scale=p["guidance_scale"], solver=p["solver"])
        self.kept, self.notes = Kept(asking.out, p), []
        self._known: dict[tuple[int, int], Identity] = {}

    def series(
        self, names: Sequence[str], questions: Sequence[Question], together: Sequence[Hashable], paint: Callable[[str, Sequence[int]], list[np.ndarray]]
    ) -> Iterator[tuple[str, list[np.ndarray], float, str]]:
        """Another tool's answers, if any, then our own: the row's name, a picture for each question, seconds a picture, what conditioned them.

        Args:
            together: of each question; neighbours of one kind are painted at once.
            paint: paints some questions of a row, by their numbers.
        """
        asking = self.asking
        if asking.pictures:
            name, answers, made_by, notes = answered(asking.pictures, questions, self.p["name"], asking.conditioner)
            self.notes += notes
            yield name, answers, float("nan"), made_by
        for name in names:

            def tick(done: int, name: str = name) -> None:
                asking.on_progress(done / len(questions) / len(names), name)

            def painted(at: Sequence[int], name: str = name, tick: Callable[[int], None] = tick) -> list[np.ndarray]:
                images = paint(name, at)
                tick(len(at))
                return images

            images = self.kept.files(name, [q.file for q in questions], together, painted, tick)
            yield name, images, self.kept.seconds[name], "" if name == "oracle" else ENCODER_NAME

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

    def report(self, title: str, rows: Sequence[Row], notes: Sequence[str], strips: Sequence[tuple[str, Sequence[np.ndarray]]], seen: Sequence[Seen]) -> Report:
        about = {**self.p, **measured_with()}
        notes = [*notes, *self.notes, *flattery(rows), *notes_on_weights()]
        made = Report(title, about, rows, (), notes, strips, worst_of(seen, self.split))
        write_report(made, self.asking.out)
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


def _group_questions(groups: Sequence[Group]) -> list[Question]:
    parts = [tuple(Part(who, group_kps(len(g.people), k, g.width)) for k, who in enumerate(g.people)) for g in groups]
    return [Question(f"{i:03d}.png", g.prompt, g.seed, SIZE, g.width, of) for i, (g, of) in enumerate(zip(groups, parts, strict=True))]


def people(asking: Asking, *, cases: int = 0, only: Sequence[str] = ()) -> Report:
    """Two and three people in one picture, each judged where they were to stand.

    Raises:
        InputError: a judge or folder that cannot be used.
        ValueError: an unknown row, or more cases than the protocol has.
    """
    p = checked_protocol(PEOPLE, people_digest)
    count, names = asked(p, cases, only, ("both, a region each", "both, without regions", "IdentityNet alone", "oracle"))
    bench, groups, face = Bench(p, asking), groups_of(p, count), average_kps(_group_frontal())[1]
    rows, strips = [], []
    seen: list[Seen] = []
    judged: dict[str, list[float]] = {}
    whose, everyone = zip(*((i, who) for i, g in enumerate(groups) for who in g.people), strict=True)

    def paint(name: str, at: Sequence[int]) -> list[np.ndarray]:
        return [_group_picture(bench, groups[i], name) for i in at]

    for name, pictures, seconds, made_by in bench.series(names, _group_questions(groups), range(len(groups)), paint):
        hits, errors, missing = [], [], []
        for image, g in zip(pictures, groups, strict=True):
            for k, person in enumerate(g.people):
                kps = group_kps(len(g.people), k, g.width)
                vector, found = bench.vector(image, kps.mean(0))
                hits.append(float(is_first(vector, bench.gallery, person)))
                errors.append(point_error(found, kps, face))
                missing.append(float(vector is None))
            if not judged:
                right = sum(hits[-len(g.people) :])
                seen.append(Seen(right / len(g.people), f"{g.prompt}: {right:.0f} of {len(g.people)} in their places", image, g.people))
        judged[name] = hits
        low, high = bootstrap_interval(hits, whose, num_draws=p["bootstrap"])
        of = {n: mean([hit for hit, i in zip(hits, whose, strict=True) if len(groups[i].people) == n]) for n in (2, 3)}
        columns: dict[str, float | str] = {"rank-1 of 100, two": of[2], "three": of[3], "all": mean(hits), "95 %": span(low, high)}
        columns |= {"kps error": mean(errors), "no face there": mean(missing)}
        columns |= bench.others.columns([part for image, g in zip(pictures, groups, strict=True) for part in _columns_of(image, g)], everyone, made_by)
        rows.append(Row(name, columns | {"s": seconds}))
        strips.append((name, pictures[:6]))
    notes = [
        *extent(p, count, "pictures of two and three people"),
        "no face within a quarter of the height of its place is a miss; key-point errors are over those found",
        *_of_groups(groups, judged),
    ]
    return bench.report("Several people in one picture", rows, notes, strips, seen)


def _columns_of(image: np.ndarray, g: Group) -> list[np.ndarray]:
    """A group's picture, cut between the people, for judges that see one face."""
    return [image[:, x0:x1] for x0, _, x1, _ in side_by_side(len(g.people), *image.shape[:2])[0]]


def _of_groups(groups: Sequence[Group], judged: Mapping[str, Sequence[float]]) -> list[str]:
    """How much of the oracle each row reaches, and by how much the first row is better than the others; whole pictures are drawn."""
    first = next(iter(judged))
    whose = [i for i, g in enumerate(groups) for _ in g.people]
    lines = []
    for count in (2, 3):
        at = [k for k, i in enumerate(whose) if len(groups[i].people) == count]
        mine, of = {name: [hits[k] for k in at] for name, hits in judged.items()}, [whose[k] for k in at]
        for name in (n for n in mine if at and n != "oracle" and "oracle" in mine):
            share = ratio_interval(mine[name], mine["oracle"], of)
            lines.append(f"rank-1, {count} people, {name}, over the oracle's: {with_span(share)}")
        for name in (n for n in mine if at and n not in ("oracle", first)):
            difference = paired_interval(mine[first], mine[name], of)
            lines.append(f"rank-1, {count} people, {first} minus {name}: {with_span(difference, 'pictures')}")
    return lines


def oracle_group(bench: Bench, g: Group) -> np.ndarray:
    """The renderer's picture of a group, through the VAE."""
    n, rng = len(g.people), np.random.default_rng([0x6809, g.seed])
    subjects = [PersonIn(split_person(bench.split, who), Look(), group_view(n, k, g.width)) for k, who in enumerate(g.people)]
    return bench.through_vae(draw([Scene(tuple(subjects), g.scene, "photo", draw_light(g.scene, rng), g.seed, SIZE, g.width)])[0].image)


def _group_picture(bench: Bench, g: Group, name: str) -> np.ndarray:
    if name == "oracle":
        return oracle_group(bench, g)
    n = len(g.people)
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


def _view_questions(p: Mapping[str, Any], yaws: Sequence[int], count: int) -> list[Question]:
    points = {yaw: average_kps(_view(yaw))[0] for yaw in yaws}
    return [Question(f"{i:03d}{yaw:+03d}.png", *_view_task(p, i), SIZE, SIZE, (Part(i, points[yaw]),)) for yaw in yaws for i in range(count)]


def views(asking: Asking, *, people: int = 0, only: Sequence[str] = ()) -> Report:
    """One person from several sides: key points where they were asked for, and still the same person.

    Raises:
        InputError: a judge or folder that cannot be used.
        ValueError: an unknown row, or more people than the protocol has.
    """
    p = checked_protocol(VIEWS, views_digest)
    count, names = asked(p, people, only, [f"yaw {yaw:+d}" for yaw in p["yaws"]])
    yaws = [yaw for yaw in p["yaws"] if f"yaw {yaw:+d}" in names]
    bench, questions, width = Bench(p, asking), _view_questions(p, yaws, count), {yaw: average_kps(_view(yaw))[1] for yaw in yaws}
    rows, strips, cosines = [], [], {}
    seen: list[Seen] = []

    def paint(name: str, at: Sequence[int]) -> list[np.ndarray]:
        made = []
        for q in (questions[i] for i in at):
            (part,) = q.parts
            made += bench.studio.generate(replace(bench.request, prompt=q.prompt, seed=q.seed), bench.identity(part.person), pose=Pose(part.kps, SIZE, SIZE))
        return [m.pixels for m in made]

    for name, pictures, seconds, made_by in bench.series(("as asked",), questions, [(q.parts[0].person, q.file) for q in questions], paint):
        for k, yaw in enumerate(yaws):
            images, called = pictures[k * count : (k + 1) * count], f"yaw {yaw:+d}" if name == "as asked" else f"{name}, yaw {yaw:+d}"
            (vectors, found) = zip(*(bench.vector(image) for image in images), strict=True)
            errors = [point_error(points, questions[k * count].parts[0].kps, width[yaw]) for points in found]
            hits = [float(is_first(v, bench.gallery, i)) for i, v in enumerate(vectors)]
            sims = [0.0 if v is None else float(bench.gallery[i] @ v) for i, v in enumerate(vectors)]
            seen += [Seen.of_one(called, None if v is None else sims[i], images[i], i) for i, v in enumerate(vectors)]
            cosines.setdefault(name, {})[yaw] = sims
            columns: dict[str, float | str] = {
                "kps error": mean(errors),
                "95 % of kps error": span(*bootstrap_interval([e for e in errors if not np.isnan(e)])),
            }
            columns |= {"no face": float(np.isnan(errors).mean()), "rank-1 of 100": mean(hits), "cosine": mean(sims)}
            rows.append(Row(called, columns | bench.others.columns(images, range(count), made_by) | {"s": seconds}))
            strips.append((called, images[:8]))
    notes = extent(p, count, f"people at {len(yaws)} yaws")
    notes.append("key-point errors are over pictures with a face; cosine and rank-1 count one without as missed")
    for name, at in cosines.items():
        for yaw, sims in at.items():
            if yaw and 0 in at:
                difference = paired_interval(sims, at[0], num_draws=p["bootstrap"])
                whose = "" if name == "as asked" else f"{name}, "
                notes.append(f"judge cosine, {whose}yaw {yaw:+d} minus frontal: {with_span(difference, 'people')}")
    return bench.report("One person from several sides", rows, notes, strips, seen)


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
    """Whether likeness to the first end only falls and to the second only rises, and both change at all: blank pictures do not; 2 steps cosines."""
    moves = towards[0, 0] > towards[0, -1] and towards[1, -1] > towards[1, 0]
    return bool(moves) and is_monotonic(towards[0].tolist(), rising=False) and is_monotonic(towards[1].tolist(), rising=True)


def _mix_questions(p: Mapping[str, Any], count: int) -> list[Question]:
    """Pair after pair, seed after seed, step after step."""
    kps = average_kps(CANONICAL_VIEWS[0])[0]
    return [
        Question(f"{i:03d}-{k}-{step}.png", prompt, seed, SIZE, SIZE, (Part(a, kps, 1 - s), Part(b, kps, s)))
        for i, (a, b, prompt, seeds) in enumerate(pairs_of(p, count))
        for k, seed in enumerate(seeds)
        for step, s in enumerate(p["shares"])
    ]


def mixes(asking: Asking, *, pairs: int = 0, only: Sequence[str] = ()) -> Report:
    """From one person to another in steps: the judge sees less of the first and more of the second.

    Raises:
        InputError: a judge or folder that cannot be used.
        ValueError: an unknown row, or more pairs than the protocol has.
    """
    p = checked_protocol(MIX, mix_digest)
    count, names = asked(p, pairs, only, ("even", "spherical", "linear"))
    bench, questions, everyone = Bench(p, asking), _mix_questions(p, count), pairs_of(p, count)
    num_steps = len(p["shares"])
    rows, strips, curves = [], [], []
    seen: list[Seen] = []
    judged: dict[str, list[float]] = {}

    def paint(how: str, at: Sequence[int]) -> list[np.ndarray]:
        asked_for = [questions[i] for i in at]
        people = [mixed([bench.identity(part.person) for part in q.parts], [part.share for part in q.parts], how) for q in asked_for]
        paint_rows = [
            PaintRow(q.prompt, faces=(Shown(torch.from_numpy(who.embeddings)[None], q.parts[0].kps),)) for q, who in zip(asked_for, people, strict=True)
        ]
        return bench.studio.paint(paint_rows, bench.request, [q.seed for q in asked_for])[0]

    for how, images, seconds, made_by in bench.series(names, questions, [q.file.rpartition("-")[0] for q in questions], paint):
        faces = [bench.vector(image)[0] for image in images]
        missing = [float(any(v is None for v in faces[i : i + num_steps])) for i in range(0, len(faces), num_steps)]
        towards = _towards(p, everyone, faces, bench.gallery)
        middle = towards.mean(1)
        on_average = judged[how] = [float(never_turns_back(line)) for line in middle]
        for (a, b, *_), turns, line, strip in zip(everyone, on_average, middle, range(0, len(images), num_steps * p["seeds"]), strict=True):
            spans = line[0, 0] - line[0, -1], line[1, -1] - line[1, 0]
            said = f"{how}: cosine to the ends {spans[0]:+.2f} and {spans[1]:+.2f}"
            seen.append(Seen(turns + float(np.sum(spans)), said, np.concatenate(images[strip : strip + num_steps], 1), (a, b)))
        low, high = bootstrap_interval(on_average, num_draws=p["bootstrap"])
        curve = middle.mean(0)
        columns: dict[str, float | str] = {"monotonic to both ends": mean(on_average), "95 %": span(low, high)}
        columns["single strips"] = mean([float(never_turns_back(line)) for lines in towards for line in lines])
        columns["cosine from end to end"] = float(np.mean([curve[0, 0] - curve[0, -1], curve[1, -1] - curve[1, 0]]))
        for judge in bench.others.judges:
            lines = _towards(p, everyone, [judge.see(image) for image in images], bench.others.gallery(judge)).mean(1)
            columns[f"monotonic, {judge.called(made_by)}"] = mean([float(never_turns_back(line)) for line in lines])
        rows.append(Row(how, columns | {"strips with a step without a face": mean(missing), "s": seconds}))
        strips += [(how, images[k * num_steps * p["seeds"] :][:num_steps]) for k in range(min(3, count))]
        steps = ", ".join(f"{s:g}: {x:.3f} and {y:.3f}" for s, x, y in zip(p["shares"], *curve, strict=True))
        curves.append(f"{how}, mean cosine to the first and to the second at each share: {steps}")
    first, *others = judged
    for how in others:
        difference = paired_interval(judged[first], judged[how], num_draws=p["bootstrap"])
        curves.append(f"monotonic, {first} minus {how}: {with_span(difference, 'pairs')}")
    notes = [*extent(p, count, f"pairs, {num_steps} steps of {p['seeds']} seeds each"), *curves]
    notes.append("monotonic: the mean cosine over the seeds never turns back; a picture without a face counts as 0, likeness to nobody")
    return bench.report("From one person to another", rows, notes, strips, seen)


def _towards(
    p: Mapping[str, Any], pairs: Sequence[tuple[int, int, str, tuple[int, ...]]], faces: Sequence[np.ndarray | None], gallery: np.ndarray
) -> np.ndarray:
    """Cosines of pictures, in the order of `_mix_questions`, to both ends: pairs seeds 2 steps."""
    each = iter(faces)
    strips = [[[next(each) for _ in p["shares"]] for _ in seeds] for *_, seeds in pairs]
    return np.array(
        [
            [[[0.0 if v is None else float(gallery[who] @ v) for v in line] for who in (a, b)] for line in lines]
            for (a, b, *_), lines in zip(pairs, strips, strict=True)
        ]
    )


# ---------------------------------------------------------------------------------------------- what is asked


def ask(what: str, out: Path, *, count: int = 0) -> Path:
    """Write what a protocol asks, for any tool: prompts, seeds, sizes, key points, shares and photos. Its pictures are judged as `Asking.pictures`.

    Args:
        what: people, views or mix.
        count: of pictures, people or pairs; 0: all.
    """
    name, digest = {"people": (PEOPLE, people_digest), "views": (VIEWS, views_digest), "mix": (MIX, mix_digest)}[what]
    p = checked_protocol(name, digest)
    number, _ = asked(p, count, (), ())
    if what == "people":
        return hand_out(p, _group_questions(groups_of(p, number)), out)
    return hand_out(p, _mix_questions(p, number) if what == "mix" else _view_questions(p, p["yaws"], number), out)
