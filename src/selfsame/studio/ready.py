"""Orders carried out as far as painting: files read, people found, places and poses settled."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from selfsame.images.files import InputError, path_and_share, read_image
from selfsame.images.masks import read_mask
from selfsame.studio.family import Family, Job
from selfsame.studio.orders import VIEWS, Order, is_box
from selfsame.studio.people import IDENTITIES, Who, read_identity
from selfsame.studio.places import Box, Person, Pose
from selfsame.studio.request import Made, Request, Strengths, nearest
from selfsame.values.identity import Identity, mixed

T = TypeVar("T")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def is_picture(path: Path) -> bool:
    """By its name; hidden files, such as those that a Mac leaves beside each file, are none."""
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, in order of their names; what lies beside them (captions, hidden files) is left out.

    Raises:
        InputError: there are none.
    """
    photos = sorted(p for p in folder.iterdir() if is_picture(p))
    if not photos:
        raise InputError(f"{folder}: no pictures in this folder; put photos of one person there")
    return photos


def jobs_of(order: Order, studio: Family) -> tuple[list[Job], tuple[str, ...], list[Path]]:
    """Pictures to be painted, warnings, and the photos that a likeness can be measured with.

    Raises:
        InputError: a file cannot be read or used, or flags contradict each other.
    """
    request = order.request
    order.check_together()
    request.sized(studio.limits)  # refuses a size before any work
    notes: list[str] = []
    start = None if order.start is None else read_image(order.start)
    if order.mix_steps:
        if order.keep:
            raise InputError("--keep needs --face: a strip shows people between two photos")
        ends = [_person_of(studio, Path(text), notes) for text in order.mix]
        pose, shares = _pose(order, studio, notes), np.linspace(0, 1, order.mix_steps).round(6)  # as they are recorded
        each = [studio.jobs(request, _mixed(ends, [1 - s, s], order), pose=pose, start=start) for s in shares]
        return [replace(job, share=float(s)) for s, jobs in zip(shares, each, strict=True) for job in jobs], tuple(notes), []
    who, photos = _who(order, studio, notes)
    pose = _pose(order, studio, notes)
    if order.keep:
        request = _kept(order, request, studio, photos)
    return studio.jobs(request, who, pose=pose, start=start), tuple(notes), photos


def about_picture(order: Order, job: Job, made: Made, files: str) -> dict[str, Any]:
    """What a picture's file says of it, enough to repeat it alone: the request as it was painted in the end, the order without what is done by then.

    Args:
        files: `files_digest` of the order.
    """
    extras = {k: v for k, v in order.extras.items() if k not in ("keep", "retries", "mix_steps")}
    if order.mix_steps and job.share is not None:
        extras["mix"] = [f"{text}:{share}" for text, share in zip(extras["mix"], (1 - job.share, job.share), strict=True)]
    sources = [s for p in job.people for s in p.identity.sources]
    encoders = sorted({p.identity.encoder for p in job.people if p.identity.num_photos})  # that face tokens came from
    return {"request": made.request.to_json(), "order": extras, "sources": sources, "files": files, "encoder": ", ".join(encoders)}


def files_digest(order: Order) -> str:
    """Short hash of the contents of every file that decides about an order's pictures, but of a style sheet, whose words stand in the request."""
    said = hashlib.sha256()
    for path in replace(order, style_sheet=None).files:
        for file in pictures_in(path) if path.is_dir() else [path]:
            if file.is_file():
                said.update(hashlib.sha256(file.read_bytes()).digest())
    return said.hexdigest()[:16]


def _who(order: Order, studio: Family, notes: list[str]) -> tuple[list[Who], list[Path]]:
    """The people of an order, and photos of the only one."""
    if order.identity and not order.face:
        return [Person(read_identity(p), name=p.stem) for p in order.identity], []
    if order.mix:
        parts = [path_and_share(text) for text in order.mix]
        for text, (_, share) in zip(order.mix, parts, strict=True):
            if not share:
                raise InputError(f"--mix {text}: give a photo and its share, as in ada.png:0.3")
        people = [_person_of(studio, Path(path), notes) for path, _ in parts]
        return [_mixed(people, [_number(share, "--mix") for _, share in parts], order)], []
    if order.people:
        return _several(order, studio, notes), []
    if not order.face:
        return [], []
    photos = [p for path in order.face for p in (pictures_in(path) if path.is_dir() else [path])]
    who = _known(studio.introduced(*photos, which=order.which), notes)
    if order.identity:
        learned = read_identity(order.identity[0])
        if learned.words is None:
            raise InputError(f"{order.identity[0]}: an identity without learned words; learn them with `selfsame learn`, or leave it and --use both out")
        if learned.num_photos:
            notes.append(f"{order.identity[0]}: only its words are used, the face is that of --face")
        who = replace(who, words=learned.words)
    return [Person(who, name=order.face[0].stem)], photos


