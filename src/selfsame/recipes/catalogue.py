"""All recipes by name, in the order in which they need each other."""

from __future__ import annotations

from collections.abc import Callable

from selfsame.recipes.common import Options, Trained


def recipes() -> dict[str, Callable[[Options], Trained]]:
    """Name -> whole training run."""
    from selfsame.recipes.base import base
    from selfsame.recipes.faces import detector, encoder, judge
    from selfsame.recipes.instantid import instantid
    from selfsame.recipes.vae import vae
    from selfsame.recipes.words import clip, reader

    return {
        "encoder": encoder,
        "judge": judge,
        "detector": detector,
        "vae": vae,
        "clip": clip,
        "reader": reader,
        "base": base,
        "instantid": instantid,
    }
