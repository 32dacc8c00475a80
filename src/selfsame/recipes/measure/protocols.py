"""What is asked of a model: pinned protocols, their prompts, views and photos, and what a perfect model would paint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from itertools import groupby
from typing import Any

import numpy as np

from selfsame.mannequins.attributes import CLOTHES, COLOUR_NAMES, EXPRESSIONS, SCENES, STYLES, Look
from selfsame.mannequins.captions import caption_person
from selfsame.mannequins.people import SPLITS, split_person
from selfsame.mannequins.render import PersonIn, Picture, Scene, draw, landmarks_of
from selfsame.mannequins.scenes import draw_light
from selfsame.mannequins.world import CANONICAL_VIEWS, WORLD_VERSION, average_kps, average_scene, draw_look, draw_view
from selfsame.perception.embedders import JUDGE_CROP

IDENTITY, WORDS = "identity-4", "words-2"


@dataclass(frozen=True)
class Task:
    """One picture to be asked for and judged."""

    person: int  # index in the split
    attributes: dict[str, str]
    prompt: str
    view: int  # canonical view
    seed: int
    again: bool = False  # the same as another but for the seed


def canonical_kps(view: int) -> tuple[np.ndarray, float]:
    """Key points (5 2 pixels at 128) and face width of the average face in a canonical view."""
    return average_kps(CANONICAL_VIEWS[view])


def canonical_landmarks(view: int) -> np.ndarray:
    """The 68 points there of the same calm face."""
    return landmarks_of(average_scene(CANONICAL_VIEWS[view]))[0].astype(np.float64)


def protocol(name: str) -> dict[str, Any]:
    """A pinned protocol that ships."""
    return json.loads((resources.files("selfsame.evaluation") / f"protocols/{name}.json").read_text())


def asked_digest(p: dict[str, Any]) -> str:
    """Hash of everything a run of the protocol asks for: prompts, seeds, views, key points in tenths of a pixel, the judge's crop."""
    asked = {
        "tasks": [{k: v for k, v in asdict(t).items() if k != "again"} for t in tasks_of(p, p["people"])],
        "kps": [canonical_kps(i)[0].round(1).tolist() for i in range(len(CANONICAL_VIEWS))],
        "crop": asdict(JUDGE_CROP),
    }
    if "seeds" in p:
        asked["again"] = [t.seed for t in everything_of(p, p["people"]) if t.again]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def checked_protocol(name: str, digest: Callable[[dict[str, Any]], str] = asked_digest) -> dict[str, Any]:
    """A pinned protocol.

    Args:
        digest: hash of everything that a run of it asks for.

    Raises:
        ValueError: this code would ask for something else than the protocol says.
    """
    p = protocol(name)
    if p["world"] != WORLD_VERSION or p["asked_sha256"] != digest(p):
        raise ValueError(
            f"protocol {p['name']} was pinned for other prompts, seeds, views or another world than this code draws (world {WORLD_VERSION}): "
            "figures would not compare; use the release it was pinned with, or pin a new protocol"
        )
    return p


def asked(p: dict[str, Any], people: int, only: Sequence[str], known: Sequence[str], extra: Sequence[str] = ()) -> tuple[int, tuple[str, ...]]:
    """How many people and which rows a run measures: all known ones unless it says which; extra ones only when it does.

    Raises:
        ValueError: an unknown row, or more people than the protocol has.
    """
    count = people or p["people"]
    if not 1 <= count <= p["people"]:
        raise ValueError(f"--people {people}: the protocol has 1 to {p['people']}")
    for name in only:
        if name not in (*known, *extra):
            raise ValueError(f"row {name!r} is unknown: choose from {', '.join((*known, *extra))}")
    return count, tuple(only) or tuple(known)


def extent(p: dict[str, Any], count: int, what: str = "") -> list[str]:
    """What a report says of how much was measured.

    Args:
        what: the counted are; "": people, with so many prompts each.
    """
    what = what or f"people x {p['prompts_per_person']} prompts"
    notes = [f"{count} {what}, protocol {p['name']}, world {p['world']}"]
    if count < p["people"]:
        notes.append(f"only {count} of the protocol's {p['people']}: not comparable with full runs")
    return notes


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


def everything_of(p: dict[str, Any], people: int) -> list[Task]:
    """All pictures that are painted: each person's of the protocol, then, of the first `seeds_people`, the first one's with other seeds."""
    made: list[Task] = []
    for person, mine in groupby(tasks_of(p, people), key=lambda t: t.person):
        first, *others = mine
        rng = np.random.default_rng([p["seed"], person, 0x5EED5])
        seeds = rng.integers(2**31, size=p["seeds"] - 1) if person < p.get("seeds_people", 0) else ()
        made += [first, *others, *(replace(first, seed=int(seed), again=True) for seed in seeds)]
    return made


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
