"""A person painted into a region of a picture of any size by InstantID, whatever the base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from selfsame.diffusion.sampling import Step
from selfsame.images.files import InputError, must_show
from selfsame.images.masks import ellipse
from selfsame.methods.mimicbrush.pictures import latent_mask
from selfsame.models.latents import pixels_of
from selfsame.perception.detector import Found
from selfsame.studio.crowd import Shown
from selfsame.studio.edits import framed, put_back
from selfsame.studio.family import AROUND, Family
from selfsame.studio.painting import Row
from selfsame.studio.people import chosen_face
from selfsame.studio.places import Person
from selfsame.studio.request import OWN, EditRequest, Request
from selfsame.values.identity import Identity

HAIR = 0.3  # of a face's box on every side: its hair belongs to whoever comes instead
ENLARGED = 4  # times at most, that what is masked and its surroundings are enlarged for painting
FACE_SHARE = 0.4  # of a region's side lies between the eyes, when a face must be fitted into it


def put_person(
    studio: Family,
    source: np.ndarray,
    where: np.ndarray | Found,
    identity: Identity,
    request: Request,
    edit: EditRequest,
    *,
    on_step: Callable[[Step], None] | None = None,
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Paint a person into a region: in the pose of the face that is there, else in that of the photo, fitted into the region.

    Args:
        source: h w 3 uint8.
        where: a mask h w uint8, white is painted; or a face of the source, which is painted over with its hair. Outside the feathered edge the source's pixels
            stay, bit for bit.
        request: prompt, strengths, steps, guidance, seed and number of pictures; its size is the model's own square.
        edit: context, feather and colours. Unless it says a context, a face that is there fills half of the square that is painted, as heads do in the pictures
            that models learn from.

    Returns:
        `request.num_images` pictures of the source's size, and warnings.
    """
    must_show("the source", source)
    side = studio.limits.side
    request = studio.sized(replace(request, height=side, width=side), ())
    if identity.words and identity.words.placeholder in request.full_prompt:
        raise InputError(f"a person is put into a picture by the face: say `a person` for {identity.words.placeholder}")
    studio.cast([Person(identity)], replace(request, use="face"))  # refuses what cannot be painted before anything large is loaded
    mask, there = (where, _face_under(studio, source, where)) if isinstance(where, np.ndarray) else (ellipse(source.shape[:2], where.box, HAIR), where)
    extent = 0.0 if there is None or edit.context != OWN else float((there.box[2:] - there.box[:2]).max())
    edit = edit.settled(studio.limits)
    square, inside, window = framed(source, mask, edit.context, side, max(side // ENLARGED, round(AROUND * extent)))
    if there is not None:
        kps, notes = window.points(there.kps, side), ()
    elif (enlarged := _face_under(studio, square, inside)) is not None:  # one that is too small to be found in the whole picture
        kps, notes = enlarged.kps.astype(np.float64), ()
    else:
        kps, notes = _fitted(inside, identity)
    row = Row(request.full_prompt, request.negative_prompt, (Shown(studio.embedding(identity, request.photos), kps, strengths=request.strengths),))
    studio.prepare(request, 1)
    known = studio.encode(pixels_of(square)), latent_mask(inside).to(studio.device)
    painter, made = studio.painter(), []
    for first in range(0, request.num_images, studio.together):
        seeds = [request.seed + i for i in range(first, min(first + studio.together, request.num_images))]
        parts = [x.expand(len(seeds), -1, -1, -1) for x in known]
        painted, more = painter.paint([row] * len(seeds), request, seeds, known=(parts[0], parts[1].to(parts[0])), on_step=on_step)
        made += [put_back(source, result, mask, window, edit) for result in painted]
        notes += tuple(filter(None, more))
    return made, tuple(dict.fromkeys(notes))


def face_to_replace(studio: Family, source: np.ndarray, into: int | None) -> tuple[Found, tuple[str, ...]]:
    """A face of the source: the largest, or number `into` counted from the left, from 0. Also warnings.

    Raises:
        InputError: the source shows no face, or no such one.
    """
    found = studio.known_faces(source)[0]
    if not found:
        raise InputError("the source: no face was found in it; give --mask, white where the person shall be")
    return chosen_face(found, into, "the source", flag="--into", of="")


def _face_under(studio: Family, image: np.ndarray, mask: np.ndarray) -> Found | None:
    """The largest face of a picture whose middle a mask h w covers."""
    for found in studio.known_faces(image)[0]:
        x, y = found.kps.mean(0).round().astype(int)
        if 0 <= x < mask.shape[1] and 0 <= y < mask.shape[0] and mask[y, x]:
            return found
    return None


def _fitted(inside: np.ndarray, identity: Identity) -> tuple[np.ndarray, tuple[str, ...]]:
    """Key points 5 2 of the photo, scaled into the masked region."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    (y0, y1), (x0, x1) = (rows[0], rows[-1]), (columns[0], columns[-1])
    own = identity.kps[0].astype(np.float64)
    wide = (own[:, 0].max() - own[:, 0].min()) / (FACE_SHARE * max(1, min(x1 - x0, y1 - y0)))
    fitted = (own - own.mean(0)) / wide + [(x0 + x1) / 2, (y0 + y1) / 2]
    return fitted, ("no face was found under the mask: the photo's pose is used, fitted into the region",)
