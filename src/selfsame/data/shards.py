"""Datasets as WebDataset shards: rendered in parallel, resumable, the same bytes whatever the number of processes.

One sample is `KEY.png` (picture), `KEY.labels.png`, `KEY.depth.png`, `KEY.txt` (caption) and `KEY.json` (attributes, key
points, boxes, who is in it, the version of the world). A shard is written under a temporary name and renamed when whole, so
a killed run leaves only whole shards and continues after the last.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from webdataset.tariterators import group_by_keys, tar_file_expander
from webdataset.writer import TarWriter

from selfsame.images.files import write_json, written_whole
from selfsame.mannequins.render import Picture, draw, signature
from selfsame.mannequins.world import PASS, WORLD_VERSION, Sample, sample, shows_face

SAMPLES_PER_SHARD = 500
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class RenderJob:
    """What to render: samples 0..count-1 of a split of the world into a folder.

    With `faces` it is only what InstantID learns from: the first so many pictures of each seeded person in a pass of four, and those of celebrities.
    """

    folder: Path
    split: str
    count: int
    device: str = "cpu"
    faces: int = 0  # 0: everything

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count {self.count}: give at least 1")
        if self.faces and self.split != "train":
            raise ValueError(f"faces {self.faces} of split {self.split!r}: only split train shows people in passes of four pictures, with others between")
        if not 0 <= self.faces <= PASS:
            raise ValueError(f"faces {self.faces}: give 1 to {PASS} pictures of each person, or 0 for all samples")

    @property
    def shards(self) -> list[range]:
        return [range(a, min(a + SAMPLES_PER_SHARD, self.count)) for a in range(0, self.count, SAMPLES_PER_SHARD)]

    def wanted(self, samples: range) -> list[int]:
        """Those of some samples that are drawn."""
        return [i for i in samples if not self.faces or shows_face(i, self.faces)]

    def path(self, samples: range) -> Path:
        return self.folder / f"{self.split}-{samples.start:07d}-{len(samples):04d}.tar"


def png_of(array: np.ndarray) -> bytes:
    """A picture h w 3 RGB or a map h w as PNG; little compression, for speed."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    ok, data = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert ok
    return data.tobytes()


def jpg_of(array: np.ndarray) -> bytes:
    """A picture h w 3 RGB as JPEG."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(array, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert ok
    return data.tobytes()


def picture_of(data: bytes) -> np.ndarray:
    """What `png_of` and `jpg_of` made of a picture, h w 3 RGB."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def report_beside(path: Path) -> Path:
    """Where the report of a shard lies."""
    return path.with_suffix(".report.json")


def finished(path: Path, digest: str) -> dict[str, Any] | None:
    """What the report beside a shard says, when both are there and of this very job."""
    if not path.exists() or not report_beside(path).exists():
        return None
    known = json.loads(report_beside(path).read_text())
    return known if known.get("digest") == digest else None


@contextmanager
def new_shard(path: Path) -> Iterator[TarWriter]:
    """A shard that appears under its name when it is whole, or not at all."""
    with written_whole(path) as partial, open(partial, "wb") as stream, TarWriter(stream, mtime=0, encoder=False) as tar:
        yield tar


def record_of(item: Sample, picture: Picture, index: int) -> dict[str, Any]:
    """The JSON of a sample."""
    return {
        "world": WORLD_VERSION,
        "index": index,
        "kind": item.kind,
        "seeds": list(item.seeds),
        "names": list(item.names),
        "attributes": item.attributes,
        "kps": picture.kps.round(3).tolist(),
        "boxes": picture.boxes.round(3).tolist(),
        "height": item.scene.height,
        "width": item.scene.width,
    }


