"""Shards unpacked once into memory maps, so that training reads rows instead of decoding pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from selfsame.data.shards import pool_of, read_shard, shard_paths
from selfsame.images.files import written_whole


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


def table_name(split: str, height: int, width: int) -> str:
    """What the files of a split's table of one picture size are called, before their endings."""
    return f"{split}-{height}x{width}"


@dataclass(frozen=True)
class _Shard:
    """One shard on its way into a split's tables: where its rows begin in each."""

    path: Path
    split: str
    first: dict[tuple[int, int], int]


def _sizes_in(path: Path) -> Counter[tuple[int, int]]:
    return Counter((r["height"], r["width"]) for r in read_shard(path, pictures=False))


def _unpack(shard: _Shard) -> dict[tuple[int, int], list[str]]:
    """A shard's pictures into the maps that stand; returns its records as lines, by size."""
    lines: dict[tuple[int, int], list[str]] = {size: [] for size in shard.first}
    maps = {size: {name: np.load(_part(shard.path.parent, shard.split, size, name), mmap_mode="r+") for name in COLUMNS} for size in shard.first}
    for record in read_shard(shard.path):
        size = (record["height"], record["width"])
        for name, values in maps[size].items():
            values[shard.first[size] + len(lines[size])] = record.pop(name)
        lines[size].append(json.dumps(record))
    for columns in maps.values():
        for values in columns.values():
            values.flush()
    return lines


def pack(folder: Path, split: str, processes: int = 1) -> Iterator[int]:
    """Unpack the shards of a split into one table a picture size, several at a time; yields the count so far."""
    paths = shard_paths(folder, split)
    with pool_of(min(processes, len(paths)), in_order=True) as each:
        held = list(each(_sizes_in, paths))
        totals: Counter[tuple[int, int]] = Counter()
        shards = []
        for path, sizes in zip(paths, held, strict=True):
            shards.append(_Shard(path, split, {size: totals[size] for size in sizes}))
            totals.update(sizes)
        for (h, w), count in totals.items():
            for name in COLUMNS:
                _new_map(_part(folder, split, (h, w), name), (count, h, w, 3) if name == "image" else (count, h, w))
        lines: dict[tuple[int, int], list[str]] = {size: [] for size in totals}
        for more in each(_unpack, shards):
            for size, new in more.items():
                lines[size] += new
            yield sum(map(len, lines.values()))
    for (h, w), records in lines.items():
        key = table_name(split, h, w)
        for name, column in COLUMNS.items():
            os.replace(_part(folder, split, (h, w), name), folder / f"{key}.{column}.npy")
        with written_whole(folder / f"{key}.jsonl") as partial:
            partial.write_text("\n".join(records))


def _part(folder: Path, split: str, size: tuple[int, int], name: str) -> Path:
    return folder / f"{table_name(split, *size)}.{COLUMNS[name]}.part.npy"


def _new_map(path: Path, shape: tuple[int, ...]) -> None:
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def has_table(folder: Path, split: str, height: int, width: int) -> bool:
    """Whether a split has pictures of this size: a small dataset may hold no group."""
    return (folder / f"{table_name(split, height, width)}.jsonl").exists()


def open_table(folder: Path, split: str, height: int = 128, width: int = 128) -> Table:
    """The packed table of a split.

    Raises:
        FileNotFoundError: it has not been packed; the message says how.
    """
    key = table_name(split, height, width)
    lines = folder / f"{key}.jsonl"
    if not lines.exists():
        raise FileNotFoundError(f"{lines} is missing: make it with `selfsame render --dataset {folder} --split {split} --pack`")
    arrays = [np.load(folder / f"{key}.{name}.npy", mmap_mode="r") for name in ("images", "labels", "depth")]
    with open(lines) as f:
        records = [json.loads(line) for line in f]
    return Table(arrays[0], arrays[1], arrays[2], records)
