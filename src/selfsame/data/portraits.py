"""Portraits for training InstantID on photographs: a folder of photos of people becomes squares with key points and embeddings, as WebDataset shards.

One sample is `KEY.jpg` (the square), `KEY.txt` (caption), `KEY.npy` (raw embedding) and `KEY.json`: whose photo it is, key points and box in the
square's pixels, the photo's size and where the square was cut, which SDXL is told. A shard holds what a fixed run of photos gave and has a report
beside it, so that a stopped run goes on where it was and still knows every photo that could not be used.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from selfsame.data.shards import finished, jpg_of, new_shard, open_shard, picture_of, report_beside
from selfsame.images.files import InputError, read_image, write_json
from selfsame.perception.real_faces import RealFace

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
PER_SHARD = 200  # photos
SMALLEST_FACE = 1 / 12  # of the square's side, 85 pixels of 1024: below, embeddings and key points are noise
ABOUT = "portraits.json"
CAPTION = "a photo of a person"


Read = Callable[[np.ndarray], Sequence[RealFace]]  # a photo h w 3 uint8 -> its faces, largest first


@dataclass(frozen=True)
class PortraitsJob:
    """What to prepare, from where, into which folder."""

    folder: Path
    photos: Path
    encoder: str  # the embedding's space, such as antelopev2
    split: str = "train"
    size: int = 1024  # height and width of the squares, pixels: what the base was made for
    caption: str = CAPTION  # of photos without a text file beside them

    def __post_init__(self) -> None:
        if not self.split.isidentifier():
            raise InputError(f"split {self.split!r}: letters, digits and _ only")
        if self.size % 8 or not 32 <= self.size <= 2048:
            raise InputError(f"size {self.size}: give a multiple of 8 from 32 to 2048 pixels")

    @cached_property
    def sources(self) -> list[str]:
        """Photos in order, relative to their folder.

        Raises:
            InputError: the folder is missing or holds none.
        """
        if not self.photos.is_dir():
            raise InputError(f"{self.photos}: no such folder; give the one with the photos, a folder for each person")
        found = sorted(p.relative_to(self.photos).as_posix() for p in self.photos.rglob("*") if p.suffix.lower() in ENDINGS)
        if not found:
            raise InputError(f"{self.photos}: holds no photos; they end in {', '.join(ENDINGS)}")
        return found

    @property
    def shards(self) -> list[tuple[int, list[str]]]:
        return [(a, self.sources[a : a + PER_SHARD]) for a in range(0, len(self.sources), PER_SHARD)]

    def path(self, first: int, sources: Sequence[str]) -> Path:
        return self.folder / f"{self.split}-portraits-{first:07d}-{len(sources):04d}.tar"

    def digest(self, sources: Sequence[str]) -> str:
        """What a shard depends on: other photos, captions or another encoder make another shard."""
        files = [f for s in sources for f in (self.photos / s, (self.photos / s).with_suffix(".txt"))]
        stats = [(f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]
        return hashlib.sha256(repr((self.size, self.encoder, self.caption, list(sources), stats)).encode()).hexdigest()


@dataclass
class Report:
    """What photos gave."""

    digest: str = ""  # of the job that made a shard
    sources: int = 0
    people: dict[str, int] = field(default_factory=dict)  # photos of each that can be used
    problems: list[str] = field(default_factory=list)  # one line a photo that cannot

    def add(self, other: Report) -> None:
        self.sources += other.sources
        self.people = dict(Counter(self.people) + Counter(other.people))
        self.problems += other.problems

    @property
    def portraits(self) -> int:
        return sum(self.people.values())

    @property
    def teachers(self) -> int:
        """People with several photos, of which one lends the face while another is painted."""
        return sum(count > 1 for count in self.people.values())


def person_of(source: str) -> str:
    """Whose photo it is: all of a folder are of one person, a photo outside of any folder is of somebody of its own."""
    folder, slash, name = source.rpartition("/")
    return folder if slash else Path(name).stem


def square_around(height: int, width: int, box: np.ndarray) -> tuple[int, int, int]:
    """Top, left and side of a photo's largest square whose middle is as near to the face's as it can be."""
    side = min(height, width)
    x0, y0, x1, y1 = (float(v) for v in box)
    top, left = (round(float(np.clip((a + b) / 2 - side / 2, 0, n - side))) for a, b, n in ((y0, y1, height), (x0, x1, width)))
    return top, left, side


def portrait(image: np.ndarray, face: RealFace, size: int, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The square with the face, size size 3 uint8, and its record.

    Raises:
        InputError: the photo or the face in it is too small.
    """
    height, width = image.shape[:2]
    top, left, side = square_around(height, width, face.box)
    if side < size / 2:
        raise InputError(f"{name}: {width} x {height} pixels, too small for squares of {size}; at least half of it is needed")
    zoom = size / side
    shift = np.array([left, top])
    kps = (np.asarray(face.kps, np.float64) + 0.5 - shift) * zoom - 0.5
    box = (np.asarray(face.box, np.float64) - [*shift, *shift]) * zoom
    large = max(box[2] - box[0], box[3] - box[1])
    if large < SMALLEST_FACE * size:
        raise InputError(f"{name}: the face is {large:.0f} pixels of {size} large, too small to teach; crop the photo to the person")
    if not ((kps >= 0) & (kps < size)).all():
        raise InputError(f"{name}: the face is cut by the border")
    crop = image[top : top + side, left : left + side]
    square = crop if side == size else cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
    about = {"kps": kps.round(3).tolist(), "box": box.round(3).tolist(), "photo": [height, width], "crop": [round(top * zoom), round(left * zoom)]}
    return square, about


