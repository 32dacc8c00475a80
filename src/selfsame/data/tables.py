"""Shards unpacked once into memory maps, so that training reads rows instead of decoding pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from selfsame.data.shards import read_shards


@dataclass(frozen=True)
class Table:
    """Samples of one split and one picture size, by row."""

    images: np.ndarray  # n h w 3 uint8
    labels: np.ndarray  # n h w uint8
    depth: np.ndarray  # n h w uint8
    records: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def digest(self) -> str:
        """Hash of all records: key points, captions, who is in them, the world's version."""
        return hashlib.sha256("\n".join(json.dumps(r, sort_keys=True) for r in self.records).encode()).hexdigest()

    @cached_property
    def kps(self) -> np.ndarray:
        """n 5 2 of the first face, NaN where there is none."""
        return np.array([r["kps"][0] if r["kps"] else np.full((5, 2), np.nan) for r in self.records], np.float32)

    @cached_property
    def boxes(self) -> np.ndarray:
        """n 4 xyxy of the first face, NaN where there is none."""
        return np.array([r["boxes"][0] if r["boxes"] else np.full(4, np.nan) for r in self.records], np.float32)

    @cached_property
    def people(self) -> np.ndarray:
        """n identity numbers (seed, or -1 - k for celebrity k); things get a number below -10**6."""
        return np.array([r["seeds"][0] if r["kind"] in ("person", "celebrity") else -(10**6) - 1 for r in self.records], np.int64)

    def rows(self, keep: Callable[[dict[str, Any]], bool]) -> np.ndarray:
        return np.array([i for i, r in enumerate(self.records) if keep(r)], np.int64)


COLUMNS = {"image": "images", "labels": "labels", "depth": "depth"}  # a sample's field -> its table's


def _name(split: str, height: int, width: int) -> str:
    return f"{split}-{height}x{width}"


def pack(folder: Path, split: str, *, limit: int | None = None) -> Iterator[int]:
    """Unpack the shards of a split into one table a picture size; yields the count so far."""
    sizes = Counter((r["height"], r["width"]) for r in islice(read_shards(folder, split, pictures=False), limit))
    maps: dict[str, dict[str, np.memmap]] = {}
    records: dict[str, list[dict[str, Any]]] = {}
    for n, record in enumerate(islice(read_shards(folder, split), limit), start=1):
        h, w = record["height"], record["width"]
        key = _name(split, h, w)
        if key not in maps:
            shapes = {"image": (h, w, 3), "labels": (h, w), "depth": (h, w)}
            maps[key] = {name: _new_map(folder / f"{key}.{COLUMNS[name]}.part.npy", (sizes[h, w], *shape)) for name, shape in shapes.items()}
            records[key] = []
        for name, values in maps[key].items():
            values[len(records[key])] = record.pop(name)
        records[key].append(record)
        yield n
    for key, columns in maps.items():
        for name, values in columns.items():
            values.flush()
            os.replace(folder / f"{key}.{COLUMNS[name]}.part.npy", folder / f"{key}.{COLUMNS[name]}.npy")
        partial = folder / f"{key}.part"
        partial.write_text("\n".join(json.dumps(r) for r in records[key]))
        os.replace(partial, folder / f"{key}.jsonl")


def _new_map(path: Path, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def has_table(folder: Path, split: str, height: int, width: int) -> bool:
    """Whether a split has pictures of this size: a small dataset may hold no group."""
    return (folder / f"{_name(split, height, width)}.jsonl").exists()


def open_table(folder: Path, split: str, height: int = 128, width: int = 128) -> Table:
    """The packed table of a split.

    Raises:
        FileNotFoundError: it has not been packed; the message says how.
    """
    key = _name(split, height, width)
    lines = folder / f"{key}.jsonl"
    if not lines.exists():
        raise FileNotFoundError(f"{lines} is missing: make it with `selfsame render --dataset {folder} --split {split} --pack`")
    arrays = [np.load(folder / f"{key}.{name}.npy", mmap_mode="r") for name in ("images", "labels", "depth")]
    with open(lines) as f:
        records = [json.loads(line) for line in f]
    return Table(arrays[0], arrays[1], arrays[2], records)