def draw_many(items: list[Sample], device: str) -> list[Picture]:
    """Pictures of samples in order: one by one on a CPU (tight windows, fixed bytes), grouped by signature on a GPU."""
    if device == "cpu":
        return [draw([item.scene])[0] for item in items]
    pictures: list[Picture | None] = [None] * len(items)
    groups: dict[object, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(signature(item.scene), []).append(i)
    for members in groups.values():
        for start in range(0, len(members), 64):
            chunk = members[start : start + 64]
            for i, picture in zip(chunk, draw([items[i].scene for i in chunk], device), strict=True):
                pictures[i] = picture
    return [p for p in pictures if p is not None]


def render_shard(job: RenderJob, samples: range) -> Path:
    """Draw one shard, atomically. Does nothing when it is already there."""
    path = job.path(samples)
    if path.exists():
        return path
    torch.set_num_threads(1)
    wanted = job.wanted(samples)
    items = [sample(job.split, i) for i in wanted]
    with new_shard(path) as tar:
        for i, item, picture in zip(wanted, items, draw_many(items, job.device), strict=True):
            tar.write(
                {
                    "__key__": f"{job.split}{i:07d}",
                    "png": png_of(picture.image),
                    "labels.png": png_of(picture.labels),
                    "depth.png": png_of(picture.depth),
                    "txt": item.caption.encode(),
                    "json": json.dumps(record_of(item, picture, i)).encode(),
                }
            )
    for shorter in job.folder.glob(f"{job.split}-{samples.start:07d}-*.tar"):
        if shorter != path:  # the end of a dataset that has grown since
            shorter.unlink()
    return path


def world_of(folder: Path) -> str:
    """The version of the world that a dataset was rendered by.

    Raises:
        FileNotFoundError: there is no dataset; the message says how to make one.
        ValueError: it is of another version than this package's world.
    """
    about = folder / "dataset.json"
    if not about.exists():
        raise FileNotFoundError(f"{folder} holds no dataset: make it with `selfsame render --dataset {folder} --split train --pack`")
    version = json.loads(about.read_text())["world"]
    if version != WORLD_VERSION:
        raise ValueError(f"{folder} was rendered by world {version}, this is world {WORLD_VERSION}: choose another folder")
    return version


def _worker(args: tuple[RenderJob, range]) -> int:
    job, samples = args
    render_shard(job, samples)
    return len(job.wanted(samples))


def render_dataset(job: RenderJob, num_processes: int) -> Iterator[int]:
    """Render a dataset; yields how many samples each finished shard holds, those found finished first.

    Raises:
        ValueError: the folder holds a dataset of another version of the world, or with other pictures of each person.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    about, faces = job.folder / "dataset.json", job.faces
    if about.exists():
        world_of(job.folder)
        held = json.loads(about.read_text()).get("faces", 0)
        if job.split == "train" and held != faces and any(job.folder.glob("train-*.tar")):
            raise ValueError(f"{job.folder} was rendered with --faces {held}, not {faces}: choose another folder")
        faces = faces if job.split == "train" else held
    write_json(about, {"world": WORLD_VERSION, "size": 128} | ({"faces": faces} if faces else {}))
    todo = []
    for samples in job.shards:
        held = max((int(p.stem.rsplit("-", 1)[1]) for p in job.folder.glob(f"{job.split}-{samples.start:07d}-*.tar")), default=0)
        if held >= len(samples):  # a longer shard serves too
            yield len(job.wanted(samples))
        else:
            todo.append((job, samples))
    with pool_of(num_processes if job.device == "cpu" else 1) as each:
        yield from each(_worker, todo)


@contextmanager
def pool_of(num_processes: int, *, in_order: bool = False) -> Iterator[Callable[[Callable[[S], T], Iterable[S]], Iterator[T]]]:
    """A `map` over so many processes, results as they come or in order; in this process when it is the only one."""
    if num_processes <= 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        yield pool.imap if in_order else pool.imap_unordered


def open_shard(path: str) -> Iterator[dict[str, Any]]:
    """Raw samples of one shard: bytes by ending."""
    with open(path, "rb") as stream:
        yield from group_by_keys(tar_file_expander([{"url": path, "stream": stream}]))


def read_shards(folder: Path, split: str, *, pictures: bool = True) -> Iterator[dict[str, Any]]:
    """Samples of a split in order: image, labels, depth (arrays), caption, and the JSON's fields.

    Args:
        pictures: False: the JSON's fields and the caption alone.
    """
    for path in shard_paths(folder, split):
        yield from read_shard(path, pictures=pictures)


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The shards of a split in order.

    Raises:
        FileNotFoundError: there is none; the message says how to make them.
    """
    paths = sorted(folder.glob(f"{split}-*.tar"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no shards of split {split!r}: make them with `selfsame render --dataset {folder} --split {split}`")
    return paths


def read_shard(path: Path, *, pictures: bool = True) -> Iterator[dict[str, Any]]:
    """Samples of one shard, as `read_shards` gives them."""
    for raw in open_shard(str(path)):
        record = json.loads(raw["json"])
        if pictures:
            record["image"] = picture_of(raw["png"])
            for name in ("labels", "depth"):
                record[name] = cv2.imdecode(np.frombuffer(raw[f"{name}.png"], np.uint8), cv2.IMREAD_GRAYSCALE)
        record["caption"] = raw["txt"].decode()
        yield record
