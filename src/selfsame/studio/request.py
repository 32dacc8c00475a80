"""What a user may ask of a picture, checked before any work."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from selfsame.diffusion.windows import in_window
from selfsame.images.files import InputError
from selfsame.mannequins.captions import STYLE_PHRASES

SPEEDS = ("exact", "fast", "turbo")
SOLVERS = ("dpmpp-2m", "dpmpp-2m-karras", "euler", "ddim", "unipc", "heun", "lcm")
LCM_STEPS = 50  # its distillation's own schedule
FEW_STEPS = 8  # of lcm, when nobody says how many; such weights need no guidance
OWN = -1.0  # guidance or strength: the model's own
STYLES = ("none", *STYLE_PHRASES)


def nearest(value: str, options: Sequence[str], what: str) -> str:
    """`value` when it is an option.

    Raises:
        InputError: it is not; the message suggests the nearest and lists all.
    """
    if value in options:
        return value
    close = difflib.get_close_matches(value.lower(), options, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(f"{what} {value!r} is unknown; {hint}choose from {', '.join(options)}")


def between(value: float, low: float, high: float, what: str) -> None:
    """Raise InputError when a number is not one from `low` to `high`."""
    if not math.isfinite(value) or not low <= value <= high:
        raise InputError(f"{what} {value}: give a number from {low:g} to {high:g}")


def window(start: float, end: float, who: str) -> None:
    """Raise InputError when a start and an end are no shares of a run in this order."""
    between(start, 0, 1, f"{who} start")
    between(end, 0, 1, f"{who} end")
    if start >= end:
        raise InputError(f"{who} window {start:g} to {end:g}: the start must come before the end")


def _counts(num_images: int, num_steps: int, seed: int) -> None:
    if not 1 <= num_images <= 64:
        raise InputError(f"{num_images} pictures: give 1 to 64")
    if not 0 <= num_steps <= 200:
        raise InputError(f"{num_steps} steps: give 1 to 200, or 0 for the model's own number")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {seed}: give a number from 0 to 2^63 - 1")


def _steps_of(solver: str, num_steps: int) -> None:
    if solver == "lcm" and num_steps > LCM_STEPS:
        raise InputError(f"{num_steps} steps: solver lcm takes at most {LCM_STEPS}, and is meant for 4 to 8")


def _guidance(scale: float) -> None:
    if scale != OWN:
        between(scale, 0, 30, "guidance")


@dataclass(frozen=True)
class FewSteps:
    """How weights paint that were distilled to few unguided steps."""

    solver: str
    num_steps: int


@dataclass(frozen=True)
class Limits:
    """What sizes a base paints, and how long and how strongly guided when nobody says."""

    side: int  # pixels of its own squares
    stride: int  # of which a side is a multiple
    longest: int
    num_steps: int = 30  # InstantID's official demo's
    guidance_scale: float = 5.0  # likewise
    strength: float = 0.8  # likewise, of the Image Adapter and of IdentityNet
    turbo: FewSteps = FewSteps("lcm", FEW_STEPS)  # LCM-LoRA's
    context: float = 1.25  # of an edit: a face with its hair then fills half of the square, as in the pictures that models learn from
    least: int = 32  # pixels of a person's region, the cells of the coarsest layers: smaller ones may fall between those

    def settled(self, num_steps: int, guidance_scale: float, solver: str, speed: str = "exact") -> dict[str, Any]:
        """Steps, guidance and solver in full; few steps and no guidance for weights distilled to that."""
        steps, scale = (FEW_STEPS, 1.0) if solver == "lcm" else (self.num_steps, self.guidance_scale)
        if speed == "turbo":
            steps, scale, solver = self.turbo.num_steps, 1.0, self.turbo.solver
        return {"num_steps": num_steps or steps, "guidance_scale": scale if guidance_scale == OWN else guidance_scale, "solver": solver}


MANNEQUIN = Limits(128, 32, 512, 16, 3.0, 1.0, FewSteps("ddim", 4))  # 8 pixels a latent, two halvings in the U-Net


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """How strongly a face acts, and in which part of the run."""

    adapter_scale: float = 1.0
    adapter_start: float = 0.0
    adapter_end: float = 1.0
    controlnet_scale: float = 1.0
    controlnet_start: float = 0.0
    controlnet_end: float = 1.0

    def __post_init__(self) -> None:
        between(self.adapter_scale, 0, 2, "the Image Adapter's strength")
        between(self.controlnet_scale, 0, 2, "IdentityNet's strength")
        for who in ("adapter", "controlnet"):
            window(getattr(self, f"{who}_start"), getattr(self, f"{who}_end"), who)

    @property
    def windows(self) -> tuple[float | bool, ...]:
        """When either part acts, whatever its strength."""
        return self.adapter_scale > 0, self.adapter_start, self.adapter_end, self.controlnet_scale > 0, self.controlnet_start, self.controlnet_end

    def at(self, index: int, num_steps: int) -> tuple[float, float]:
        """Strength of the Image Adapter and of IdentityNet in a step."""
        adapter = self.adapter_scale * in_window(index, num_steps, self.adapter_start, self.adapter_end)
        return adapter, self.controlnet_scale * in_window(index, num_steps, self.controlnet_start, self.controlnet_end)


@dataclass(frozen=True, kw_only=True)
class Request:
    """All parameters of a picture except who is in it. The PNG carries them; `--like` repeats them."""

    prompt: str = ""
    """What to paint; empty: the face alone decides."""
    negative_prompt: str = ""
    """What not to paint."""
    style: str = "none"
    """A style preset: photo, pencil sketch, watercolour, pixel art, film noir, neon, clay, comic."""
    adapter_scale: float = OWN
    """Image Adapter, 0 to 2: how much the face tokens say; -1: the model's own (the miniature 1, photographs 0.8)."""
    adapter_start: float = 0.0
    """Share of the run at which the Image Adapter starts."""
    adapter_end: float = 1.0
    """Share of the run at which the Image Adapter ends."""
    controlnet_scale: float = OWN
    """IdentityNet, 0 to 2: key points and identity in space; -1: the model's own, likewise."""
    controlnet_start: float = 0.0
    """Share of the run at which IdentityNet starts."""
    controlnet_end: float = 1.0
    """Share of the run at which IdentityNet ends."""
    use: Literal["auto", "face", "words", "both"] = "auto"
    """What of an identity paints: its face tokens, its learned words, or both; auto: the words when the prompt names them."""
    photos: Literal["mean", "joint"] = "mean"
    """Several photos: the mean of their embeddings, or all of them jointly (the official form)."""
    height: int = 0
    """Pixels; 0: the model's own (the miniature: 128, in steps of 32)."""
    width: int = 0
    """Pixels; 0: the model's own."""
    seed: int = 0
    """Picture i has seed + i."""
    num_images: int = 1
    """How many pictures."""
    num_steps: int = 0
    """Denoising steps; 0: the model's own (the miniature 16, photographs 30; with speed turbo 4 and 8, with solver lcm 8)."""
    guidance_scale: float = OWN
    """How strongly the prompt and the face are followed; 0 to 1: no guidance; -1: the model's own (the miniature 3, photographs 5; none with speed turbo or
    solver lcm)."""
    guidance_start: float = 0.0
    """Share of the run at which guidance starts."""
    guidance_end: float = 1.0
    """Share of the run at which guidance ends: a late end costs detail, an early one saves time and burnt colours."""
    guidance_rescale: float = 0.0
    """0 to 1: how far the spread that guidance adds is taken back; 0.7 against burnt colours."""
    solver: str = "dpmpp-2m"
    """dpmpp-2m, dpmpp-2m-karras, euler, ddim, unipc or heun; lcm for weights distilled to few steps."""
    start_strength: float = 0.6
    """With a start picture: the share of the steps that are run; 0 leaves it almost as it is, 1 paints it anew."""
    speed: str = "exact"
    """exact: nothing is left out; fast: IdentityNet and deep features are reused between steps, and the last steps are not guided; turbo: a few unguided
    steps by weights distilled to them, whose own solver takes the place of any other (photographs: with --lora lcm-lora-sdxl or lcm-lora-sd15)."""

    def __post_init__(self) -> None:
        self.check()

    @property
    def strengths(self) -> Strengths:
        """How strongly faces act that say nothing else. Of a request that no model has settled yet what is its own is whole."""
        given = {f.name: getattr(self, f.name) for f in fields(Strengths)}
        return Strengths(**{name: 1.0 if value == OWN and name.endswith("_scale") else value for name, value in given.items()})

    def check(self) -> None:
        """Raise InputError at the first field that cannot be used."""
        _ = self.strengths  # checks itself
        window(self.guidance_start, self.guidance_end, "guidance")
        between(self.guidance_rescale, 0, 1, "guidance rescale")
        between(self.start_strength, 0, 1, "start strength")
        nearest(self.speed, SPEEDS, "speed")
        if self.use not in ("auto", "face", "words", "both"):
            raise InputError(f"use {self.use!r}: choose auto, face, words or both")
        if self.photos not in ("mean", "joint"):
            raise InputError(f"photos {self.photos!r}: choose mean or joint")
        _counts(self.num_images, self.num_steps, self.seed)
        _guidance(self.guidance_scale)
        nearest(self.solver, SOLVERS, "solver")
        _steps_of(self.solver, self.num_steps)
        nearest(self.style, STYLES, "style")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def sized(self, limits: Limits) -> Request:
        """This request with size, steps, guidance, solver and strengths that a base can paint with.

        Raises:
            InputError: a side is no multiple of the base's stride, or too large; the message names the nearest that is right.
        """
        height, width = self.height or limits.side, self.width or limits.side
        for side, name in ((height, "height"), (width, "width")):
            if side % limits.stride or not limits.stride <= side <= limits.longest:
                near = min(max(limits.stride, round(side / limits.stride) * limits.stride), limits.longest)
                raise InputError(f"{name} {side}: give a multiple of {limits.stride} from {limits.stride} to {limits.longest}, such as {near}")
        strengths = {name: limits.strength for name in ("adapter_scale", "controlnet_scale") if getattr(self, name) == OWN}
        return replace(self, height=height, width=width, **strengths, **limits.settled(self.num_steps, self.guidance_scale, self.solver, self.speed))

    @property
    def full_prompt(self) -> str:
        """The prompt inside the style's words."""
        if self.style == "none":
            return self.prompt
        return STYLE_PHRASES[self.style][0].format(self.prompt or "a person")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Request:
        """From a picture's metadata.

        Raises:
            InputError: a field is unknown or of the wrong kind.
        """
        names = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise InputError(f"the picture's parameters hold unknown fields {unknown}: it was made by another version of selfsame")
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"the picture's parameters cannot be used: {error}") from None


