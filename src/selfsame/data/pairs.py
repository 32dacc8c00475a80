"""Pairs of looks for MimicBrush as WebDataset shards: from a folder of videos, from stills with object masks, from the world's clips.

One sample is `KEY.first` and `KEY.second` (PNG of the world, JPEG of real pictures), `KEY.mask.png` when a thing or part of the
first look is segmented (of a clip: one that both show), `KEY.depth.png` when its depth is known, and `KEY.json`: kind (clip or
still), where it comes from, SSIM. A shard holds what a fixed run of sources gave, is renamed when whole, and has a report beside
it, so that a resumed run skips finished work and still knows every bad source. The bytes are the same whatever the number of
processes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from tarfile import ReadError
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps

from selfsame.data.shards import finished, jpg_of, new_shard, open_shard, picture_of, png_of, pool_of, report_beside
from selfsame.images.files import InputError, read_image, read_json, write_json
from selfsame.images.resize import squared
from selfsame.mannequins.clips import clip_scene
from selfsame.mannequins.render import Picture, draw
from selfsame.mannequins.world import WORLD_VERSION
from selfsame.methods.mimicbrush.samples import Pair, PairSamples, chosen_pairs, training_sample

VIDEO_ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
STILL_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
MASK_ENDING = ".mask.png"
FRAMES = 8  # of a video, evenly spread, at least: what pairs are chosen from
LONGEST = 1800  # frames of a video that are looked at
WORLD_FRAMES = 5
STILLS = 2  # of each of the world's clips
FORM = 2  # of what a shard holds: counts up when it changes
SMALLEST = 0.02  # of a picture: smaller things are no lesson
NAME = re.compile(r"[A-Za-z0-9_]+")  # of a split: it stands in file names and before a dot
SOURCES_PER_SHARD = {"world": 100, "videos": 4, "stills": 50, "shards": 1}  # what a process works on, and what is lost when it is stopped


@dataclass(frozen=True)
class PairsJob:
    """What to prepare, from where, into which folder. One of `videos`, `stills`, `world`, `tars` is given."""

    folder: Path
    split: str = "train"
    videos: Path | None = None
    stills: Path | None = None
    world: int = 0  # clips
    size: int = 128  # height and width of the squares, pixels
    pairs_per_source: int = 2
    how: PairSamples = field(default_factory=PairSamples)
    tars: Path | None = None  # a folder of anybody's WebDataset shards: KEY.mp4, or KEY.jpg beside KEY.mask.png

    def __post_init__(self) -> None:
        if sum((self.videos is not None, self.stills is not None, self.world > 0, self.tars is not None)) != 1:
            raise InputError("give one of --videos FOLDER, --stills FOLDER, --shards FOLDER or --world COUNT")
        if self.tars is not None and self.tars.resolve() == self.folder.resolve():
            raise InputError(f"--shards {self.tars}: is where the pairs are to be written; choose another --out")
        if not NAME.fullmatch(self.split):
            raise InputError(f"split {self.split!r}: letters, digits and _ only")
        if not 32 <= self.size <= 1024:
            raise InputError(f"size {self.size}: give 32 to 1024 pixels")
        if not 1 <= self.pairs_per_source <= FRAMES * (FRAMES - 1):
            raise InputError(f"{self.pairs_per_source} pairs a source: give 1 to {FRAMES * (FRAMES - 1)}")
        if self.world and self.size != 128:
            raise InputError(f"size {self.size}: the world's clips are 128 pixels high")

    @property
    def kind(self) -> str:
        return "world" if self.world else "videos" if self.videos else "stills" if self.stills else "shards"

    @property
    def given(self) -> Path | None:
        """The folder that the pairs come from, None for the world."""
        return self.videos or self.stills or self.tars

    @property
    def source(self) -> str:
        """The folder that the pairs come from, "" for the world."""
        return str(self.given.resolve()) if self.given else ""

    def sources(self) -> list[str]:
        """File names in order, or numbers of clips.

        Raises:
            InputError: the folder is missing or holds none.
        """
        if self.world:
            return [str(i) for i in range(self.world)]
        folder = self.given
        assert folder is not None
        endings = VIDEO_ENDINGS if self.videos else STILL_ENDINGS if self.stills else (".tar",)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the one with the {self.kind}")
        files = [p for p in folder.rglob("*") if p.suffix.lower() in endings and not p.name.endswith(MASK_ENDING)]
        own = self.folder.resolve()  # what is made is not its own source
        found = sorted(str(p.relative_to(folder)) for p in files if own not in p.resolve().parents)
        if not found:
            raise InputError(f"{folder}: holds no {self.kind}; they end in {', '.join(endings)}")
        return found

    def shards(self) -> list[tuple[int, list[str]]]:
        sources, step = self.sources(), SOURCES_PER_SHARD[self.kind]
        return [(a, sources[a : a + step]) for a in range(0, len(sources), step)]

    def path(self, first: int, sources: list[str]) -> Path:
        return self.folder / f"{self.split}-{self.kind}-{first:07d}-{len(sources):04d}.tar"

    def digest(self, sources: list[str]) -> str:
        """What a shard of these sources depends on: another job, other files or another world make another shard."""
        folder = self.given
        files = [f for s in sources for f in ((folder / s), (folder / s).with_name((folder / s).stem + MASK_ENDING))] if folder else []
        stats = [(f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]
        about = (FORM, self.size, self.pairs_per_source, self.how.ssim_low, self.how.ssim_high, WORLD_VERSION, sources, stats)
        return hashlib.sha256(repr(about).encode()).hexdigest()


@dataclass
class Report:
    """What a shard's sources gave."""

    digest: str = ""  # of the job that made it
    folder: str = ""  # whose files they are, "" for the world
    sources: int = 0
    pairs: int = 0
    looked_at: int = 0  # pairs of frames whose SSIM was taken
    in_band: int = 0
    ssim_low: float = 1.0  # of all that were looked at
    ssim_high: float = -1.0
    problems: list[str] = field(default_factory=list)  # one line a bad source

    def add(self, other: Report) -> None:
        self.sources, self.pairs = self.sources + other.sources, self.pairs + other.pairs
        self.looked_at, self.in_band = self.looked_at + other.looked_at, self.in_band + other.in_band
        self.ssim_low, self.ssim_high = min(self.ssim_low, other.ssim_low), max(self.ssim_high, other.ssim_high)
        self.problems += other.problems


