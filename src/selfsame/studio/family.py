"""What every model family's studio does alike: a request and people in, pictures out, and a look at who is in them."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.diffusion.sampling import Step
from selfsame.diffusion.windows import ever_in_window
from selfsame.images.files import InputError, read_image
from selfsame.images.masks import ellipse, laid_over, resized, window_around
from selfsame.images.resize import resize_to_fill
from selfsame.models.latents import pixels_of
from selfsame.perception.detector import Found
from selfsame.studio.crowd import Shown
from selfsame.studio.painting import PACES, Painter, Row, calls_of, run_steps
from selfsame.studio.people import Cast, Who, people_of, placed
from selfsame.studio.places import Match, Person, Places, Pose, matched, shown
from selfsame.studio.request import Limits, Made, Request, Strengths
from selfsame.values.identity import Identity, LearnedWords

ANOTHER = 1_000_003  # from a seed to the next try's
LOST = 0.1  # of a start picture that may be cut off without a word
AROUND = 2.0  # side of the square in which a face is refined, over the face's: heads fill half of the pictures that models learn from
# What rows of one batch need not share.
OWN = ("prompt", "negative_prompt", "style", *(f.name for f in fields(Strengths)), "use", "photos", "seed", "num_images")


@dataclass(frozen=True)
class Job:
    """One picture to be, with all that it needs."""

    row: Row
    request: Request  # sized, of this one picture
    words: tuple[LearnedWords, ...] = ()
    people: tuple[Person, ...] = ()  # whose faces paint
    notes: tuple[str, ...] = ()
    share: float | None = None  # of the second of two people who are mixed

    @property
    def kind(self) -> Hashable:
        """Jobs of one kind can be painted together."""
        shared = tuple(v for k, v in self.request.to_json().items() if k not in OWN)
        said = tuple(sorted(w.digest for w in self.words))
        # Work that is reused between steps is made anew when somebody's window opens or closes: in one batch that must be at the same steps.
        acts = tuple(face.strengths.windows for face in self.row.faces) if PACES[self.request.speed].reuses else ()
        return shared, said, self.row.start is not None, acts


def idle(request: Request, faces: Sequence[Shown], num_calls: int) -> tuple[str, ...]:
    """What is asked for and never acts in a run of so many calls of the networks."""
    notes = []
    if request.negative_prompt and request.guidance_scale <= 1:
        notes.append(f"the negative prompt acts by guidance, and there is none (guidance {request.guidance_scale:g})")
    elif request.guidance_scale > 1 and not ever_in_window(num_calls, request.guidance_start, request.guidance_end):
        notes.append(_never("guidance", request.guidance_start, request.guidance_end, num_calls))
    for s in dict.fromkeys(face.strengths for face in faces):
        for who, scale, start, end in (
            ("the Image Adapter", s.adapter_scale, s.adapter_start, s.adapter_end),
            ("IdentityNet", s.controlnet_scale, s.controlnet_start, s.controlnet_end),
        ):
            if scale and not ever_in_window(num_calls, start, end):
                notes.append(_never(who, start, end, num_calls))
    return tuple(notes)


def _never(who: str, start: float, end: float, num_calls: int) -> str:
    return f"{who} never acts: no whole step of {num_calls} lies between {start:g} and {end:g} of the run"


def cut_off(start: np.ndarray, request: Request) -> tuple[str, ...]:
    """What of a start picture does not fit into the picture's shape, as a note."""
    height, width = start.shape[:2]
    zoom = max(request.height / height, request.width / width)
    lost = 1 - request.height * request.width / (height * width * zoom**2)
    if lost < LOST:
        return ()
    return (f"{lost:.0%} of the start picture, {width} x {height}, is cut off at {request.width} x {request.height}: give --width and --height of its shape",)


