"""Draws docs/first-light.jpg: held-out people, the photo that lends each face above what the shipped weights make of it. Run: python examples/first_light.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import selfsame
from selfsame.recipes.measure.protocols import reference_photo

PEOPLE = 8
PROMPTS = (
    "a photo of a person in a garden", "a photo of a person in a city", "a watercolour of a person laughing on a beach", "a comic of a person wearing a suit",
)  # fmt: skip
SIDE = 160  # pixels a picture


def main(out: Path = Path("docs/first-light.jpg")) -> None:
    studio = selfsame.load("mannequin")
    photos = [reference_photo("test", person, 0).image for person in range(PEOPLE)]
    rows = [photos]
    for k, prompt in enumerate(PROMPTS):
        made = [studio.generate(selfsame.Request(prompt=prompt, seed=100 * k + i), studio.introduced(photo)[0]) for i, photo in enumerate(photos)]
        rows.append([pictures[0].pixels for pictures in made])
    sheet = Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in rows]))
    sheet.resize((PEOPLE * SIDE, len(rows) * SIDE), Image.Resampling.LANCZOS).save(out, quality=88)
    print(out)


if __name__ == "__main__":
    main()
