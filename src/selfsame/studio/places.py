"""Who stands where in a picture of several people, and who is found there afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from selfsame.images.files import InputError
from selfsame.perception.detector import Found
from selfsame.studio.crowd import Shown
from selfsame.studio.request import MANNEQUIN, Strengths
from selfsame.values.identity import Identity

Box = tuple[int, int, int, int]  # x0 y0 x1 y1, pixels, x1 and y1 just outside
FACE_TO_POINTS = 2.4  # a face's width over the extent of its five key points
ROOM = 0.9  # of a region's width that a face may take
OVERLAP = 0.02  # of the smaller region that may lie in another without a word


@dataclass(frozen=True)
class Pose:
    """Where a photo's face stands: key points 5 2 in the photo's pixels, and the photo's size."""

    kps: np.ndarray
    height: int
    width: int

    @classmethod
    def of(cls, identity: Identity) -> Pose:
        """Where the face stands in the identity's first photo."""
        return cls(identity.kps[0].astype(np.float64), *(int(v) for v in identity.sizes[0]))

    def in_picture(self, height: int, width: int, *, most: float = float("inf")) -> np.ndarray:
        """The key points in a picture of another size: scaled to fit its height, centred across, and moved inside when they are not.

        Args:
            most: pixels that the points may be apart.
        """
        extent = float(np.ptp(self.kps, axis=0).max())
        zoom = min(height / self.height, most / extent)
        points = (self.kps + 0.5) * zoom - 0.5
        points[:, 0] += (width - self.width * zoom) / 2
        points[:, 1] += (height - self.height * zoom) / 2
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

    def in_box(self, box: Box) -> np.ndarray:
        """The key points in a part of a picture, small enough for the face to fit into it."""
        x0, y0, x1, y1 = box
        return self.in_picture(y1 - y0, x1 - x0, most=ROOM * (x1 - x0) / FACE_TO_POINTS) + np.array([x0, y0])


@dataclass(frozen=True)
class Person:
    """Somebody in a picture: who, where, in which pose, how strongly."""

    identity: Identity
    region: Box | np.ndarray | None = None  # a box, or a mask h w in [0, 1] of the picture's size; None: everywhere, or a column beside the others
    pose: Pose | None = None  # key points of another picture; None: those of the identity's first photo
    strengths: Strengths | None = None  # None: the request's
    name: str = ""  # what messages call this person


@dataclass(frozen=True)
class Places:
    """Regions of the people of one picture, left to right when nobody said otherwise."""

    masks: tuple[np.ndarray | None, ...]  # h w float32 in [0, 1]
    boxes: tuple[Box, ...]
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def of(cls, people: Sequence[Person], height: int, width: int, least: int = MANNEQUIN.least) -> Places:
        """One place a person.

        Args:
            least: pixels of a region's side, of the base's `Limits`.

        Raises:
            InputError: some people have a region and some have none, a region has another size than the picture, lies outside it, or is too small.
        """
        without = [p for p in people if p.region is None]
        if len(people) == 1 and without:
            return cls((None,), ((0, 0, width, height),))
        if without and len(without) < len(people):
            raise InputError(f"{len(without)} of {len(people)} people have no region: give all of them one, or none for places from left to right")
        if without:
            boxes, masks = columns(len(people), height, width)
        else:
            masks = [_checked(p.region, height, width, i + 1) for i, p in enumerate(people)]
            boxes = [_bounds(mask) for mask in masks]
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            if min(x1 - x0, y1 - y0) < least:
                raise InputError(f"region {i + 1} is {x1 - x0} x {y1 - y0}: this base needs at least {least} x {least} pixels; make it or the picture larger")
            if (mask := masks[i]) is not None and not mask[::least, ::least].any():  # what the coarsest layers see of it
                raise InputError(f"region {i + 1} is too thin: this base sees nothing of it in cells of {least} x {least} pixels; make it broader")
        return cls(tuple(masks), tuple(boxes), tuple(_overlaps(masks)))


def columns(count: int, height: int, width: int) -> tuple[list[Box], list[np.ndarray]]:
    """A picture shared out from left to right: boxes and masks (h w float32)."""
    edges = [round(i * width / count) for i in range(count + 1)]
    boxes = [(a, 0, b, height) for a, b in pairwise(edges)]
    return boxes, [_mask_of(box, height, width) for box in boxes]


def _mask_of(box: Box, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.float32)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def _checked(region: Box | np.ndarray | None, height: int, width: int, number: int) -> np.ndarray:
    if isinstance(region, np.ndarray):
        if region.shape != (height, width):
            raise InputError(f"region {number} is {region.shape[1]} x {region.shape[0]}, the picture {width} x {height}: make them of one size")
        if not 0 <= region.min() <= region.max() <= 1:
            raise InputError(f"region {number} holds values from {region.min():g} to {region.max():g}: give a mask from 0 to 1")
        return region.astype(np.float32)
    assert region is not None
    x0, y0, x1, y1 = region
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(f"region {number}, {x0},{y0},{x1},{y1}: give left, top, right, bottom inside the picture of {width} x {height}")
    return _mask_of(region, height, width)