class Family(ABC):
    """A studio. What differs: sizes, how people are read, and the networks."""

    limits: Limits
    together: int  # pictures denoised at a time, of the kind that was last prepared for
    preset = "auto"  # of memory, where it decides about pictures
    device: torch.device
    judges: bool  # whether a second encoder can score a likeness

    def with_parts(self, **parts: nn.Module) -> Self:
        """This studio with other networks in place of the loaded ones, by the names of its parts: how training looks at itself."""
        for name, part in parts.items():
            if not isinstance(getattr(type(self), name, None), cached_property):
                raise ValueError(f"a studio has no part {name!r}")
            vars(self)[name] = part
        return self

    # ------------------------------------------------------------------------------------------ what a family says

    @abstractmethod
    def painter(self, words: Sequence[LearnedWords] = ()) -> Painter:
        """The networks and rules that paint; `words` may stand in prompts."""

    def text_kind(self, job: Job) -> Hashable:
        """Rows share a batch only where this agrees: a prompt that was filled to another's length would be told otherwise than alone, and a picture that
        needs more memory may need coarser weights."""
        return None

    def prepare(self, request: Request, people: int) -> None:
        """Hears of the next requests to be painted, before anything of them is, and how many people stand in one at most."""
        return

    @abstractmethod
    def embedding(self, identity: Identity, photos: str) -> Tensor:
        """What the Resampler gets: 1 1 512 (mean of the photos) or 1 k 512 (jointly)."""

    @abstractmethod
    def cast(self, people: Sequence[Person], request: Request) -> Cast:
        """Who is painted by face tokens and who by words."""

    @abstractmethod
    def known_faces(self, image: np.ndarray) -> tuple[list[Found], Tensor]:
        """Faces of a picture and the embeddings, n 512, that people are known by."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels 1 3 h w in [-1, 1] to latents."""

    @abstractmethod
    def as_read(self, image: np.ndarray) -> np.ndarray:
        """A photo as faces are looked for in it."""

    @abstractmethod
    def face(self, image: np.ndarray, *, which: int | None = None, name: str = "the picture") -> tuple[Found, tuple[str, ...]]:
        """The face to use: the largest, or number `which` counted from image left, from 0. Also warnings."""

    @abstractmethod
    def embedded(self, image: np.ndarray, found: Found) -> tuple[np.ndarray, str]:
        """What people are known by: of a face in a picture 1 512 float32, raw, and the name of the encoder that says it."""

    def introduced(self, *photos: str | Path | np.ndarray, which: int | None = None, consent: str = "") -> tuple[Identity, tuple[str, ...]]:
        """One person from one or more photos (files or h w 3 uint8 arrays), and what the photos' owner should know of them.

        Raises:
            InputError: a photo cannot be read or shows no usable face.
        """
        if not photos:
            raise InputError("no photo given: give at least one")
        parts: list[Identity] = []
        notes: list[str] = []
        for photo in photos:
            image, found, said = self._seen(photo, which)
            notes += said
            row, encoder = self.embedded(image, found)
            source = hashlib.sha256(image.tobytes()).hexdigest()
            parts.append(Identity(row, encoder, found.kps[None].astype(np.float32), np.array([image.shape[:2]]), (source,), consent))
        return parts[0].joined(*parts[1:]), tuple(notes)

    def identity(self, *photos: str | Path | np.ndarray, which: int | None = None, consent: str = "") -> Identity:
        """One person from one or more photos (files or h w 3 uint8 arrays).

        Raises:
            InputError: a photo cannot be read or shows no usable face.
        """
        return self.introduced(*photos, which=which, consent=consent)[0]

    def lent(self, photo: str | Path) -> tuple[Pose, tuple[str, ...]]:
        """Key points from another picture, and what its owner should know."""
        image, found, notes = self._seen(photo, None)
        return Pose(found.kps.astype(np.float64), *image.shape[:2]), notes

    def pose_of(self, photo: str | Path) -> Pose:
        """Key points from another picture."""
        return self.lent(photo)[0]

    def _seen(self, photo: str | Path | np.ndarray, which: int | None) -> tuple[np.ndarray, Found, tuple[str, ...]]:
        """A photo as faces are looked for in it, the face to use, warnings."""
        is_array = isinstance(photo, np.ndarray)
        image = self.as_read(photo if is_array else read_image(photo))
        found, notes = self.face(image, which=which, name="the picture" if is_array else str(photo))
        return image, found, notes

    def described(self, image: np.ndarray, what: Sequence[str], *, which: int | None = None) -> str:
        """What a photo shows, in the words of a prompt: expression, glasses, hat, clothes.

        Raises:
            InputError: this family reads no attributes.
        """
        raise InputError("this model cannot read what a photo shows: say it in the prompt")

    def likeness(self, image: np.ndarray, reference: np.ndarray, *, which: int | None = None) -> float | None:
        """A judge's cosine between the people of two pictures; None when either shows no face.

        Raises:
            InputError: this family has no judge.
        """
        raise InputError("this model has no judge: the encoder that conditions must not judge")

    @abstractmethod
    def view(self, yaw_deg: float, pitch_deg: float = 0.0, roll_deg: float = 0.0) -> Pose:
        """Key points of an average head in a view: yaw to image right, pitch up, roll with the image-right side up."""

    # ------------------------------------------------------------------------------------------ pictures

    @abstractmethod
    def scheduler(self, solver: str) -> Any:
        """A fresh solver with the base's noise schedule."""

    def num_calls(self, request: Request, *, has_start: bool = False) -> int:
        """How often the networks run for a request. Refuses a size before anything is loaded."""
        request = request.sized(self.limits)
        scheduler = self.scheduler(request.solver)
        if has_start:
            return run_steps(request.num_steps, request.start_strength) * scheduler.order
        return calls_of(scheduler, request.num_steps)

    def sized(self, request: Request, people: Sequence[Person]) -> Request:
        """The request with a size, steps, guidance and solver."""
        return request.sized(self.limits)

    def jobs(self, request: Request | str, who: Who | Sequence[Who] | None = None, *, pose: Pose | None = None, start: np.ndarray | None = None) -> list[Job]:
        """What a request asks for, a picture each, ready to be painted alone or beside other requests' pictures. Arguments as of `generate_each`.

        Raises:
            InputError: somebody cannot be painted so, or a region cannot be used.
        """
        request = Request(prompt=request) if isinstance(request, str) else request
        people = people_of(who, pose)
        request = self.sized(request, people)
        if start is not None:
            self.prepare(request, len(people))
        cast = placed(people, self.cast(people, request), *request.size, self.limits.least)
        faces, notes = shown(cast.faces, [self.embedding(p.identity, request.photos) for p in cast.faces], *request.size, request.strengths, self.limits.least)
        notes = (*cast.notes, *notes, *idle(request, faces, self.num_calls(request, has_start=start is not None)))
        if start is not None:
            notes += cut_off(start, request)
        row = Row(request.full_prompt, request.negative_prompt, faces, None if start is None else self.to_latents(start, request))
        each = [replace(request, seed=(request.seed + i) % 2**63, num_images=1) for i in range(request.num_images)]
        return [Job(row, one, cast.words, cast.faces, notes) for one in each]

    def to_latents(self, image: np.ndarray, request: Request) -> Tensor:
        """A picture of any size as latents 1 c h w of the request's size; what is too much on two sides is cut off."""
        return self.encode(pixels_of(resize_to_fill(image, *request.size)))

    def paint_jobs(
        self, jobs: Sequence[Job], *, retries: int = 0, refine: float = 0.0, on_step: Callable[[Step], None] | None = None
    ) -> Iterator[tuple[int, Made]]:
        """Pictures of jobs, each with its number, as they come: jobs of one kind are denoised together, and none depends on its neighbours.

        Args:
            retries: so often a picture is drawn again, by another seed, that does not show everybody in their place.
            refine: above 0, the faces of the finished pictures are painted anew, enlarged, with this share of the steps.
        """
        kinds: dict[Hashable, list[int]] = {}
        for i, job in enumerate(jobs):
            kinds.setdefault((job.kind, self.text_kind(job)), []).append(i)
        for numbers in kinds.values():
            largest = jobs[numbers[0]].request
            if refine:  # paints at the model's own size, too
                largest = replace(largest, height=max(largest.height, self.limits.side), width=max(largest.width, self.limits.side))
            self.prepare(largest, max(len(jobs[i].people) for i in numbers))
            painter = self.painter(jobs[numbers[0]].words)
            for start in range(0, len(numbers), self.together):
                group, began = [jobs[i] for i in numbers[start : start + self.together]], time.monotonic()
                pixels, notes = painter.paint([j.row for j in group], group[0].request, [j.request.seed for j in group], on_step=on_step)
                share = (time.monotonic() - began) / len(group)
                for i, job, image, note in zip(numbers[start:], group, pixels, notes, strict=False):
                    began = time.monotonic()
                    made = Made(image, job.request, job.request.seed, (*job.notes, note) if note else job.notes)
                    if len(job.people) > 1 or (retries and job.people):
                        made = self._with_everybody(made, job, painter, retries, on_step)
                    if refine:
                        made = self.refined(made, job, painter, refine, on_step)
                    yield i, replace(made, seconds=share + time.monotonic() - began)

    def generate(
        self,
        request: Request | str,
        who: Who | Sequence[Who] | None = None,
        *,
        pose: Pose | None = None,
        start: np.ndarray | None = None,
        retries: int = 0,
        on_step: Callable[[Step], None] | None = None,
    ) -> list[Made]:
        """Pictures of a request; `generate_each` yields them as they come."""
        return list(self.generate_each(request, who, pose=pose, start=start, retries=retries, on_step=on_step))

    def generate_each(
        self,
        request: Request | str,
        who: Who | Sequence[Who] | None = None,
        *,
        pose: Pose | None = None,
        start: np.ndarray | None = None,
        retries: int = 0,
        on_step: Callable[[Step], None] | None = None,
    ) -> Iterator[Made]:
        """Pictures of a request, a few at a time; picture i has seed + i, whatever it is made together with.

        Args:
            request: or just a prompt.
            who: nobody (the base model alone), one or several; a `Person` says where in the picture, in which pose, how strongly.
                Several without regions stand side by side, from left to right.
            pose: key points for the only person; by default those of the identity's first photo.
            start: h w 3 uint8, a picture to change as far as `request.start_strength` says.
            retries: so often a picture is drawn again, by another seed, that does not show everybody in their place.
            on_step: sees every step of every group.
        """
        for _, made in self.paint_jobs(self.jobs(request, who, pose=pose, start=start), retries=retries, on_step=on_step):
            yield made

    # ------------------------------------------------------------------------------------------ who is in a picture

    def _with_everybody(self, made: Made, job: Job, painter: Painter, retries: int, on_step: Callable[[Step], None] | None) -> Made:
        """The picture, or that of another try, in which most people stand in their places; it says who was found where."""
        best = made = replace(made, matches=tuple(self.recognised(made.pixels, job.people)))
        for k in range(1, retries + 1):
            if best.everybody:
                break
            again = replace(job.request, seed=(job.request.seed + k * ANOTHER) % 2**63)
            pixels, _ = painter.paint([job.row], again, [again.seed], on_step=on_step)
            made = Made(pixels[0], again, again.seed, made.notes, tuple(self.recognised(pixels[0], job.people)))
            best = made if made.places_filled > best.places_filled else best
        return best

    def refined(self, made: Made, job: Job, painter: Painter, strength: float, on_step: Callable[[Step], None] | None = None) -> Made:
        """The picture with each person's face painted anew at the model's own size and blended in: what helps faces that are small.

        Args:
            strength: share of the steps that a face is changed by.
        """
        pixels, notes = made.pixels, []
        if not job.people:
            notes.append("nobody's face was asked for, so none was refined")
        for match in made.matches or (self.recognised(pixels, job.people) if job.people else ()):
            refined = None if match.found is None else self._face_anew(pixels, match, job, painter, made.seed, strength, on_step)
            if refined is None:
                why = "was not found" if match.found is None else "is as large as this model paints faces"
                notes.append(f"{match.name or 'the face'} {why}, and was not refined")
            else:
                pixels = refined
        matches = self.recognised(pixels, job.people) if made.matches else ()
        return replace(made, pixels=pixels, notes=(*made.notes, *notes), matches=tuple(matches))

    def _face_anew(
        self, pixels: np.ndarray, match: Match, job: Job, painter: Painter, seed: int, strength: float, on_step: Callable[[Step], None] | None
    ) -> np.ndarray | None:
        """The picture with one face painted anew; None when it is large enough."""
        assert match.found is not None
        side = self.limits.side
        window = window_around(ellipse(pixels.shape[:2], match.found.box) > 0, AROUND)
        if window.side >= side:
            return None
        kps = window.points(match.found.kps, side)
        own = job.row.faces[match.person]
        request = replace(job.request, height=side, width=side, start_strength=strength).sized(self.limits)
        row = Row(request.full_prompt, request.negative_prompt, (replace(own, kps=kps, region=None),), self.to_latents(window.crop(pixels, 255), request))
        painted, _ = painter.paint([row], request, [seed], on_step=on_step)
        mask = ellipse(pixels.shape[:2], match.found.box, 0.15)
        return laid_over(window.put(pixels, resized(painted[0], window.side)), pixels, mask, max(2, window.side // 16))

    def recognised(self, image: np.ndarray, people: Sequence[Person]) -> list[Match]:
        """Which face of a finished picture is whose, by the embeddings that people are known by (never a measurement: they conditioned the picture).

        Args:
            people: with photos, and with the regions that they were asked for in.
        """
        if any(not p.identity.num_photos for p in people):
            raise InputError("somebody without a photo cannot be recognised")
        found, embeddings = self.known_faces(image)
        height, width = image.shape[:2]
        places = Places.of(people, height, width, self.limits.least)
        regions = [box if mask is None else mask for box, mask in zip(places.boxes, places.masks, strict=True)]
        known = F.normalize(torch.from_numpy(np.stack([p.identity.embeddings.mean(0) for p in people])).float(), dim=1)
        alike = known @ F.normalize(embeddings.float().cpu(), dim=1).T if found else known.new_zeros(len(known), 0)
        return matched(alike.numpy(), found, regions, [p.name for p in people])
