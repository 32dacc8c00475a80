"""Pictures in and out of files: every common mode accepted, hostile ones refused, writes atomic, parameters inside."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

MAX_PIXELS = 50_000_000
METADATA_KEY = "selfsame"
T = TypeVar("T")


class InputError(ValueError):
    """Something the user gave cannot be used: one line saying what, where and the remedy. Exit code 2."""


def read_image(path: str | Path) -> np.ndarray:
    """A picture file as h w 3 uint8, upright (EXIF), transparency over white.

    Raises:
        InputError: no such file, not a picture, truncated, or over 50 megapixels; the message names the file.
    """
    return _read(path, to_rgb)


@dataclass(frozen=True)
class Source:
    """A picture that is to be changed in places, with what its file holds beside h w 3."""

    pixels: np.ndarray  # h w 3 uint8, transparency over white
    clear: np.ndarray | None = None  # h w 4 uint8 as it is in the file, where it has transparency
    icc_profile: bytes | None = None
    notes: tuple[str, ...] = ()

    def changed(self, made: np.ndarray) -> np.ndarray:
        """`made` h w 3 as it is to be written: where it is the source's, transparency and the colours below it stay; elsewhere it is opaque."""
        if self.clear is None:
            return made
        new = np.dstack([made, np.full(made.shape[:2], 255, np.uint8)])
        return np.where((made != self.pixels).any(-1, keepdims=True), new, self.clear)


def read_source(path: str | Path) -> Source:
    """A picture file together with its transparency and colour profile, and a note of what cannot be kept.

    Raises: as `read_image`.
    """

    def taken(image: Image.Image) -> Source:
        kept = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
        lost = "its four inks become RGB" if image.mode == "CMYK" else "its 16 bits become 8" if image.mode[0] in "IF" or _is_deep(Path(path)) else ""
        turned = ImageOps.exif_transpose(image)
        clear = np.asarray(turned.convert("RGBA")).copy() if _is_clear(turned) else None
        return Source(to_rgb(image), clear, kept, (f"{path}: {lost}",) if lost else ())

    return _read(path, taken)


def _is_deep(path: Path) -> bool:
    """Whether a PNG has 16 bits a channel; Pillow opens coloured ones as if they had 8."""
    with open(path, "rb") as f:
        head = f.read(25)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24] == 16


def _read(path: str | Path, take: Callable[[Image.Image], T]) -> T:
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give one picture")
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning), Image.open(path) as image:
            w, h = image.size
            if w * h > MAX_PIXELS:
                raise InputError(f"{path}: {w} x {h} is {w * h / 1e6:.0f} megapixels, the limit is 50; make it smaller first")
            image.load()
            return take(image)
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a picture that can be read; give a PNG, JPEG or WebP file") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path}: larger than 50 megapixels; make it smaller first") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the picture is damaged or cut off ({error}); save it again") from None


def to_rgb(image: Image.Image) -> np.ndarray:
    """Any PIL mode to h w 3 uint8: EXIF turned, 16-bit scaled, CMYK and palettes converted, alpha laid over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        array = np.asarray(image, np.float64)
        top = 65535.0 if image.mode.startswith("I;16") or array.max() > 255 else 255.0
        grey = np.clip(array / top * 255, 0, 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, 2)
    if _is_clear(image):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB")).copy()
    return np.asarray(image.convert("RGB")).copy()


def _is_clear(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def check_output(path: str | Path) -> Path:
    """A path that can be written, before any long work.

    Raises:
        InputError: its folder is missing or read-only, or its ending is no picture's.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: pictures are written as PNG; end the name in .png")
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make it first or choose another --out")
    check_folder(folder)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a file name")
    return path


def check_folder(folder: Path) -> None:
    """Raise InputError when nothing can be written into a folder, before any long work."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        raise InputError(f"{folder}: cannot be written; choose another --out") from None


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its place in the end; nothing of it stays when writing fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to fill, which takes its place in the end, unless another process was sooner; nothing of it stays when filling fails."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        yield partial
        if not folder.exists():
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def new_output(path: Path, overwrite: bool = False) -> Path:
    """A file that can be written and is not there yet, unless it may be replaced.

    Raises:
        InputError: it exists, or its folder does not.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; choose another --out, or --overwrite to replace it")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder; make it first or choose another --out")
    return path


def numbered(path: Path, count: int) -> list[Path]:
    """The files of so many pictures: the path itself for one, else -1, -2 ... before its ending."""
    return [path] if count == 1 else [path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(count)]


def spare_inputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path | None]) -> None:
    """Refuse to write over what is read.

    Raises:
        InputError: an output is one of the inputs or of an input folder's files, or a picture that would lie among those of an input folder.
    """
    spare_resolved(outputs, {Path(p).resolve() for p in inputs if p is not None})


def spare_resolved(outputs: Iterable[str | Path], read: Collection[Path]) -> None:
    """`spare_inputs` for what is read by many outputs: resolved once."""
    for path in outputs:
        where = Path(path).resolve()
        if where in read or (where.parent in read and where.exists()):
            raise InputError(f"{path}: is one of the pictures or files that are read, and would be overwritten; choose another --out")
        if where.parent in read and where.suffix.lower() == ".png":
            raise InputError(f"{path}: would lie among the photos of a folder that is read, and be read with them; choose another --out")


TINY = 8  # pixels: smaller pictures show nothing


def must_show(name: str, image: np.ndarray) -> None:
    """Raise InputError for a picture, called so, that is too small to show anything."""
    if min(image.shape[:2]) < TINY:
        raise InputError(f"{name} is {image.shape[1]} x {image.shape[0]}: give a picture of at least {TINY} x {TINY} pixels")


def disk_is_full(error: Exception) -> bool:
    """Whether this is what an error means; writers of tensors say it without its number."""
    said = str(error)
    number = error.errno if isinstance(error, OSError) else None
    return number == errno.ENOSPC or "No space left on device" in said or (isinstance(error, RuntimeError) and "unexpected pos" in said)


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        InputError: it is missing, cut off or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except ValueError as error:  # json's and the encoding's
        raise InputError(f"{path}: not a JSON file that can be read ({error}); fetch or write it again") from None


def write_image(path: str | Path, pixels: np.ndarray, metadata: Mapping[str, Any] | None = None, *, icc_profile: bytes | None = None) -> Path:
    """Write h w 3 (or, with transparency, 4) uint8 as PNG, atomically, with the parameters that made it."""
    path = Path(path)
    info = PngImagePlugin.PngInfo()
    if metadata is not None:
        info.add_text(METADATA_KEY, json.dumps(dict(metadata), default=str))
    with written_whole(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG", pnginfo=info, icc_profile=icc_profile)
    return path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The parameters inside a picture made by selfsame.

    Raises:
        InputError: the picture carries none.
    """
    read_image(path)
    with Image.open(path) as image:
        text = image.info.get(METADATA_KEY)
    try:
        content = json.loads(text) if isinstance(text, str) else None
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path}: carries no selfsame parameters; give a picture that `selfsame generate` wrote")
    return content


def path_and_share(text: str) -> tuple[str, str]:
    """A path and its share, "" where none is said: `ada.png:0.3`, `ada.png`."""
    path, colon, share = text.rpartition(":")
    return (path, share) if colon and path and not set(share) & set("/\\") else (text, "")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A small JSON file, written atomically."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(values))