def _bounds(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero((mask > 0.5).any(1)), np.flatnonzero((mask > 0.5).any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _deepest(mask: np.ndarray) -> Box:
    """The square around the point of a mask that is farthest from its edge and from the picture's."""
    inside = np.pad((mask > 0.5).astype(np.uint8), 1)
    far = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = (int(v) for v in np.unravel_index(far.argmax(), far.shape))
    reach = max(1, int(far.max()))
    return max(0, x - reach), max(0, y - reach), min(mask.shape[1], x + reach + 1), min(mask.shape[0], y + reach + 1)


def _overlaps(masks: Sequence[np.ndarray]) -> list[str]:
    notes = []
    for i, a in enumerate(masks):
        for j in range(i + 1, len(masks)):
            shared = float(np.minimum(a, masks[j]).sum() / min(a.sum(), masks[j].sum()))
            if shared > OVERLAP:
                notes.append(f"regions {i + 1} and {j + 1} overlap by {shared:.0%} of the smaller: there both people act")
    return notes


def shown(
    people: Sequence[Person], embeddings: Sequence[Tensor], height: int, width: int, strengths: Strengths, least: int = MANNEQUIN.least
) -> tuple[tuple[Shown, ...], tuple[str, ...]]:
    """Faces in their places, and warnings.

    Args:
        embeddings: 1 k 512 of each person.
        strengths: of those who have none of their own.
        least: as of `Places.of`.
    """
    places = Places.of(people, height, width, least)
    faces = []
    for person, embedding, mask, box in zip(people, embeddings, places.masks, places.boxes, strict=True):
        pose = person.pose or Pose.of(person.identity)
        kps = pose.in_picture(height, width) if mask is None else pose.in_box(box)
        if mask is not None and not _holds(mask, kps.mean(0)):  # a ring, an L: the middle of its bounds is not in it
            kps = pose.in_box(_deepest(mask))
        faces.append(Shown(embedding, kps, mask, person.strengths or strengths))
    return tuple(faces), places.notes


@dataclass(frozen=True)
class Match:
    """One person looked for in a finished picture."""

    person: int  # number in the request
    found: Found | None  # the face that is most likely theirs
    likeness: float | None = None  # cosine with the photo, of the encoder that conditioned the picture: it tells people apart, it measures nothing
    name: str = ""
    in_place: bool = False  # whether its middle lies in the person's region
    is_likest: bool = True  # whether no other person of the picture is more like it

    @property
    def ok(self) -> bool:
        return self.found is not None and self.in_place and self.is_likest

    def told(self) -> str:
        """One phrase about this person."""
        where = "in place" if self.in_place else "found elsewhere"
        if self.found is None:
            where = "not found"
        elif not self.is_likest:
            where = "looks more like somebody else of the picture"
        alike = "" if self.likeness is None else f" (likeness {self.likeness:.2f})"
        return f"{self.name or f'person {self.person + 1}'}: {where}{alike}"

    def to_json(self) -> dict[str, Any]:
        """For reports; the box is x0, y0, x1, y1 in pixels."""
        box = None if self.found is None else [round(float(v), 1) for v in self.found.box]
        alike = None if self.likeness is None else round(self.likeness, 3)
        return {"person": self.name, "found": self.found is not None, "in_place": self.ok, "likeness": alike, "box": box}


def matched(alike: np.ndarray, faces: Sequence[Found], regions: Sequence[Box | np.ndarray], names: Sequence[str] = ()) -> list[Match]:
    """Faces given to people so that likenesses add up to most (Hungarian method).

    Args:
        alike: p f, how alike each person is to each face.
        regions: where each person was to stand, a box or a mask h w.
        names: of the people.
    """
    called = list(names) or [""] * len(regions)
    matches = {i: Match(i, None, name=called[i]) for i in range(len(regions))}
    for i, j in zip(*linear_sum_assignment(-alike), strict=True) if alike.size else ():
        in_place = _holds(regions[i], faces[j].kps.mean(0))
        matches[int(i)] = Match(int(i), faces[j], float(alike[i, j]), called[i], in_place, bool(alike[i, j] >= alike[:, j].max()))
    return list(matches.values())


def _holds(region: Box | np.ndarray, point: np.ndarray) -> bool:
    """Whether a point (x y) lies in a region."""
    x, y = point
    if isinstance(region, np.ndarray):
        column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        return 0 <= row < region.shape[0] and 0 <= column < region.shape[1] and bool(region[row, column] > 0.5)
    x0, y0, x1, y1 = region
    return bool(x0 <= x < x1 and y0 <= y < y1)
