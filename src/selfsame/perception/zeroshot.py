"""What a photograph shows of a person, asked of a stock CLIP by comparing phrases (zero-shot, arXiv:2103.00020, Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

PHOTO = "a photo of a person"
# Of each attribute what may be said in a prompt, and what CLIP is asked in its place where nothing would be said.
PHRASES: Mapping[str, Mapping[str, str]] = {
    "expression": {
        "": "with a calm, neutral face", "smiling": "smiling", "laughing": "laughing", "looking sad": "looking sad", "looking angry": "looking angry",
        "looking surprised": "looking surprised",
    },
    "glasses": {"": "without glasses", "wearing glasses": "wearing glasses", "wearing sunglasses": "wearing sunglasses"},
    "hat": {
        "": "without a hat", "wearing a hat": "wearing a hat", "wearing a cap": "wearing a cap", "wearing a beanie": "wearing a beanie",
        "wearing a helmet": "wearing a helmet",
    },
    "clothes": {
        f"wearing {what}": f"wearing {what}"
        for what in ("a t-shirt", "a shirt", "a suit", "a dress", "a sweater", "a hoodie", "a jacket", "a coat", "a uniform")
    },
}  # fmt: skip


class Compares(Protocol):
    """Unit features of pictures and prompts in one space, as `similarity.StockClip`."""

    def images(self, images: Sequence[np.ndarray]) -> Tensor: ...

    def prompt(self, prompt: str) -> Tensor: ...


def phrases_for(clip: Compares, image: np.ndarray, what: Sequence[str]) -> str:
    """What a square picture h h 3 of a person shows, in the words of a prompt; "" where there is nothing to be said.

    Args:
        what: of `PHRASES`.
    """
    seen = clip.images([image])[0]
    said = []
    for name in (n for n in PHRASES if n in what):
        likest = max(PHRASES[name].items(), key=lambda pair: float(seen @ clip.prompt(f"{PHOTO} {pair[1]}")))
        said += [likest[0]] if likest[0] else []
    return " and ".join(said)
