"""Draws docs/edits.jpg: a part repainted after another thing's, a texture carried onto a thing that keeps its shape, a small mask in a large picture.

Run: python examples/edits.py
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import selfsame
from selfsame.data.edit_sets import TRACKS, EditCase, world_case
from selfsame.mannequins.attributes import Look, View
from selfsame.mannequins.people import person_of
from selfsame.mannequins.render import PersonIn, Scene, ThingIn, draw
from selfsame.mannequins.scenes import draw_light
from selfsame.mannequins.things import thing_of
from selfsame.studio.edits import Editor, Region
from selfsame.studio.request import EditRequest

PARTS, TEXTURES = (0, 1, 2), (0, 1, 2)  # numbers of the benchmark's first held-out cases, not chosen by their look
SIDE = 176  # pixels of a picture in the sheet
GREY = np.array([120, 120, 120], np.uint8)


def shown(case: EditCase) -> list[np.ndarray]:
    """The source with what is to be painted in grey, and the reference."""
    return [np.where(case.mask[..., None] > 0, GREY, case.source), case.reference]


def large() -> tuple[np.ndarray, np.ndarray]:
    """A picture of 768 x 384 with two things and a person, and a mask over one of the things."""
    things = ThingIn(thing_of(5), View(scale=0.5, x=-0.9, y=0.3)), ThingIn(thing_of(8), View(scale=0.45, x=0.2, y=0.35))
    scene = Scene(
        (*things, PersonIn(person_of(300_042), Look(), View(scale=0.55, x=1.05))),
        "library",
        "photo",
        draw_light("library", np.random.default_rng(3)),
        7,
        384,
        768,
    )
    picture = draw([scene])[0]
    mask = cv2.dilate((picture.owner == 2).astype(np.uint8) * 255, np.ones((9, 9), np.uint8))
    return picture.image, mask


def main(out: Path = Path("docs/edits.jpg")) -> None:
    editor = Editor(selfsame.load("mannequin"))
    rows = []
    for track, numbers, request in ((TRACKS[0], PARTS, EditRequest()), (TRACKS[2], TEXTURES, EditRequest(keep_shape=True))):
        cases = [world_case(track, "test", i) for i in numbers]
        made = [[*shown(case), editor.edit(case.source, [Region(case.mask, case.reference)], request)[0]] for case in cases]
        rows.append(np.concatenate([image for pictures in made for image in pictures], 1))
    source, mask = large()
    reference = world_case(TRACKS[2], "test", 0).reference
    result = editor.edit(source, [Region(mask, reference)], EditRequest(keep_shape=True))[0]
    assert np.array_equal(result[cv2.dilate(mask, np.ones((25, 25), np.uint8)) == 0], source[cv2.dilate(mask, np.ones((25, 25), np.uint8)) == 0])
    width = 9 * SIDE
    small = [np.asarray(Image.fromarray(row).resize((width, SIDE), Image.Resampling.LANCZOS)) for row in rows]
    pair = np.concatenate([np.where(mask[..., None] > 0, GREY, source), result], 1)
    wide = np.asarray(Image.fromarray(pair).resize((width, width // 4), Image.Resampling.LANCZOS))
    Image.fromarray(np.concatenate([*small, wide])).save(out, quality=88)
    print(out)


if __name__ == "__main__":
    main()
