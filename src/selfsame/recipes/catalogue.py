"""All recipes by name, in the order in which they need each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from selfsame.recipes.common import Options, Trained

# The order in which recipes need each other, and each one's share of the time when all are trained in turn.
SHARES = {
    "encoder": 0.07,
    "judge": 0.07,
    "face_vit": 0.03,
    "detector": 0.02,
    "parser": 0.02,
    "depth": 0.02,
    "vae": 0.12,
    "decoder": 0.03,
    "clip": 0.04,
    "reader": 0.04,
    "base": 0.26,
    "words": 0.03,
    "instantid": 0.13,
    "turbo": 0.02,
    "mimicbrush": 0.10,
}

# Held-out figures that a recipe's result should reach before others learn from it or are measured by it.
GATES: dict[str, dict[str, float]] = {
    "encoder": {"rank1_of_100": 0.98},
    "judge": {"rank1_of_100": 0.98},
    "detector": {"found": 0.98},
    "decoder": {"face_db_photo": 30.0, "face_db_all": 27.0},  # which finishes what `vae` begins
    "reader": {"accuracy": 0.95},
}


def below_gate(name: str, figures: Mapping[str, float]) -> list[str]:
    """What a recipe's figures lack, in words; nothing when it is through its gate or has none."""
    return [
        f"{name}: {key} {figures[key]:.4g} is below its gate of {least:g}, which what learns from it and is judged by it will show; "
        f"train it on: selfsame train {name} --ship, with more --steps"
        for key, least in GATES.get(name, {}).items()
        if key in figures and figures[key] < least
    ]


def recipes() -> dict[str, Callable[[Options], Trained]]:
    """Name -> whole training run."""
    from selfsame.recipes.base import base
    from selfsame.recipes.faces import detector, encoder, judge
    from selfsame.recipes.instantid import instantid
    from selfsame.recipes.mimicbrush import mimicbrush
    from selfsame.recipes.naming import naming
    from selfsame.recipes.parts import depth, face_vit, parser
    from selfsame.recipes.turbo import turbo
    from selfsame.recipes.vae import decoder, vae
    from selfsame.recipes.words import clip, reader

    return {
        "encoder": encoder,
        "judge": judge,
        "face_vit": face_vit,
        "detector": detector,
        "parser": parser,
        "depth": depth,
        "vae": vae,
        "decoder": decoder,
        "clip": clip,
        "reader": reader,
        "base": base,
        "words": naming,
        "instantid": instantid,
        "turbo": turbo,
        "mimicbrush": mimicbrush,
    }
