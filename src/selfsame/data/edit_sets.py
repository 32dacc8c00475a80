"""Sets of edits to be measured: the folder layout of MimicBrush's benchmark, read from disk or drawn from the world.

    PartComp/CrossInstance      a part of another thing of the kind is put onto the source's thing
    PartComp/WithinInstance     a hidden part is painted back after another look at the same thing: the source is the truth
    TextureTrans/CrossInstance  another thing's texture on the whole thing, whose shape stays
    TextureTrans/WithinInstance the same after another look at the same thing

Each case is `ID_source.png`, `ID_source_mask.png`, `ID_reference.png`, and optionally `ID_reference_mask.png`, `ID_prompt.txt`,
`ID_truth.png`, what a perfect editor would give, and `ID_part.png`, what of the mask is the part itself. Anyone can fill such a
folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from selfsame.images.files import TINY, InputError, read_image, write_image
from selfsame.images.masks import read_mask
from selfsame.mannequins.captions import article
from selfsame.mannequins.people import SPLITS
from selfsame.mannequins.render import Picture, Scene, ThingIn, draw
from selfsame.mannequins.scenes import BACKDROPS, draw_light
from selfsame.mannequins.things import BUILDERS, Thing, paint_label, thing_of
from selfsame.mannequins.world import WORLD_VERSION, draw_thing_view

TRACKS = ("PartComp/CrossInstance", "PartComp/WithinInstance", "TextureTrans/CrossInstance", "TextureTrans/WithinInstance")
ROUGH = 5  # pixels by which a mask is larger than its part, as if drawn by hand
SMALLEST = 0.015  # of the picture: a part that shows less is not asked for


@dataclass(frozen=True)
class EditCase:
    """One edit to be made and judged."""

    name: str
    source: np.ndarray  # h w 3 uint8
    mask: np.ndarray  # h w uint8, 255 where to paint
    reference: np.ndarray  # h w 3 uint8
    reference_mask: np.ndarray | None = None  # what of the reference is meant: for scoring, officially never for painting
    prompt: str = ""
    truth: np.ndarray | None = None  # h w 3 uint8
    part: np.ndarray | None = None  # h w uint8, exactly what is painted where the mask is rough: for scoring
    about: str = ""  # of a drawn case: everything it was drawn from

    @property
    def is_inner(self) -> bool:
        """Whether the source itself is the truth."""
        return self.truth is not None and np.array_equal(self.truth, self.source)


def is_inner(track: str) -> bool:
    return track.endswith("WithinInstance")


def is_texture(track: str) -> bool:
    return track.startswith("TextureTrans")


def checked_track(track: str) -> str:
    """A track's name.

    Raises:
        InputError: there is no such track.
    """
    if track not in TRACKS:
        raise InputError(f"track {track!r} is unknown; choose from {', '.join(TRACKS)}")
    return track


def read_track(folder: Path, track: str) -> Iterator[EditCase | InputError]:
    """The cases of a track in order of their names; a case that cannot be used comes as its error."""
    for path in sorted((folder / checked_track(track)).glob("*_source.png")):
        name = path.name.removesuffix("_source.png")

        def beside(what: str, path: Path = path, name: str = name) -> Path:
            return path.with_name(f"{name}_{what}")

        try:
            source, reference = read_image(path), read_image(beside("reference.png"))
            small = next((n for n, image in (("source", source), ("reference", reference)) if min(image.shape[:2]) < TINY), None)
            if small:
                raise InputError(f"{beside(small + '.png')}: smaller than {TINY} x {TINY} pixels")
            mask, _ = read_mask(beside("source_mask.png"), *source.shape[:2])
            marked, text, truth, part = beside("reference_mask.png"), beside("prompt.txt"), beside("truth.png"), beside("part.png")
            yield EditCase(
                name, source, mask, reference,
                read_mask(marked, *reference.shape[:2], to_paint=False)[0] if marked.exists() else None,
                text.read_text(encoding="utf-8").replace("#", "").strip() if text.exists() else "",
                _of_size(truth, source) if truth.exists() else source if is_inner(track) else None,
                read_mask(part, *source.shape[:2], to_paint=False)[0] if part.exists() else None,
            )  # fmt: skip
        except InputError as error:
            yield error
        except UnicodeDecodeError:
            yield InputError(f"{beside('prompt.txt')}: not UTF-8 text")


def surplus(folder: Path, count: int) -> Path | None:
    """A source in a folder that is none of the world's first so many cases, which it would be measured beside."""
    ours = {f"{_called(i)}_source.png" for i in range(count)}
    return next((p for track in TRACKS for p in sorted((folder / track).glob("*_source.png")) if p.name not in ours), None)