def square_of(image: np.ndarray, size: int, around: int = 255) -> np.ndarray:
    """Padded to a square, then resized, as the paper trains (Sec. 4.1)."""
    square = squared(_at_most(image, size), around)  # small first: the square of a panorama is far larger than the panorama
    return square if len(square) == size else cv2.resize(square, (size, size), interpolation=cv2.INTER_CUBIC)


def video_frames(path: Path, size: int) -> list[np.ndarray]:
    """FRAMES to 2 FRAMES - 1 frames (fewer of a shorter one), evenly spread over the first LONGEST, their longer side at most `size`, not padded.

    Raises:
        InputError: no video, or fewer than two frames.
    """
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise InputError(f"{path}: not a video that OpenCV can read; convert it to MP4 (H.264)")
        kept: list[np.ndarray] = []
        stride = 1  # what a container says of its length is often wrong: frames are thinned out as more of them come
        for i in range(LONGEST):
            if not video.grab():
                break
            if i % stride:
                continue
            ok, bgr = video.retrieve()
            if ok:
                kept.append(_at_most(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), size))
            if len(kept) == 2 * FRAMES:
                kept, stride = kept[::2], 2 * stride
    finally:
        video.release()
    if len(kept) < 2:
        raise InputError(f"{path}: {len(kept)} frame(s) could be read; a pair needs two")
    return kept


def _at_most(image: np.ndarray, side: int) -> np.ndarray:
    """A picture whose longer side is at most so long."""
    zoom = side / max(image.shape[:2])
    if zoom >= 1:
        return image
    return cv2.resize(image, (max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom))), interpolation=cv2.INTER_AREA)


Sample = dict[str, Any]


def _of_frames(frames: list[np.ndarray], job: PairsJob, rng: np.random.Generator, report: Report) -> Iterator[tuple[int, int, float]]:
    for i, j, value, inside in chosen_pairs(frames, job.pairs_per_source, rng, job.how):
        report.looked_at += 1
        report.in_band += inside
        report.ssim_low, report.ssim_high = min(report.ssim_low, value), max(report.ssim_high, value)
        if inside:
            yield i, j, value


