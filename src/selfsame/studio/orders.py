"""Orders: requests together with the files they need, as the command line, a manifest's line and a picture's own parameters write them."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from selfsame.images.files import InputError, path_and_share
from selfsame.studio.request import Request, between, nearest
from selfsame.studio.styles import read_styles

VIEWS = {
    "front": (0, 0, 0), "left": (-27, 0, 0), "right": (27, 0, 0), "half-left": (-14, 0, 0), "half-right": (14, 0, 0),
    "up": (0, 14, 0), "down": (0, -14, 0), "tilted-left": (0, 0, -12), "tilted-right": (0, 0, 12),
}  # fmt: skip
MIXES = ("even", "linear", "spherical")
KEEPS = ("expression", "glasses", "hat", "clothes")


@dataclass(frozen=True, kw_only=True)
class Order(Request):
    """A request and its files."""

    face: tuple[Path, ...] = ()
    """Photos of one person, one or more. Without any the base model paints somebody."""
    identity: tuple[Path, ...] = ()
    """Identity files instead of photos, or learned words (textual inversions, StableIdentity's .pt), each named in the prompt by its placeholder.
    One beside --face, with --use both: the words of the photos' person."""
    people: tuple[Path, ...] = ()
    """Several people instead of --face: of each a photo, a folder of photos or an identity file. They stand from left to right."""
    regions: tuple[str, ...] = ()
    """With --people: where each stands, a box left,top,right,bottom in pixels or a mask picture."""
    poses: tuple[Path, ...] = ()
    """With --people: a picture for each, whose face lends the key points."""
    scales: tuple[str, ...] = ()
    """With --people: strengths of each, one number, or two as adapter,identitynet."""
    mix: tuple[str, ...] = ()
    """A person between others, as in ada.png:0.3 ben.png:0.7."""
    mix_how: str = "even"
    """How --mix goes from one to the next: even, whose equal steps look equally large; linear; spherical (two people), which keeps the embedding's length."""
    mix_steps: int = 0
    """With --mix of two: so many pictures from one to the other, by one seed, and all side by side in --out."""
    pose: Path | None = None
    """Another picture whose face lends the key points."""
    view: str = ""
    """Key points of an average head instead: front, left, right, half-left, half-right, up, down, tilted-left or tilted-right."""
    yaw: float | None = None
    """The same in degrees: to image right."""
    pitch: float | None = None
    """Degrees up."""
    roll: float | None = None
    """Degrees, image-right side up."""
    keep: tuple[str, ...] = ()
    """What the photo shows and the picture shall show too: expression, glasses, hat, clothes. (Face and mostly hair always, pose unless told
    otherwise.) For photographs CLIP is asked (selfsame models fetch clip-vit-l14)."""
    start: Path | None = None
    """A picture to change instead of noise alone; --start-strength says how far."""
    which: int | None = None
    """Which face of a photo with several, counted from the left, from 0; default: the largest."""
    style_sheet: Path | None = None
    """A CSV or JSON file of styles (name, prompt with {prompt} in it, negative_prompt); --style then names one of them."""
    refine_faces: float = 0.0
    """Find the faces of the finished picture, paint each anew enlarged, and blend it in: the share of the steps, 0.4 to 0.6; 0: not."""
    retries: int = 0
    """Draw a picture again, by another seed, so often as somebody is not found in their place."""

    def check(self) -> None:
        """Flags are checked when the order is carried out, so that errors read as ours and not as the parser's."""

    @property
    def request(self) -> Request:
        """What is asked of the picture, checked."""
        values = {f.name: getattr(self, f.name) for f in fields(Request)}
        if self.style_sheet is not None and self.style != "none":
            styles = read_styles(self.style_sheet)
            style = styles[nearest(self.style, tuple(styles), "style")]
            values["style"] = "none"
            values["prompt"], values["negative_prompt"] = style.applied(self.prompt, self.negative_prompt)
        return Request(**values)

    @property
    def extras(self) -> dict[str, Any]:
        """Everything beside the request that is not as it would be unsaid, files by their full paths; but a style sheet, whose words stand in the request."""
        own = [f for f in fields(Order) if f.name not in {"style_sheet", *(g.name for g in fields(Request))}]
        said = {f.name: _plain(getattr(self, f.name)) for f in own if getattr(self, f.name) != f.default}
        return said | {name: [_moved(name, part, Path.cwd()) for part in said[name]] for name in ("mix", "regions") if name in said}

    @property
    def files(self) -> list[Path]:
        """Every file or folder that decides about the pictures."""
        named = [getattr(self, name) for name in ("face", "identity", "people", "poses", "pose", "start", "style_sheet")]
        paths = [p for value in named for p in (value if isinstance(value, tuple) else (value,)) if p is not None]
        return paths + [Path(path_and_share(text)[0]) for text in self.mix] + [Path(text) for text in self.regions if not is_box(text)]

    @property
    def shows_people(self) -> bool:
        """Whether somebody's face is read or painted."""
        return bool(self.face or self.identity or self.people or self.mix or self.pose or self.poses)

    @property
    def count(self) -> int:
        """How many pictures it asks for."""
        return self.mix_steps or self.num_images

    @classmethod
    def of(cls, values: Mapping[str, Any], folder: Path = Path(), *, is_table: bool = False) -> Order:
        """From JSON or a table's cells.

        Args:
            values: by field; text is turned into what a field needs.
            folder: that relative paths start from.
            is_table: lists are text with blanks between; a part with blanks in it stands in quotes.

        Raises:
            InputError: an unknown field, or a value of another kind.
        """
        hints = get_type_hints(cls)
        known = {f.name for f in fields(Order)}
        for name in values:
            nearest(name, sorted(known), "field")
        read: dict[str, Any] = {name: _read(name, value, hints[name], folder, is_table) for name, value in values.items()}
        for name in ("mix", "regions"):
            if name in read:
                read[name] = tuple(_moved(name, part, folder) for part in read[name])
        return Order(**read)

    def check_together(self) -> None:
        """Raise InputError at flags that contradict each other."""
        given = [f"--{name}" for name in ("face", "identity", "people", "mix") if getattr(self, name)]
        if given == ["--face", "--identity"]:
            if len(self.identity) > 1 or self.use != "both":
                raise InputError("--face and --identity together are one person's photos and learned words: give one --identity, and --use both")
        elif len(given) > 1:
            raise InputError(f"give {given[0]} or {given[-1]}, not both")
        for name in ("regions", "poses", "scales"):
            count = len(getattr(self, name))
            if count and not self.people:
                raise InputError(f"--{name} belongs to --people")
            if count and count != len(self.people):
                raise InputError(f"{count} {name} for {len(self.people)} people: give one for each")
        if self.which is not None and not self.face:
            raise InputError("--which belongs to --face; of other photos the largest face is used")
        if self.style_sheet is not None and self.style == "none":
            raise InputError(f"--style-sheet {self.style_sheet}: name one of its styles with --style")
        turned = [v for v in (self.yaw, self.pitch, self.roll) if v is not None]
        ways = [n for n, v in (("--pose", self.pose), ("--view", self.view), ("--yaw, --pitch, --roll", turned)) if v]
        if len(ways) > 1:
            raise InputError(f"give {ways[0]} or {ways[1]}, not both")
        if ways and self.people:
            raise InputError(f"{ways[0]} is for one person; give --poses with --people")
        if any(not math.isfinite(v) or abs(v) > 60 for v in turned):
            raise InputError(f"a head turned by {max(turned, key=abs):g} degrees does not show its five key points: give -60 to 60")
        between(self.refine_faces, 0, 1, "refine faces")
        nearest(self.mix_how, MIXES, "--mix-how")
        if self.start is None and self.start_strength != Order.start_strength:
            raise InputError("--start-strength belongs to --start, a picture to change")
        if self.mix_how != Order.mix_how and not self.mix:
            raise InputError("--mix-how belongs to --mix")
        if self.photos == "joint" and self.mix:
            raise InputError("--photos joint belongs to --face; of those in a --mix the mean is used")
        if self.mix_steps and (len(self.mix) != 2 or self.num_images != 1 or not 2 <= self.mix_steps <= 64):
            raise InputError("--mix-steps goes from one of two people to the other, in 2 to 64 pictures; leave out --num-images")
        if self.mix_steps and any(path_and_share(text)[1] for text in self.mix):
            raise InputError("--mix-steps makes its own shares: give the two people without any")
        if self.retries and (self.mix_steps or not given):
            raise InputError("--retries looks for people: give --face, --people or --mix; all of --mix-steps are by one seed, and none is drawn again")
        if not 0 <= self.retries <= 20:
            raise InputError(f"{self.retries} retries: give 0 to 20")
        for name in self.keep:
            nearest(name, KEEPS, "--keep")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def is_box(text: str) -> bool:
    """Whether a region is four numbers rather than a file."""
    parts = text.split(",")
    return len(parts) == 4 and all(re.fullmatch(r"\s*-?[0-9]+\s*", p) for p in parts)


def _read(name: str, value: Any, hint: Any, folder: Path, is_table: bool) -> Any:
    """A field's value from JSON or a table's cell."""
    inside = get_args(hint)
    kinds = [a for a in inside if a not in (NoneType, Ellipsis)] or [hint]
    if value is None:
        if NoneType in inside:
            return None
        raise InputError(f"field {name!r}: null cannot be used")
    try:
        if get_origin(hint) is tuple:
            parts = (_cell(value, folder) if is_table else [value]) if isinstance(value, str) else list(value)
            parts = [",".join(map(str, part)) if isinstance(part, list) else part for part in parts]  # a box as JSON has it
            return tuple(_path(folder, part) if kinds[0] is Path else str(part) for part in parts)
        if kinds[0] in (int, float) and not isinstance(value, bool):
            number = kinds[0](value)
            if isinstance(value, float) and number != value and value == value:
                raise InputError(f"field {name!r}: {value!r} is no whole number")
            return number
        if isinstance(value, str):
            return _path(folder, value) if kinds[0] is Path else value
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"field {name!r}: {value!r} cannot be used")


def _cell(text: str, folder: Path) -> list[str]:
    """Parts of a table's cell: the whole of it where that is a file, else what has blanks between, or stands in quotes. A backslash is a backslash."""
    if _path(folder, text).exists():
        return [text]
    words = shlex.shlex(text, posix=True)
    words.whitespace_split, words.escape, words.commenters = True, "", ""
    return list(words)


def _moved(name: str, text: str, folder: Path) -> str:
    """A path in front of a share, or a mask's, as seen from a folder; a box stays."""
    if name == "regions":
        return text if is_box(text) else str(_path(folder, text))
    path, share = path_and_share(text)
    return f"{_path(folder, path)}{':' if share else ''}{share}"


def _path(folder: Path, value: str) -> Path:
    path = Path(value).expanduser()
    return path if path.is_absolute() else folder / path


def order_json(order: Order) -> dict[str, Any]:
    """Request and extras in one table."""
    return asdict(order.request) | order.extras
