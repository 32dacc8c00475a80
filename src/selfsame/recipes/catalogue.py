"""All recipes by name, in the order in which they need each other."""

from __future__ import annotations

from collections.abc import Callable

from selfsame.recipes.common import Options, Trained

# The order in which recipes need each other, and each one's share of the time when all are trained in turn.
SHARES = {
    "encoder": 0.08,
    "judge": 0.08,
    "face_vit": 0.04,
    "detector": 0.03,
    "parser": 0.03,
    "vae": 0.14,
    "decoder": 0.04,
    "clip": 0.05,
    "reader": 0.05,
    "base": 0.29,
    "instantid": 0.17,
}


def recipes() -> dict[str, Callable[[Options], Trained]]:
    """Name -> whole training run."""
    from selfsame.recipes.base import base
    from selfsame.recipes.faces import detector, encoder, judge
    from selfsame.recipes.instantid import instantid
    from selfsame.recipes.parts import face_vit, parser
    from selfsame.recipes.vae import decoder, vae
    from selfsame.recipes.words import clip, reader

    return {
        "encoder": encoder,
        "judge": judge,
        "face_vit": face_vit,
        "detector": detector,
        "parser": parser,
        "vae": vae,
        "decoder": decoder,
        "clip": clip,
        "reader": reader,
        "base": base,
        "instantid": instantid,
    }
