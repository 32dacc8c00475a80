"""Shards unpacked once into memory maps, so that training reads rows instead of decoding pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
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


def _name(split: str, height: int, width: int) -> str:
    return f"{split}-{height}x{width}"


def pack(folder: Path, split: str, *, limit: int | None = None) -> Iterator[int]:
    """Unpack the shards of a split into one table a picture size; yields the count so far."""
    images: dict[str, dict[str, list[Any]]] = {}
    for n, record in enumerate(read_shards(folder, split), start=1):
        key = _name(split, record["height"], record["width"])
        columns = images.setdefault(key, {"images": [], "labels": [], "depth": [], "records": []})
        columns["images"].append(record.pop("image"))
        columns["labels"].append(record.pop("labels"))
        columns["depth"].append(record.pop("depth"))
        columns["records"].append(record)
        yield n
        if limit and n >= limit:
            break
    for key, columns in images.items():
        for name in ("images", "labels", "depth"):
            partial = folder / f"{key}.{name}.part.npy"
            np.save(partial, np.stack(columns[name]))
            os.replace(partial, folder / f"{key}.{name}.npy")
        partial = folder / f"{key}.part"
        partial.write_text("\n".join(json.dumps(r) for r in columns["records"]))
        os.replace(partial, folder / f"{key}.jsonl")


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