def _from_video(job: PairsJob, path: Path, source: str, rng: np.random.Generator, report: Report) -> Iterator[Sample]:
    frames = video_frames(path, job.size)
    for i, j, value in _of_frames(frames, job, rng, report):
        yield {
            "first.jpg": jpg_of(square_of(frames[i], job.size)),
            "second.jpg": jpg_of(square_of(frames[j], job.size)),
            "json": {"kind": "clip", "source": source, "frames": [i, j], "ssim": round(value, 4)},
        }


def _from_still(job: PairsJob, path: Path, source: str, rng: np.random.Generator, report: Report) -> Iterator[Sample]:
    """A picture and the segmentation beside it: every value but 0 is one thing."""
    image = read_image(path)
    beside = path.with_name(path.stem + MASK_ENDING)
    if not beside.exists():
        raise InputError(f"{path}: no {beside.name} beside it; stills need the mask of a thing")
    marks = read_marks(beside)
    if marks.shape != image.shape[:2]:
        raise InputError(f"{beside}: {marks.shape[1]} x {marks.shape[0]}, its picture is {image.shape[1]} x {image.shape[0]}; make them of one size")
    values, counts = np.unique(marks[marks > 0], return_counts=True)
    things = values[counts >= SMALLEST * marks.size]
    if not len(things):
        raise InputError(f"{beside}: no thing in the mask covers {SMALLEST:.0%} of the picture; mark one with any value above 0")
    data = jpg_of(square_of(image, job.size))
    for value in rng.permutation(things)[: job.pairs_per_source]:
        mask = square_of(np.where(marks == value, 255, 0).astype(np.uint8), job.size, 0)
        yield {"first.jpg": data, "mask.png": png_of(np.where(mask > 127, 255, 0).astype(np.uint8)), "json": {"kind": "still", "source": source}}


def _from_shard(job: PairsJob, tar: Path, source: str, rng: np.random.Generator, report: Report) -> Iterator[Sample]:
    """What a WebDataset shard of somebody's holds; samples that cannot be used are named, the others go on."""
    try:
        for raw in open_shard(str(tar)):
            key, parts = str(raw["__key__"]), {f".{ending.lower()}": data for ending, data in raw.items() if not ending.startswith("__")}
            ending = next((e for kind in (VIDEO_ENDINGS, STILL_ENDINGS) for e in parts if e in kind), None)  # a video may have a picture beside it
            with TemporaryDirectory() as place:
                path = Path(place) / f"sample{ending}"
                try:
                    if ending is None:
                        raise InputError(f"{path}: holds no video or picture, only {', '.join(parts) or 'nothing'}")
                    path.write_bytes(parts[ending])
                    if MASK_ENDING in parts:
                        path.with_name(path.stem + MASK_ENDING).write_bytes(parts[MASK_ENDING])
                    make = _from_video if ending in VIDEO_ENDINGS else _from_still
                    yield from make(job, path, f"{source}/{key}", rng, report)
                except InputError as error:
                    said = str(error).replace(str(path.with_suffix("")), f"{tar}: {key}")
                    report.problems.append(said.replace(f"sample{MASK_ENDING}", f"{Path(key).name}{MASK_ENDING}"))
    except (ReadError, ValueError) as error:
        raise InputError(f"{tar}: not a WebDataset shard that can be read ({_brief(error)}); write it again") from None


def read_marks(path: Path) -> np.ndarray:
    """A segmentation as h w numbers, 0 for nothing: a palette's indices, whole numbers, or one number a colour; what is transparent is nothing.

    Raises:
        InputError: it cannot be read.
    """
    rgb = read_image(path)
    with Image.open(path) as image:
        if image.mode in ("P", "L", "1") or image.mode.startswith("I"):
            marks = np.asarray(image)
            if image.mode == "P" and "transparency" in image.info and marks.shape == rgb.shape[:2]:
                return np.where(np.asarray(image.convert("RGBA").getchannel("A")) >= 128, marks.astype(np.int64) + 1, 0)
            return marks.astype(np.int64) if marks.shape == rgb.shape[:2] else rgb[..., 0].astype(np.int64)
        alpha = np.asarray(ImageOps.exif_transpose(image).getchannel("A")) if "A" in image.getbands() else None
    colours = (rgb.astype(np.int64) * [1 << 16, 1 << 8, 1]).sum(2)
    if alpha is None or (alpha >= 128).all():
        return colours
    return np.where(alpha < 128, 0, colours + 1)  # an opaque thing may be black


