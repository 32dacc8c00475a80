"""Who paints a request by what: learned words where the prompt names them, face tokens otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from selfsame.images.files import InputError
from selfsame.methods.stableidentity.checkpoint import read_words
from selfsame.models.text import tower_hash
from selfsame.perception.detector import Found
from selfsame.studio.request import Request
from selfsame.values.identity import Identity, LearnedWords, is_identity

F = TypeVar("F", bound=Found)


@dataclass(frozen=True)
class Cast:
    """The people of one request."""

    face: Identity | None = None  # whose face tokens paint
    words: dict[str, Tensor] = field(default_factory=dict)  # learned words n d by placeholder


@dataclass(frozen=True)
class Kept:
    """Where a photo's face stands: key points 5 2 in the photo's pixels, and the photo's size."""

    kps: np.ndarray
    height: int
    width: int

    @classmethod
    def of(cls, identity: Identity) -> Kept:
        """Where the face stands in the identity's first photo."""
        return cls(identity.kps[0].astype(np.float64), *(int(v) for v in identity.sizes[0]))

    def in_picture(self, height: int, width: int) -> np.ndarray:
        """The key points in a picture of another size: scaled to fit its height, centred across, and moved inside when they are not."""
        zoom = height / self.height
        points = (self.kps + 0.5) * zoom - 0.5
        points[:, 0] += (width - self.width * zoom) / 2
        low, high = points.min(0), points.max(0)
        room = 0.6 * (high - low).max()  # cheeks and chin lie beyond the eyes and the mouth
        for axis, size in ((0, width), (1, height)):
            if low[axis] >= 0 and high[axis] <= size - 1:
                continue
            if high[axis] - low[axis] + 2 * room > size:
                points[:, axis] += size / 2 - (low[axis] + high[axis]) / 2
            else:
                points[:, axis] += max(0.0, room - low[axis]) + min(0.0, size - room - high[axis])
        return points


def people_of(identity: Identity | Sequence[Identity] | None) -> tuple[Identity, ...]:
    """Nobody, one or several as a tuple."""
    return () if identity is None else (identity,) if isinstance(identity, Identity) else tuple(identity)


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


def chosen_face(found: Sequence[F], which: int | None, name: str) -> tuple[F, tuple[str, ...]]:
    """The face to use of those found, largest first: the largest, or number `which` counted from the left, from 0. Also warnings.

    Args:
        name: of the picture, for messages.

    Raises:
        InputError: no face, or no such face.
    """
    if not found:
        raise InputError(f"{name}: no face was found; use a picture in which the face is upright, whole and larger than a tenth of the picture")
    if which is None:
        many = f"{name}: {len(found)} faces, the largest is used; choose another with --which 0..{len(found) - 1}, counted from the left"
        return found[0], (many,) if len(found) > 1 else ()
    if not 0 <= which < len(found):
        raise InputError(f"{name}: --which {which}, but {len(found)} face(s) were found; choose 0 to {len(found) - 1}, counted from the left")
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


def cast_of(people: Sequence[Identity], request: Request, text_encoder: Any) -> Cast:
    """Sort people by what paints them; `request.use` decides, `auto` takes the words of whoever the prompt names.

    Raises:
        InputError: what is asked for is not in an identity, the prompt does not name somebody exactly once, two people share a
            placeholder, or two would have to be painted by their faces.
    """
    faces: list[Identity] = []
    words: dict[str, Tensor] = {}
    for who in people:
        named = request.full_prompt.count(who.words.placeholder) if who.words else 0
        by_words = request.use in ("words", "both") or (request.use == "auto" and (named > 0 or not who.num_photos))
        if by_words:
            learned = _usable(who, named, text_encoder)
            if learned.placeholder in words:
                raise InputError(f"two people share the placeholder {learned.placeholder}: give one of them another with `selfsame learn --name`")
            words[learned.placeholder] = torch.from_numpy(learned.vectors[0])
        if request.use in ("face", "both") or (request.use == "auto" and not by_words):
            faces.append(who)
    if any(not who.num_photos for who in faces):
        raise InputError("an identity has learned words but no photo; use --use words, or make it anew from a photo")
    if len(faces) > 1:
        raise InputError(f"{len(faces)} people would be painted by their faces, which works for one: name the others in the prompt by their learned words")
    return Cast(faces[0] if faces else None, words)


def _usable(who: Identity, named: int, text_encoder: Any) -> LearnedWords:
    words = who.words
    if words is None:
        raise InputError("the identity has no learned words; learn them with `selfsame learn`, or leave out --use")
    if named != 1:
        how = "does not name" if named == 0 else f"names {named} times"
        raise InputError(f"the prompt {how} {words.placeholder}: say once where the person stands, as in 'a photo of {words.placeholder}'")
    if words.text_encoder not in ("", tower_hash(text_encoder)):
        raise InputError(f"{words.placeholder} was learned for another text encoder than this model's: learn the person anew")
    width = text_encoder.config.hidden_size
    if [v.shape[1] for v in words.vectors] != [width]:
        raise InputError(f"{words.placeholder} has words of {', '.join(str(v.shape[1]) for v in words.vectors)} numbers, this model's have {width}")
    return words
