"""The figure of every small model comes out of one command, all of them or those that are asked for."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest

from selfsame.cli.main import main
from selfsame.data.shards import RenderJob, render_dataset
from selfsame.data.tables import pack
from selfsame.recipes.measure import models as measure
from selfsame.recipes.measure.protocols import tasks_of
from selfsame.studio.request import Request


def test_every_model_has_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name, value in (("PEOPLE", 2), ("THINGS", 1), ("Request", partial(Request, num_steps=1)), ("tasks_of", lambda p, count: tasks_of(p, 1))):
        monkeypatch.setattr(measure, name, value)
    assert sum(render_dataset(RenderJob(tmp_path, "test", 16), 1)) == 16
    assert list(pack(tmp_path, "test"))[-1] == 16
    assert main(["evaluate", "models", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    said = json.loads((tmp_path / "out/models.json").read_text())
    assert set(measure.FIGURES) < set(said)
    assert all(math.isfinite(v) for name in measure.FIGURES for k, v in said[name].items() if k != "photo style")  # there may be no photo among 16
    assert said["judge"]["rank-1 of 100, all styles"] >= 0.5
    capsys.readouterr()
    assert main(["evaluate", "models", "--rows", "base", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 0
    assert "judge" not in capsys.readouterr().out


def test_a_misspelt_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", "models", "--rows", "bace", "--out", str(tmp_path)]) == 2
    assert "did you mean 'base'" in capsys.readouterr().err