def shown_parts(picture: Picture) -> dict[tuple[int, int], np.ndarray]:
    """Things of a picture of the world, as (number, -1), and their named parts, as (number, label): h w bool, large enough to be painted."""
    things = {(k, -1): picture.owner == k for k in range(1, int(picture.owner.max()) + 1)}
    parts = {(k, int(v)): whole & (picture.labels == v) for (k, _), whole in things.items() for v in np.unique(picture.labels[whole])}
    return {key: mask for key, mask in (things | parts).items() if mask.mean() > SMALLEST}


def _drawn_part(shown: dict[tuple[int, int], np.ndarray], rng: np.random.Generator) -> dict[str, bytes]:
    """One of them by lot, as a member of a sample."""
    if not shown:
        return {}
    mask = list(shown.values())[int(rng.integers(len(shown)))]
    return {"mask.png": png_of(mask.astype(np.uint8) * 255)}


def _from_world(job: PairsJob, path: Path, source: str, rng: np.random.Generator, report: Report) -> Iterator[Sample]:
    pictures = [draw([scene])[0] for scene in clip_scene(job.split, int(source), WORLD_FRAMES)]
    about = {"source": int(source), "world": WORLD_VERSION}
    for i, j, value in _of_frames([p.image for p in pictures], job, rng, report):
        there = shown_parts(pictures[j])
        both = {key: mask for key, mask in shown_parts(pictures[i]).items() if key in there}
        yield {
            "first.png": png_of(pictures[i].image), "second.png": png_of(pictures[j].image), "depth.png": png_of(pictures[i].depth),
            "json": about | {"kind": "clip", "frames": [i, j], "ssim": round(value, 4)},
        } | _drawn_part(both, rng)  # fmt: skip
    for k in rng.choice(len(pictures), STILLS, replace=False):
        still = pictures[int(k)]
        if marked := _drawn_part(shown_parts(still), rng):
            yield {"first.png": png_of(still.image), "depth.png": png_of(still.depth), "json": about | {"kind": "still"}} | marked


_MAKERS = {"videos": _from_video, "stills": _from_still, "shards": _from_shard, "world": _from_world}


def shards_of(folder: Path, split: str, kind: str = "world|videos|stills|shards") -> list[Path]:
    """The shards of a split, in order."""
    form = re.compile(rf"{re.escape(split)}-({kind})-\d+-\d+\.tar")
    return sorted(p for p in folder.glob("*.tar") if form.fullmatch(p.name))


def prepare_shard(job: PairsJob, first: int, sources: list[str]) -> Report:
    """Make one shard and its report, atomically; when both are there the report is read."""
    path, digest = job.path(first, sources), job.digest(sources)
    if known := finished(path, digest):
        return Report(**known)
    torch.set_num_threads(1)
    report = Report(digest, job.source, len(sources))
    for old in (report_beside(path), path):  # of another job: until this one is done there is none
        old.unlink(missing_ok=True)
    with new_shard(path) as tar:
        for k, source in enumerate(sources):
            rng = np.random.default_rng([0x9A12, first + k])
            try:
                for n, made in enumerate(_MAKERS[job.kind](job, (job.given or job.folder) / source, source, rng, report)):
                    tar.write({"__key__": f"{job.split}-{job.kind}{first + k:07d}-{n}"} | made | {"json": json.dumps(made["json"]).encode()})
                    report.pairs += 1
            except InputError as error:
                report.problems.append(str(error))
    write_json(report_beside(path), asdict(report))
    return report


def _worker(args: tuple[PairsJob, int, list[str]]) -> Report:
    return prepare_shard(*args)


