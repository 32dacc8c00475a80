"""Datasets: the same bytes however they are made, resumable, versioned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsame.data import shards
from selfsame.data.shards import RenderJob, read_shards, render_dataset
from selfsame.data.tables import open_table, pack
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import WORLD_VERSION, sample


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "SAMPLES_PER_SHARD", 3)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.tar"))}


def test_a_killed_render_goes_on_and_the_bytes_are_the_same(tmp_path: Path):
    whole, cut = RenderJob(tmp_path / "a", "train", 5), RenderJob(tmp_path / "b", "train", 5)
    assert sum(render_dataset(whole, 1)) == 5
    first = next(render_dataset(cut, 1))
    assert first == 3
    (cut.folder / "train-0000003-0002.tar.99.part").write_bytes(b"half")
    assert sum(render_dataset(cut, 1)) == 5
    assert files(whole.folder) == files(cut.folder)


def test_the_bytes_are_the_same_for_any_number_of_processes(tmp_path: Path):
    one, two = RenderJob(tmp_path / "one", "validation", 8), RenderJob(tmp_path / "two", "validation", 8)
    assert sum(render_dataset(one, 1)) == sum(render_dataset(two, 2)) == 8
    assert len(files(one.folder)) == 3
    assert files(one.folder) == files(two.folder)


def test_a_dataset_grows_and_never_shows_a_sample_twice(tmp_path: Path):
    list(render_dataset(RenderJob(tmp_path, "train", 5), 1))
    assert sum(render_dataset(RenderJob(tmp_path, "train", 8), 1)) == 8
    assert [r["index"] for r in read_shards(tmp_path, "train")] == list(range(8))
    assert sum(render_dataset(RenderJob(tmp_path, "train", 4), 1)) == 4  # what is there already serves
    assert [r["index"] for r in read_shards(tmp_path, "train")] == list(range(8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same_world():
    items = [sample("train", i) for i in range(32)]
    for a, b in zip(shards.draw_many(items, "cpu"), shards.draw_many(items, "cuda"), strict=True):
        assert np.abs(a.image.astype(int) - b.image.astype(int)).mean() < 0.5
        assert (a.labels != b.labels).mean() < 5e-3


def test_samples_come_back_as_they_were_drawn(tmp_path: Path):
    list(render_dataset(RenderJob(tmp_path, "train", 4), 1))
    records = list(read_shards(tmp_path, "train"))
    assert [r["index"] for r in records] == [0, 1, 2, 3]
    drawn = draw([sample("train", 2).scene])[0]
    assert np.array_equal(records[2]["image"], drawn.image)
    assert np.array_equal(records[2]["labels"], drawn.labels)
    assert np.array_equal(records[2]["depth"], drawn.depth)
    assert records[2]["caption"] == sample("train", 2).caption
    assert all(r["world"] == WORLD_VERSION for r in records)


def test_packed_tables_hold_the_rows_of_one_size(tmp_path: Path):
    list(render_dataset(RenderJob(tmp_path, "train", 14), 1))
    assert list(pack(tmp_path, "train"))[-1] == 14
    table = open_table(tmp_path, "train")
    assert len(table) == 13  # number 11 is a group on a wider canvas
    assert np.isnan(table.kps[-1]).all()  # a thing
    assert table.people[:8].tolist() == [0] * 4 + [1] * 4  # a pass of four pictures each
    wide = open_table(tmp_path, "train", 128, sample("train", 11).scene.width)
    assert wide.images.shape[0] == 1


def test_several_processes_pack_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("selfsame.data.shards.SAMPLES_PER_SHARD", 4)
    list(render_dataset(RenderJob(tmp_path, "train", 14), 1))
    counts = list(pack(tmp_path, "train", 2))
    assert counts == [4, 8, 12, 14]
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix in (".npy", ".jsonl")}
    assert len(files) == 8  # two sizes
    list(pack(tmp_path, "train"))
    assert files == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix in (".npy", ".jsonl")}


def test_faces_alone_are_the_same_samples_without_the_rest(tmp_path: Path):
    some, every = RenderJob(tmp_path / "some", "train", 17, faces=1), RenderJob(tmp_path / "all", "train", 17)
    assert (sum(render_dataset(some, 1)), sum(render_dataset(every, 1))) == (6, 17)
    assert sum(render_dataset(some, 1)) == 6, "found finished"
    ours, theirs = list(read_shards(some.folder, "train")), {r["index"]: r for r in read_shards(every.folder, "train")}
    assert [r["index"] for r in ours] == [0, 4, 8, 9, 10, 16]
    assert {r["kind"] for r in ours} == {"person", "celebrity"}
    assert all(np.array_equal(r["image"], theirs[r["index"]]["image"]) for r in ours)
    with pytest.raises(ValueError, match="--faces 1, not 0"):
        list(render_dataset(RenderJob(some.folder, "train", 17), 1))
    with pytest.raises(ValueError, match="faces 5"):
        RenderJob(tmp_path, "train", 8, faces=5)
    with pytest.raises(ValueError, match="only split train"):
        RenderJob(tmp_path, "test", 8, faces=1)


def test_another_version_of_the_world_is_refused(tmp_path: Path):
    (tmp_path / "dataset.json").write_text(json.dumps({"world": "0"}))
    with pytest.raises(ValueError, match="rendered by world 0"):
        list(render_dataset(RenderJob(tmp_path, "train", 1), 1))


def test_missing_data_says_how_to_make_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="selfsame render --dataset"):
        list(read_shards(tmp_path, "train"))
    with pytest.raises(FileNotFoundError, match="--pack"):
        open_table(tmp_path, "train")
    with pytest.raises(ValueError, match="at least 1"):
        RenderJob(tmp_path, "train", 0)