@dataclass(frozen=True)
class Made:
    """One picture and what made it."""

    pixels: np.ndarray  # h w 3 uint8
    request: Request
    seed: int  # of this picture
    notes: tuple[str, ...] = ()
    matches: tuple[Any, ...] = ()  # `places.Match` of each person, when there are several
    seconds: float = 0.0  # its share of the time that it was painted in

    @property
    def places_filled(self) -> int:
        """How many people were found where they were asked for."""
        return sum(m.ok for m in self.matches)

    @property
    def everybody(self) -> bool:
        return self.places_filled == len(self.matches)


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """All parameters of an edit except its pictures."""

    keep_shape: bool = False
    """Transfer the texture only: the painted thing keeps the depth of what was there."""
    seed: int = 0
    """Picture i has seed + i."""
    num_images: int = 1
    """How many pictures."""
    num_steps: int = 0
    """Denoising steps; 0: the model's own (the miniature 16, photographs 30, mimicbrush 50, with solver lcm 8)."""
    guidance_scale: float = OWN
    """How strongly the reference and a shape to keep are followed; 0 to 1: no guidance; -1: the model's own (the miniature 2, for a
    person 3; photographs 5, with solver lcm none)."""
    solver: str = "dpmpp-2m"
    """dpmpp-2m, dpmpp-2m-karras, euler, ddim, unipc or heun; lcm for weights distilled to few steps."""
    context: float = OWN
    """Side of the square that is looked at, over the side of the masked region, 1 to 8; -1: the model's own (1.8 with a reference, 1.25 with a person). With a
    reference the square is never smaller than what is painted at once."""
    feather: int = 4
    """Softness of the edge: so many rounds of a small blur, none of which reaches more than a pixel farther; 10 fade over about 6 pixels."""
    match_colour: bool = False
    """Move the result's colours to the source's, measured around the mask."""

    def __post_init__(self) -> None:
        _guidance(self.guidance_scale)
        if self.context != OWN:
            between(self.context, 1, 8, "context")
        nearest(self.solver, SOLVERS, "solver")
        _steps_of(self.solver, self.num_steps)
        if not 0 <= self.feather <= 100:
            raise InputError(f"feather {self.feather}: give 0 to 100 pixels")
        _counts(self.num_images, self.num_steps, self.seed)

    def settled(self, limits: Limits) -> EditRequest:
        """This request with steps, guidance and context in numbers, and the solver."""
        context = limits.context if self.context == OWN else self.context
        return replace(self, context=context, **limits.settled(self.num_steps, self.guidance_scale, self.solver))
