"""What is said of a picture: a small grammar with paraphrases over the attribute values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STYLE_PHRASES = {
    "photo": ("a photo of {}", "a photograph of {}", "a picture of {}"),
    "pencil sketch": ("a pencil sketch of {}", "a pencil drawing of {}", "{}, drawn in pencil"),
    "watercolour": ("a watercolour of {}", "a watercolour painting of {}", "{}, painted in watercolour"),
    "pixel art": ("pixel art of {}", "a pixel art picture of {}", "{}, pixel art"),
    "film noir": ("a film noir still of {}", "film noir, {}", "a black and white film noir picture of {}"),
    "neon": ("a neon picture of {}", "{} in neon light", "neon art of {}"),
    "clay": ("a clay figure of {}", "{}, made of clay", "a clay model of {}"),
    "comic": ("a comic drawing of {}", "{}, comic book style", "a comic of {}"),
}
SCENE_PHRASES = {
    "studio": ("in a studio", "against a plain wall"),
    "beach": ("on a beach", "at the beach"),
    "forest": ("in a forest", "among trees in a forest"),
    "city": ("in a city", "in front of city buildings"),
    "mountains": ("in the mountains", "before snowy mountains"),
    "desert": ("in a desert", "in the desert"),
    "library": ("in a library", "before library shelves"),
    "space": ("in space", "in outer space"),
    "kitchen": ("in a kitchen", "in the kitchen"),
    "garden": ("in a garden", "in a flower garden"),
    "sunset": ("at sunset", "before a sunset"),
    "underwater": ("underwater", "under water"),
}
EXPRESSION_PHRASES = {
    "neutral": ("with a calm face", "looking calm"),
    "smiling": ("smiling", "with a smile"),
    "laughing": ("laughing", "laughing out loud"),
    "sad": ("looking sad", "with a sad face"),
    "surprised": ("looking surprised", "with a surprised face"),
}
TURN_PHRASES = {"front": ("facing the camera",), "left": ("turned to the left",), "right": ("turned to the right",)}
NUMBER_WORDS = {1: "a person", 2: "two people", 3: "three people"}


def article(phrase: str) -> str:
    """A noun phrase with its article."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _clothes(kind: str, colour: str) -> str:
    if kind == "spacesuit":
        return f"a spacesuit with {colour} trim"
    return article(f"{colour} {kind}")


def _one(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def caption_person(attributes: dict[str, str], name: str | None, rng: np.random.Generator | None, *, keep: float = 0.75) -> str:
    """Speak of a person.

    Args:
        attributes: values of `style`, `scene`, `expression`, `clothes`, `clothes_colour`, `hat`, `hat_colour`, `glasses`,
            `turn`; a missing key is not spoken of.
        name: two names, or None for somebody.
        rng: draws paraphrases, order and which attributes to leave out; None speaks of everything, plainly.
        keep: chance that an attribute other than style and scene is spoken of.
    """
    plain = rng is None
    rng = rng or np.random.default_rng(0)

    def spoken() -> bool:
        return plain or rng.random() < keep

    def choose(options: Sequence[str]) -> str:
        return options[0] if plain else _one(options, rng)

    who = name or "a person"
    parts = []
    if "expression" in attributes and spoken():
        parts.append(choose(EXPRESSION_PHRASES[attributes["expression"]]))
    wears = []
    if "clothes" in attributes and spoken():
        wears.append(_clothes(attributes["clothes"], attributes["clothes_colour"]))
    if attributes.get("hat", "none") != "none" and spoken():
        hat, colour = attributes["hat"], attributes["hat_colour"]
        wears.append("a gold crown" if hat == "crown" else article(f"{colour} {hat}"))
    if attributes.get("glasses", "none") != "none" and spoken():
        wears.append(f"{attributes['glasses']} glasses")
    if wears:
        parts.append(("wearing " if plain or rng.random() < 0.7 else "in ") + " and ".join(wears))
    if attributes.get("turn") and (plain or rng.random() < 0.4):
        parts.append(choose(TURN_PHRASES[attributes["turn"]]))
    if not plain:
        rng.shuffle(parts)
    subject = " ".join([who, *parts])
    if "scene" in attributes and (plain or rng.random() < 0.9):
        subject += " " + choose(SCENE_PHRASES[attributes["scene"]])
    return choose(STYLE_PHRASES[attributes["style"]]).format(subject) if "style" in attributes else subject


def caption_group(attributes: dict[str, str], names: Sequence[str | None], rng: np.random.Generator) -> str:
    """Speak of two or three people in one picture."""
    known = [n for n in names if n]
    who = " and ".join(known) if len(known) == len(names) else NUMBER_WORDS[len(names)]
    subject = f"{who} {_one(SCENE_PHRASES[attributes['scene']], rng)}"
    return _one(STYLE_PHRASES[attributes["style"]], rng).format(subject)


def caption_thing(attributes: dict[str, str], rng: np.random.Generator) -> str:
    """Speak of a thing: colour, texture, kind, scene, style."""
    colour, second, texture = attributes["colour"], attributes["second"], attributes["texture"]
    kind = attributes["kind"]
    what = {
        "plain": f"{colour} {kind}",
        "stripes": f"{colour} {kind} with {second} stripes",
        "dots": f"{colour} {kind} with {second} dots",
        "checks": f"{colour} and {second} checked {kind}",
        "spots": f"{colour} {kind} with {second} spots",
        "plaid": f"{colour} and {second} plaid {kind}",
    }[texture]
    subject = article(what)
    if rng.random() < 0.9:
        subject += " " + _one(SCENE_PHRASES[attributes["scene"]], rng)
    return _one(STYLE_PHRASES[attributes["style"]], rng).format(subject)
