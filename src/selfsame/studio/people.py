"""Who paints a request by what: learned words where the prompt names them, face tokens otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from selfsame.images.files import InputError
from selfsame.methods.stableidentity.checkpoint import read_words
from selfsame.methods.stableidentity.interop import check_towers
from selfsame.models.text import tower_hash
from selfsame.perception.detector import Found
from selfsame.studio.places import Person, Places, Pose
from selfsame.studio.request import Request
from selfsame.values.identity import Identity, LearnedWords, is_identity

F = TypeVar("F", bound=Found)
BEYOND = 0.08  # of a face's size that may lie beyond the border
PLACEHOLDER = re.compile(r"<[A-Za-z0-9][A-Za-z0-9_-]*>")


@dataclass(frozen=True)
class Cast:
    """The people of one request."""

    faces: tuple[Person, ...] = ()  # whose face tokens paint
    words: tuple[LearnedWords, ...] = ()  # that stand in the prompt
    notes: tuple[str, ...] = ()


Who = Identity | Person


def people_of(who: Who | Sequence[Who] | None, pose: Pose | None = None) -> tuple[Person, ...]:
    """Nobody, one or several; `pose` is for one alone.

    Raises:
        InputError: a pose for several.
    """
    everyone = () if who is None else (who,) if isinstance(who, Who) else tuple(who)
    people = tuple(Person(x) if isinstance(x, Identity) else x for x in everyone)
    if pose is None:
        return people
    if not people:
        raise InputError("a pose or view, and nobody to take it: give --face")
    if len(people) != 1:
        raise InputError(f"one pose for {len(people)} people: give each person their own")
    return (replace(people[0], pose=pose),)


IDENTITIES = (".safetensors", ".pt", ".bin")  # endings of files that hold a person


def read_identity(path: Path) -> Identity:
    """A person from an identity file, or from any file of learned words.

    Raises:
        InputError: it is neither; the message names it.
    """
    try:
        if is_identity(path):
            return Identity.load(path)
        words = read_words(path)
    except ValueError as error:
        raise InputError(str(error)) from None
    return Identity.of_words(words)


def from_left(found: Sequence[F]) -> list[F]:
    """Faces in the order in which people count them."""
    return sorted(found, key=lambda f: float(f.box[0] + f.box[2]))


def chosen_face(found: Sequence[F], which: int | None, name: str, *, flag: str = "--which", of: str = " of a --face or --person") -> tuple[F, tuple[str, ...]]:
    """The face to use of those found, largest first: the largest, or number `which` counted from the left, from 0. Also warnings.

    Args:
        name: of the picture, for messages.
        flag: what chooses, for messages too, and of which pictures.

    Raises:
        InputError: no face, or no such face.
    """
    if not found:
        raise InputError(f"{name}: no face was found; use a picture in which the face is upright, whole and larger than a tenth of the picture")
    if which is None:
        many = f"{name}: {len(found)} faces, the largest is used; {flag} 0..{len(found) - 1} chooses another one{of}, counted from the left"
        return found[0], (many,) if len(found) > 1 else ()
    if not 0 <= which < len(found):
        raise InputError(f"{name}: {flag} {which}, but {len(found)} face(s) were found; choose 0 to {len(found) - 1}, counted from the left")
    return from_left(found)[which], ()


def lent_embedding(identity: Identity, encoder: str, photos: str, device: torch.device) -> Tensor:
    """What the Resampler gets of a person: 1 1 512 (mean of the photos) or 1 k 512 (jointly), raw.

    Args:
        encoder: whose embeddings the model reads.

    Raises:
        InputError: the identity was made by another encoder.
    """
    if identity.encoder != encoder:
        raise InputError(f"the identity was made by encoder {identity.encoder!r}, this model needs {encoder!r}: make it anew from the photos")
    rows = torch.from_numpy(identity.embeddings)
    return (rows.mean(0, keepdim=True) if photos == "mean" else rows)[None].to(device)


def cast_of(people: Sequence[Person], request: Request) -> Cast:
    """Sort people by what paints them; `request.use` decides, `auto` takes the words of whoever the prompt names.

    Raises:
        InputError: what is asked for is not in an identity, the prompt does not name somebody exactly once, or two people share a placeholder.
    """
    faces: list[Person] = []
    words: list[LearnedWords] = []
    for person in people:
        who = person.identity
        named = request.full_prompt.count(who.words.placeholder) if who.words else 0
        by_words = request.use in ("words", "both") or (request.use == "auto" and (named > 0 or not who.num_photos))
        if by_words:
            learned = _named_once(who, named)
            if any(learned.placeholder == other.placeholder for other in words):
                raise InputError(f"two people share the placeholder {learned.placeholder}: give one of them another with `selfsame learn --name`")
            words.append(learned)
        if request.use in ("face", "both") or (request.use == "auto" and not by_words):
            faces.append(person)
    known = [p.identity.words.placeholder for p in people if p.identity.words]
    unread = [name for name in known if name in request.full_prompt and all(name != w.placeholder for w in words)]
    if unread:
        raise InputError(f"the prompt names {unread[0]}, but --use {request.use} leaves its words out: say `a person` there, or --use both")
    strange = [name for name in PLACEHOLDER.findall(request.full_prompt) if name not in known]
    if known and strange:
        raise InputError(f"the prompt names {strange[0]}, and nobody given is called so: {', '.join(known)}")
    if any(not person.identity.num_photos for person in faces):
        raise InputError("an identity has learned words but no photo; use --use words, or make it anew from a photo")
    return Cast(tuple(faces), tuple(words))


def placed(people: Sequence[Person], cast: Cast, height: int, width: int, least: int) -> Cast:
    """Faces in the places that all people share out, those who are painted by words too: their places stay free of the others' faces.

    Raises:
        InputError: a region cannot be used (`Places.of`).
    """
    by_words = [p for p in people if not any(p is face for face in cast.faces)]
    if not by_words:
        return cast
    said = [f"{p.name or 'somebody'} is painted by words, which have no pose or strength of their own" for p in by_words if p.pose or p.strengths]
    if not cast.faces:
        if any(p.region is not None for p in people):
            Places.of(people, height, width, least)
            said.append("everybody is painted by words, which have no region: say in the prompt who stands where")
        return replace(cast, notes=(*cast.notes, *said))
    masks = {id(p): mask for p, mask in zip(people, Places.of(people, height, width, least).masks, strict=True)}
    faces = tuple(replace(p, region=masks[id(p)]) for p in cast.faces)
    return replace(cast, faces=faces, notes=(*cast.notes, *said))


def is_cut(found: Found, shape: tuple[int, ...]) -> bool:
    """Whether the border of its picture h w cuts a face."""
    h, w = shape[:2]
    x0, y0, x1, y1 = found.box
    beyond = max(-x0, -y0, x1 - w, y1 - h) / max(x1 - x0, y1 - y0)
    inside = (found.kps >= 0).all() and (found.kps[:, 0] < w).all() and (found.kps[:, 1] < h).all()
    return bool(beyond > BEYOND or not inside)


def whole(found: F, shape: tuple[int, ...], name: str) -> F:
    """A face that the border of its picture h w does not cut.

    Raises:
        InputError: it does.
    """
    if is_cut(found, shape):
        raise InputError(f"{name}: the face is cut by the border of the picture; use one that shows the whole face")
    return found


def _named_once(who: Identity, named: int) -> LearnedWords:
    words = who.words
    if words is None:
        raise InputError("the identity has no learned words; learn them with `selfsame learn`, or leave out --use")
    if named != 1:
        how = "does not name" if named == 0 else f"names {named} times"
        raise InputError(f"the prompt {how} {words.placeholder}: say once where the person stands, as in 'a photo of {words.placeholder}'")
    return words


@dataclass(frozen=True)
class Towers:
    """The text towers that learned words must fit."""

    widths: list[int]
    digest: str

    @classmethod
    def of(cls, *text_encoders: Any) -> Towers:
        return cls([encoder.get_input_embeddings().embedding_dim for encoder in text_encoders], tower_hash(*text_encoders))


def check_words(people: Sequence[LearnedWords], towers: Towers) -> None:
    """Raise InputError when somebody's words were learned for other text towers than these; files of other programs do not say for which, only widths."""
    for words in people:
        try:
            check_towers(words, towers.widths)
        except ValueError as error:
            raise InputError(str(error)) from None
        if words.text_encoder not in ("", towers.digest):
            raise InputError(f"{words.placeholder} was learned for another text encoder than this model's: learn the person anew")


def vectors_of(words: Sequence[LearnedWords]) -> dict[str, tuple[Tensor, ...]]:
    """Of each placeholder its words n d for each text tower."""
    return {w.placeholder: tuple(torch.from_numpy(v) for v in w.vectors) for w in words}