def _known(told: tuple[T, tuple[str, ...]], notes: list[str]) -> T:
    """What was learned of a photo; its warnings join the notes."""
    notes += told[1]
    return told[0]


def _mixed(people: Sequence[Identity], shares: Sequence[float], order: Order) -> Person:
    try:
        return Person(mixed(people, shares, order.mix_how), name="the mix")
    except ValueError as error:
        raise InputError(f"--mix: {error}") from None


def _person_of(studio: Family, path: Path, notes: list[str]) -> Identity:
    """Somebody from a photo, a folder of photos or an identity file."""
    if path.is_dir():
        photos = pictures_in(path)
        return _known(studio.introduced(*photos), notes)
    if path.suffix.lower() in IDENTITIES:
        return read_identity(path)
    return _known(studio.introduced(path), notes)


def _several(order: Order, studio: Family, notes: list[str]) -> list[Who]:
    everyone = []
    for i, path in enumerate(order.people):
        pose = _known(studio.lent(order.poses[i]), notes) if order.poses else None
        strengths = _strengths(order.scales[i], order.request.strengths) if order.scales else None
        everyone.append(Person(_person_of(studio, path, notes), None, pose, strengths, path.stem))
    if not order.regions:
        return everyone
    size = studio.sized(order.request, everyone).size  # of the picture, which may be the first photo's
    return [replace(person, region=_region(text, size)) for person, text in zip(everyone, order.regions, strict=True)]


def _pose(order: Order, studio: Family, notes: list[str]) -> Pose | None:
    if order.pose is not None:
        return _known(studio.lent(order.pose), notes)
    if order.view:
        return studio.view(*VIEWS[nearest(order.view, tuple(VIEWS), "view")])
    if any(v is not None for v in (order.yaw, order.pitch, order.roll)):
        return studio.view(order.yaw or 0.0, order.pitch or 0.0, order.roll or 0.0)
    return None


def _kept(order: Order, request: Request, studio: Family, photos: Sequence[Path]) -> Request:
    """The request, whose prompt also asks for what the first photo shows."""
    if not photos:
        raise InputError("--keep needs --face: a photo that shows what is to be kept")
    words = studio.described(read_image(photos[0]), order.keep, which=order.which)
    return replace(request, prompt=told(request.prompt, words))


def told(prompt: str, words: str) -> str:
    """A prompt that also says these words, of the person where it names one."""
    if not words:
        return prompt
    named = re.search(r"\b(a person|somebody|a man|a woman)\b", prompt)
    if named:
        return f"{prompt[: named.end()]} {words}{prompt[named.end() :]}"
    return f"{prompt} {words}".strip() if prompt else f"a person {words}"


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{what}: {text!r} is no number") from None


def _region(text: str, size: tuple[int, int]) -> Box | np.ndarray:
    """A box from its four numbers, or a mask from its file."""
    if is_box(text):
        x0, y0, x1, y1 = (int(p) for p in text.split(","))
        return x0, y0, x1, y1
    if not Path(text).suffix or not re.search(r"[A-Za-z]", text):
        raise InputError(f"region {text!r}: give left,top,right,bottom in pixels, or a mask picture")
    return read_mask(text, *size, to_paint=False)[0] / np.float32(255)


def _strengths(text: str, other: Strengths) -> Strengths:
    """One person's strengths, in the request's windows."""
    numbers = [_number(part, "--scales") for part in text.split(",")]
    if len(numbers) > 2:
        raise InputError(f"--scales {text!r}: give one number, or two as adapter,identitynet")
    try:
        return replace(other, adapter_scale=numbers[0], controlnet_scale=numbers[-1])
    except InputError as error:
        raise InputError(f"--scales {text!r}: {error}") from None
