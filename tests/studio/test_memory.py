"""Memory presets: what leaves comes back, and the picture stays what it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import selfsame
from selfsame.images.files import InputError
from selfsame.studio import real
from selfsame.studio.memory import GB, PLANS, SPARE, Sizes, allowed_memory, chosen, memory_limit, needed, numbers_in
from selfsame.studio.real import Folders, RealStudio
from selfsame.studio.request import Request
from tests.studio.test_real import PROMPT, few_faces, folders, photo  # noqa: F401

SDXL = Sizes(text=817_000_000, unet=2_567_000_000, method=1_674_000_000, vae=84_000_000, precision=2)


def test_a_containers_limit_counts(tmp_path: Path):
    assert allowed_memory(tmp_path) == memory_limit(tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 600\n")
    assert allowed_memory(tmp_path) == 0
    (tmp_path / "memory.max").write_text("5000\n")
    assert (memory_limit(tmp_path), allowed_memory(tmp_path)) == (5000, 4600)


def test_every_preset_paints_the_same_picture(folders: Folders, photo: Path):  # noqa: F811
    request = Request(prompt=PROMPT, height=64, width=64, num_steps=2)
    made = {}
    for name in PLANS:
        studio = RealStudio(folders, memory=name)
        who = studio.identity(photo)
        made[name] = [studio.generate(replace(request, seed=s), who)[0].pixels for s in (0, 1)]
        assert ("encoders" in studio.__dict__) == (name == "high")
        assert studio.planned(request)[0].name == name
        assert ("vae" in studio.__dict__) == (name == "high")
    assert np.array_equal(made["high"], made["medium"])
    assert 0 < np.abs(np.asarray(made["high"], int) - np.asarray(made["low"], int)).mean() < 40  # eight bits are coarse
    low = RealStudio(folders, memory="low")
    low.generate(request)
    kept = {p.dtype for n, p in low.unet.named_parameters() if n.endswith("to_q.weight")}
    assert kept == {torch.float8_e4m3fn}
    assert {p.dtype for p in low.instantid.parameters()} == {torch.float32}


def test_less_memory_is_needed_from_preset_to_preset():
    peaks = [max(needed(SDXL, PLANS[n], 1024, 1024, 2).values()) for n in ("high", "medium", "low")]
    assert peaks == sorted(peaks, reverse=True)
    assert 10 * GB < peaks[0] < 18 * GB
    larger = needed(SDXL, PLANS["high"], 1536, 1536, 2)
    assert all(larger[k] >= v for k, v in needed(SDXL, PLANS["high"], 1024, 1024, 2).items())


def test_auto_takes_the_fastest_that_fits_and_says_when_none_does():
    names = [chosen("auto", SDXL, int(free * GB), 1024, 1024, 2).name for free in (24, 13.5, 10)]
    assert names == ["high", "medium", "low"]
    assert chosen("auto", SDXL, 0, 1024, 1024, 2).name == "high"
    with pytest.raises(InputError, match="make it smaller"):
        chosen("auto", SDXL, GB, 1024, 1024, 2)
    with pytest.raises(InputError, match="did you mean 'medium'"):
        selfsame.load(memory="midium")


def test_a_device_without_8_bit_floats_has_no_low():
    assert chosen("auto", SDXL, int(13.5 * GB), 1024, 1024, 2, has_fp8=False).name == "medium"
    with pytest.raises(InputError, match=r"with --memory medium and 10\.0 GB are free"):
        chosen("auto", SDXL, 10 * GB, 1024, 1024, 2, has_fp8=False)
    with pytest.raises(InputError, match="say --memory medium, or --device cpu"):
        chosen("low", SDXL, 0, 1024, 1024, 2, has_fp8=False)


def test_a_larger_picture_may_need_a_smaller_preset_and_a_smaller_one_beside_it_does_not(folders: Folders, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    small, large = Request(height=64, width=64, num_steps=1), Request(height=256, width=256, num_steps=1)
    studio = RealStudio(folders)
    peaks = {name: max(needed(studio.sizes, PLANS[name], 256, 256, 2).values()) for name in PLANS}
    monkeypatch.setattr(real, "free_memory", lambda device: int((peaks["high"] - 1) / SPARE))
    alone = studio.generate(small)[0].pixels
    assert studio.planned(small)[0].name == "high"
    assert "unet" in studio.__dict__
    monkeypatch.setattr(studio, "_free", int((peaks["medium"] - 1) / SPARE))
    assert [studio.planned(r)[0].name for r in (large, small)] == ["low", "high"]
    assert "unet" in studio.__dict__, "asking changes nothing"
    painted = dict(studio.paint_jobs([*studio.jobs(large), *studio.jobs(small)]))
    assert studio.preset == "auto"
    assert np.array_equal(painted[1].pixels, alone)
    studio.generate(large)
    assert studio.preset == "low"


def test_sizes_are_read_off_headers(tmp_path: Path, folders: Folders):  # noqa: F811
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.float16)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert numbers_in(tmp_path) == 17
    studio = RealStudio(folders)
    assert studio.sizes.unet == sum(p.numel() for p in studio.unet.parameters())
    assert studio.sizes.text == sum(p.numel() for e in studio.encoders for p in e.parameters())
    (tmp_path / "bad.safetensors").write_bytes(b"12345678 nothing")
    with pytest.raises(InputError, match=r"bad.safetensors: damaged"):
        numbers_in(tmp_path)


def test_weights_that_lie_there_several_times_count_once(tmp_path: Path):
    values = {"a": torch.zeros(1000)}
    for name in ("model.safetensors", "model.fp16.safetensors", "model.non_ema.safetensors"):
        save_file({k: v.half() if "fp16" in name else v for k, v in values.items()}, tmp_path / name, metadata={"format": "pt"})
    torch.save(values, tmp_path / "model.bin")
    assert numbers_in(tmp_path) == 1000
    (tmp_path / "model.fp16.safetensors").unlink()
    assert numbers_in(tmp_path) == 1000