def _sample(job: PortraitsJob, source: str, read: Read) -> dict[str, Any]:
    """
    Raises:
        InputError: the photo cannot be read, shows no face, or not large enough.
    """
    path = job.photos / source
    image = read_image(path)
    faces = read(image)
    if not faces:
        raise InputError(f"{path}: no face was found")
    square, about = portrait(image, faces[0], job.size, str(path))
    beside, raw = path.with_suffix(".txt"), io.BytesIO()
    caption = beside.read_text(encoding="utf-8", errors="replace").strip() if beside.is_file() else ""
    np.save(raw, faces[0].embedding.astype(np.float32))
    record = about | {"source": source, "person": person_of(source), "faces": len(faces)}
    return {"jpg": jpg_of(square), "txt": (caption or job.caption).encode(), "npy": raw.getvalue(), "json": json.dumps(record).encode()}


def _prepare_shard(job: PortraitsJob, first: int, sources: list[str], read: Read) -> Report:
    path, digest = job.path(first, sources), job.digest(sources)
    if known := finished(path, digest):
        return Report(**known)
    report, people = Report(digest, len(sources)), Counter[str]()
    report_beside(path).unlink(missing_ok=True)
    with new_shard(path) as tar:
        for k, source in enumerate(sources):
            try:
                tar.write({"__key__": f"{job.split}-{first + k:07d}"} | _sample(job, source, read))
                people[person_of(source)] += 1
            except InputError as error:
                report.problems.append(str(error))
    report.people = dict(people)
    write_json(report_beside(path), asdict(report))
    return report


def prepare_portraits(job: PortraitsJob, read: Read) -> Iterator[Report]:
    """Make all shards; yields each one's report, those found finished too.

    Raises:
        InputError: the folder holds portraits of another size or encoder, or there are no photos.
    """
    shards = job.shards
    job.folder.mkdir(parents=True, exist_ok=True)
    about = {"size": job.size, "encoder": job.encoder}
    if (job.folder / ABOUT).exists() and portraits_about(job.folder) != about:
        raise InputError(f"{job.folder}: holds portraits of {portraits_about(job.folder)}, these would be of {about}; choose another folder")
    write_json(job.folder / ABOUT, about)
    ours = {job.path(first, sources).name for first, sources in shards}
    for old in job.folder.glob(f"{job.split}-portraits-*.tar"):
        if old.name not in ours:  # of fewer or other photos: some would come twice
            old.unlink()
            report_beside(old).unlink(missing_ok=True)
    for first, sources in shards:
        yield _prepare_shard(job, first, sources, read)


def portraits_about(folder: Path) -> dict[str, Any]:
    """Size of the squares, and which encoder's embeddings lie beside them.

    Raises:
        InputError: the folder holds no portraits.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise InputError(f"{folder}: holds no portraits; make them with `selfsame prepare portraits --photos PHOTOS --face-models FOLDER --out {folder}`")
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Portraits:
    """A split without its pictures, by row."""

    folder: Path
    split: str
    records: list[dict[str, Any]]  # the JSON's fields and `caption`
    embeddings: np.ndarray  # n 512 float32, raw

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def digest(self) -> str:
        """Hash of records and embeddings."""
        lines = "\n".join(json.dumps(r, sort_keys=True) for r in self.records)
        return hashlib.sha256(lines.encode() + self.embeddings.tobytes()).hexdigest()

    @cached_property
    def kps(self) -> np.ndarray:
        """n 5 2, pixels of the squares."""
        return np.array([r["kps"] for r in self.records], np.float32)

    @cached_property
    def people(self) -> np.ndarray:
        """n numbers, the same for all photos of a person."""
        return np.unique([r["person"] for r in self.records], return_inverse=True)[1].astype(np.int64)

    def images(self) -> Iterator[np.ndarray]:
        """The squares, row by row, h w 3 uint8."""
        for raw in _raw(self.folder, self.split):
            yield picture_of(raw["jpg"])


def _raw(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(f"{split}-portraits-*.tar")):
        yield from open_shard(str(path))


def has_portraits(folder: Path, split: str) -> bool:
    return any(folder.glob(f"{split}-portraits-*.tar"))


def open_portraits(folder: Path, split: str) -> Portraits:
    """
    Raises:
        InputError: there are none of this split.
    """
    portraits_about(folder)
    records, embeddings = [], []
    for raw in _raw(folder, split):
        records.append(json.loads(raw["json"]) | {"caption": raw["txt"].decode()})
        embeddings.append(np.load(io.BytesIO(raw["npy"]), allow_pickle=False))
    if not records:
        raise InputError(f"{folder}: holds no portraits of split {split!r}; make them with `selfsame prepare portraits --split {split} ... --out {folder}`")
    return Portraits(folder, split, records, np.stack(embeddings))