def _side_of(path: Path) -> int:
    """The size of the pairs in a shard, 0 of an empty one.

    Raises:
        InputError: it is damaged.
    """
    try:
        return next((len(pair_of(raw)["first"]) for raw in open_shard(str(path))), 0)
    except (ReadError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({_brief(error)}); delete it and prepare the pairs again") from None


def _brief(error: Exception) -> str:
    """What a reader of tar files says is wrong, without the objects that it names."""
    said = str(error.args[0]) if error.args else type(error).__name__
    return said.partition(" @ ")[0]


def prepare_pairs(job: PairsJob, num_processes: int) -> Iterator[Report]:
    """Make all shards; yields each one's report, those found finished too. Of an earlier job on the same files only what this one makes as well is kept.

    Raises:
        InputError: the split holds pairs of this kind from another folder, or others of another size.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    own = shards_of(job.folder, job.split, job.kind)
    sides = {_side_of(old) for old in shards_of(job.folder, job.split) if old not in own}
    if other := sides - {job.size, 0}:
        raise InputError(f"{job.folder}: holds pairs of {min(other)} pixels already, --size {job.size} does not go with them; choose another --out")
    for old in shards_of(job.folder, job.split, job.kind):
        known = read_json(report_beside(old)) if report_beside(old).is_file() else {}
        if (folder := known.get("folder", "")) and folder != job.source:
            raise InputError(f"{job.folder}: holds pairs of {folder}; choose another --out, or put all {job.kind} into one folder")
    todo = [(job, first, sources) for first, sources in job.shards()]
    ours = {job.path(first, sources).name for _, first, sources in todo}
    for old in shards_of(job.folder, job.split, job.kind):
        if old.name not in ours:  # of a smaller or another job: its pairs would come twice
            old.unlink()
            report_beside(old).unlink(missing_ok=True)
    with pool_of(num_processes) as each:
        yield from each(_worker, todo)


def _picture(raw: dict[str, Any], name: str) -> np.ndarray | None:
    data = raw.get(f"{name}.jpg", raw.get(f"{name}.png"))
    return None if data is None else picture_of(data)


def pair_of(raw: dict[str, Any]) -> dict[str, Any]:
    """A sample's bytes by their endings as `read_pairs` yields it."""
    first, second = _picture(raw, "first"), _picture(raw, "second")
    assert first is not None
    flat = {n: cv2.imdecode(np.frombuffer(raw[f"{n}.png"], np.uint8), cv2.IMREAD_GRAYSCALE) if f"{n}.png" in raw else None for n in ("mask", "depth")}
    mask = flat["mask"]
    return json.loads(raw["json"]) | {
        "first": first, "second": first if second is None else second, "mask": None if mask is None else mask > 127, "depth": flat["depth"],
    }  # fmt: skip


def pair_shards(folder: Path, split: str) -> list[Path]:
    """A split's finished shards, at least one.

    Raises:
        FileNotFoundError: there are none; the message says how to make them.
    """
    if paths := shards_of(folder, split):
        return paths
    raise FileNotFoundError(
        f"{folder} holds no pairs of split {split!r}: make them with `selfsame prepare pairs --out {folder} --split {split}` of --world, --videos, --stills "
        "or --shards"
    )


def shard_digest(path: Path) -> str:
    """Of what a shard of pairs teaches: its report's, where that lies beside it, else its bytes'."""
    report = report_beside(path)
    if report.is_file():
        return str(read_json(report)["digest"])
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_pairs(folder: Path, split: str, *, pictures: bool = True, rows: np.ndarray | None = None) -> Iterator[dict[str, Any]]:
    """Samples in order: `first`, `second` (h w 3; of a still the same picture), `mask` (h w bool or None), `depth` (h w uint8 or None), the JSON's fields.

    Args:
        pictures: False: the JSON's fields alone.
        rows: only these; None: all.

    Raises:
        FileNotFoundError: there are no shards.
    """
    paths = [str(p) for p in pair_shards(folder, split)]
    wanted = None if rows is None else set(rows.tolist())
    for k, raw in enumerate(item for path in paths for item in open_shard(path)):
        if wanted is not None and k not in wanted:
            continue
        if not pictures:
            yield json.loads(raw["json"])
            continue
        yield pair_of(raw)


def pairs_sheet(folder: Path, split: str, how: PairSamples, count: int = 8) -> np.ndarray:
    """What a model would be shown: a row a sample, source, source with the hidden part black, reference, depth where it is known."""
    rows = []
    for k, record in enumerate(islice(read_pairs(folder, split), count)):
        made = training_sample(Pair(record["first"], record["second"], record["mask"], record["depth"]), np.random.default_rng([0x5EE, k]), how)
        depth = np.zeros_like(made.source) if made.depth is None else np.repeat(made.depth[..., None], 3, 2)
        rows.append(np.concatenate([made.source, np.where(made.mask[..., None], np.uint8(0), made.source), made.reference, depth], 1))
    return np.concatenate(rows)
