"""Shipped weights: hashes, sizes, strictness, and that stock classes load them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from selfsame.models.mannequin import SCHEDULE
from selfsame.weights import mannequin
from selfsame.weights.mannequin import FOLDER, WeightsError, checked, checked_folder, load_into, manifest, note, ship


def test_shipped_files_are_what_the_manifest_says_and_within_the_limits():
    files = manifest()["files"]
    loose = {"base/model_index.json", "manifest.json"}  # what no loader of ours reads
    on_disk = {str(p.relative_to(FOLDER).as_posix()) for p in FOLDER.rglob("*") if p.is_file()}
    assert on_disk - loose == set(files)
    for name in files:
        assert checked(name).stat().st_size < 16e6
    assert sum((FOLDER / n).stat().st_size for n in files) < 50e6


def test_no_shipped_file_says_where_it_was_made():
    configs = list(FOLDER.rglob("*.json"))
    assert configs
    assert not [p.name for p in configs if "_name_or_path" in p.read_text() or str(Path.home()) in p.read_text()]


def test_all_models_have_a_provenance():
    for about in manifest()["provenance"].values():
        assert {"world", "samples", "figures", "commit", "date"} <= set(about)


def test_shipping_and_loading_round_trip(tmp_path: Path):
    net = nn.Linear(3, 2)
    ship(net.state_dict(), "net.safetensors", {"samples": 1}, tmp_path)
    again = load_into(nn.Linear(3, 2), "net.safetensors", tmp_path)
    assert torch.equal(again.weight, net.weight.half().float())
    assert not again.weight.requires_grad
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_damage_is_named(tmp_path: Path):
    ship(nn.Linear(3, 2).state_dict(), "net.safetensors", {}, tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_into(nn.Linear(4, 2), "net.safetensors", tmp_path)
    (tmp_path / "net.safetensors").write_bytes(b"broken")
    mannequin._checked.cache_clear()
    with pytest.raises(WeightsError, match=r"net.safetensors has sha256"):
        checked("net.safetensors", tmp_path)
    (tmp_path / "net.safetensors").unlink()
    with pytest.raises(WeightsError, match="is missing"):
        checked("net.safetensors", tmp_path)


def test_every_file_of_a_folder_counts(tmp_path: Path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "weights.bin"):
        (tmp_path / "model" / name).write_text(name)
    note("model", {"samples": 1}, tmp_path)
    assert checked_folder("model", tmp_path) == tmp_path / "model"
    (tmp_path / "model/config.json").write_text("other")
    mannequin._checked.cache_clear()
    with pytest.raises(WeightsError, match=r"config.json has sha256"):
        checked_folder("model", tmp_path)
    with pytest.raises(WeightsError, match="is missing"):
        checked_folder("nothing", tmp_path)


def test_stock_stable_diffusion_loads_the_base_and_draws():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(FOLDER / "base", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a photo of ada fox on a beach", num_inference_steps=2, height=128, width=128, output_type="np").images[0]
    assert image.shape == (128, 128, 3)
    assert image.std() > 0.01


def test_the_shipped_schedule_is_the_one_that_was_trained():
    config = json.loads((FOLDER / "base/scheduler/scheduler_config.json").read_text())
    assert {k: config[k] for k in SCHEDULE} == SCHEDULE


def test_a_damaged_manifest_is_said(tmp_path: Path):
    (tmp_path / "manifest.json").write_text('{"files": ')
    with pytest.raises(WeightsError, match="is damaged"):
        manifest(tmp_path)