def _of_size(path: Path, source: np.ndarray) -> np.ndarray:
    truth = read_image(path)
    if truth.shape != source.shape:
        raise InputError(f"{path}: {truth.shape[1]} x {truth.shape[0]}, its source is {source.shape[1]} x {source.shape[0]}; make them of one size")
    return truth


def write_case(folder: Path, track: str, case: EditCase) -> None:
    """Put a case into a folder, readable by `read_track`."""
    place = folder / checked_track(track)
    place.mkdir(parents=True, exist_ok=True)
    pictures = {"source": case.source, "reference": case.reference, "truth": None if case.is_inner else case.truth}
    masks = {"source_mask": case.mask, "reference_mask": case.reference_mask, "part": case.part}
    pictures |= {what: None if mask is None else _grey(mask) for what, mask in masks.items()}
    for what, pixels in pictures.items():
        if pixels is not None:
            write_image(place / f"{case.name}_{what}.png", pixels)
    (place / f"{case.name}_prompt.txt").write_text(case.prompt + "\n", encoding="utf-8")


def _grey(mask: np.ndarray) -> np.ndarray:
    return np.repeat(mask[..., None], 3, 2)


def repainted(thing: Thing, other: Thing, part: int | None) -> Thing:
    """A thing with one part (None: all) painted like another thing's, in colours that the other shows: its part of the same number, else counted round."""
    shown = len(BUILDERS[other.kind][1])
    parts = range(len(BUILDERS[thing.kind][1])) if part is None else (part,)
    colours = tuple(other.colours[k % shown] if k in parts else c for k, c in enumerate(thing.colours))
    if 0 in parts:
        return replace(thing, colours=colours, texture=other.texture, second=other.second, repeat=other.repeat)
    return replace(thing, colours=colours)


def _drawn(thing: Thing, rng: np.random.Generator) -> tuple[Scene, Picture]:
    place = list(BACKDROPS)[int(rng.integers(len(BACKDROPS)))]
    scene = Scene((ThingIn(thing, draw_thing_view(rng)),), place, "photo", draw_light(place, rng), int(rng.integers(2**31)))
    return scene, draw([scene])[0]


def _marked(shape: np.ndarray, rough: int) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * rough + 1, 2 * rough + 1))
    return cv2.dilate(shape.astype(np.uint8) * 255, kernel) if rough else shape.astype(np.uint8) * 255


def world_case(track: str, split: str, i: int) -> EditCase:
    """Case `i` of a track, a function of (version, split, track, i), with its truth drawn."""
    checked_track(track)
    rng = np.random.default_rng([int(WORLD_VERSION), 0xED17, list(SPLITS).index(split), TRACKS.index(track), i])
    while True:
        thing = thing_of(int(rng.integers(2**31)))
        other = thing if is_inner(track) else replace(thing_of(int(rng.integers(2**31))), kind=thing.kind)
        if is_texture(track) and not is_inner(track):
            other = replace(other, kind=list(BUILDERS)[int(rng.integers(len(BUILDERS)))])
        (scene, source), (other_scene, reference) = _drawn(thing, rng), _drawn(other, rng)
        names = BUILDERS[thing.kind][1]
        part = None if is_texture(track) else int(rng.integers(len(names)))
        here, there = (picture.owner == 1 if part is None else picture.labels == paint_label(part) for picture in (source, reference))
        if min(here.mean(), there.mean()) >= SMALLEST:  # both looks show it
            break
    truth = source.image
    if not is_inner(track):
        subject = scene.subjects[0]
        assert isinstance(subject, ThingIn)
        truth = draw([replace(scene, subjects=(ThingIn(repainted(thing, other, part), subject.view),))])[0].image
    what = thing.kind if part is None else f"{thing.kind} with {names[part]}"
    about = repr((scene, other_scene, part))
    prompt = f"a photo of {article(what)}"
    return EditCase(_called(i), source.image, _marked(here, ROUGH), reference.image, _marked(there, 0), prompt, truth, _marked(here, 0), about)


def _called(i: int) -> str:
    return f"{i:04d}"
