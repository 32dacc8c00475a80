"""Several people, views, mixes and starts from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfsame.cli.main import main
from selfsame.images.files import read_image, read_metadata
from tests.cli.test_generate import ADA, EXAMPLES, fails

BO = str(EXAMPLES / "bo.png")


def test_two_people_and_what_is_said_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    where = ["--regions", "0,0,90,128", "100,0,192,128", "--scales", "1", "0.8,1.2"]
    assert main(["generate", "--people", ADA, BO, *where, "--width", "192", "--prompt", "a photo of two people", "--num-steps", "3", "--out", a]) == 0
    said = capsys.readouterr().out
    assert "ada: " in said
    assert "bo: " in said
    assert main(["generate", "--like", a, "--out", b]) == 0
    assert np.array_equal(read_image(a), read_image(b))
    assert "1 regions for 2 people" in fails(capsys, "generate", "--people", ADA, BO, "--regions", "0,0,90,128", "--out", a)


def test_a_strip_goes_from_one_to_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(EXAMPLES)
    out = tmp_path / "strip.png"
    assert main(["generate", "--mix", "ada.png", "bo.png", "--mix-steps", "3", "--num-steps", "2", "--prompt", "a photo of a person", "--out", str(out)]) == 0
    assert read_image(out).shape == (128, 3 * 128 + 2 * 2, 3)
    ends = [read_image(tmp_path / f"strip-{i}.png") for i in (1, 3)]
    assert np.array_equal(read_image(out)[:, :128], ends[0])
    kps = ["--pose", "ada.png"]  # one mixes embeddings; the first person's key points stay
    assert main(["generate", "--face", "bo.png", *kps, "--num-steps", "2", "--prompt", "a photo of a person", "--out", str(tmp_path / "bo.png")]) == 0
    assert np.abs(read_image(tmp_path / "bo.png").astype(int) - ends[1].astype(int)).max() <= 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.csv").write_text("name,prompt\nink,an ink drawing of {prompt}\n")
    sheet = ["--style-sheet", "s.csv", "--style", "ink", "--num-steps", "1"]
    assert main(["generate", "--mix", str(EXAMPLES / "ada.png"), str(EXAMPLES / "bo.png"), "--mix-steps", "2", *sheet, "--out", "ink.png"]) == 0
    assert main(["generate", "--like", "ink.png"]) == 0
    assert main(["generate", "--like", str(out), "--out", str(tmp_path / "again.png")]) == 0
    assert np.array_equal(read_image(tmp_path / "again.png"), read_image(out))


def test_views_keeps_and_starts_are_repeated_by_like(tmp_path: Path):
    common = ["--face", ADA, "--prompt", "a photo of a person", "--num-steps", "4", "--seed", "2"]
    pictures = {}
    for name, more in {"plain": [], "view": ["--view", "right"], "turned": ["--yaw", "27"], "start": ["--start", BO], "keep": ["--keep", "clothes"]}.items():
        out = str(tmp_path / f"{name}.png")
        assert main(["generate", *common, *more, "--out", out]) == 0
        assert main(["generate", "--like", out, "--out", str(tmp_path / "again.png")]) == 0
        pictures[name] = read_image(out)
        assert np.array_equal(pictures[name], read_image(tmp_path / "again.png")), name
    assert np.array_equal(pictures["view"], pictures["turned"])
    assert not np.array_equal(pictures["view"], pictures["plain"])
    assert "wearing" in read_metadata(tmp_path / "keep.png")["request"]["prompt"]
