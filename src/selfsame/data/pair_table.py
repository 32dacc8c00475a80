"""Pairs in any order: shards that `selfsame prepare pairs` wrote, read by number instead of from end to end."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from selfsame.data.pairs import pair_of, pair_shards, shard_digest
from selfsame.images.files import InputError


class PairTable:
    """A split's pairs. Only where each lies is kept in memory."""

    def __init__(self, folder: Path, split: str) -> None:
        """
        Raises:
            FileNotFoundError: there are no shards; the message says how to make them.
            InputError: a shard is damaged.
        """
        paths = pair_shards(folder, split)
        self.members: list[tuple[Path, dict[str, tuple[int, int]]]] = []  # of each pair its shard, and where the parts lie in it
        self.records: list[dict[str, Any]] = []  # the JSON's fields
        self.firsts: list[int] = []  # the first pair of each shard
        digest = hashlib.sha256()
        for path in paths:
            found: dict[str, dict[str, tuple[int, int]]] = {}
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        key, _, part = member.name.partition(".")
                        found.setdefault(key, {})[part] = (member.offset_data, member.size)
                    self.firsts += [len(self.members)] * bool(found)
                    for parts in found.values():
                        self.members.append((path, parts))
                        self.records.append(json.loads(_part(path, parts["json"])))
            except (tarfile.TarError, KeyError, ValueError) as error:
                raise InputError(f"{path}: is damaged ({error}); delete it and prepare the pairs again") from None
            digest.update(f"{path.name} {shard_digest(path)}".encode())
        self.digest = digest.hexdigest()
        self.is_still = np.array([r["kind"] == "still" for r in self.records])

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """What `data.pairs.read_pairs` yields of a pair."""
        path, parts = self.members[i]
        return pair_of({name: _part(path, where) for name, where in parts.items()})


def _part(path: Path, where: tuple[int, int]) -> bytes:
    with open(path, "rb") as f:
        f.seek(where[0])
        return f.read(where[1])
