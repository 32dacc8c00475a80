"""`selfsame learn` and what it makes, from the command line. The shipped models; a handful of steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfsame.cli.main import main
from selfsame.images.files import read_image
from selfsame.methods.stableidentity.checkpoint import read_words, write_words
from selfsame.values.identity import Identity
from tests.cli.test_generate import ADA, QUICK, fails

BO = str(Path(ADA).with_name("bo.png"))
FEW = ["--steps", "2", "--batch-size", "1"]


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learned") / "ada.safetensors"
    assert main(["learn", "--face", ADA, "--out", str(out), "--show-batch", str(out.with_name("batch.png")), *FEW]) == 0
    return out


def test_a_person_becomes_a_file_with_a_preview(ada: Path):
    who = Identity.load(ada)
    assert who.words is not None
    assert who.words.placeholder == "<ada>"
    assert who.num_photos == 1
    assert sorted(p.name for p in ada.parent.iterdir()) == ["ada.preview.png", "ada.safetensors", "batch.png"]
    assert read_image(ada.with_name("batch.png")).shape == (512, 1024, 3)


def test_the_file_paints_and_is_repeated(ada: Path, tmp_path: Path):
    a, b = (str(tmp_path / f"{n}.png") for n in "ab")
    assert main(["generate", "--identity", str(ada), "--prompt", "a photo of <ada> in a spacesuit", "--out", a, *QUICK]) == 0
    assert main(["generate", "--like", a, "--out", b]) == 0
    assert np.array_equal(read_image(a), read_image(b))


def test_files_of_other_programs_paint_too(ada: Path, tmp_path: Path):
    words = Identity.load(ada).words
    assert words is not None
    made = []
    for form, name in (("official", "ada.pt"), ("a1111", "ada.pt"), ("diffusers", "ti.safetensors")):
        path = write_words(words, tmp_path / name, form)  # type: ignore[arg-type]
        out = str(tmp_path / f"{form}.png")
        assert main(["generate", "--identity", str(path), "--prompt", "a photo of <ada>", "--out", out, *QUICK]) == 0
        made.append(read_image(out))
    assert all(np.array_equal(m, made[0]) for m in made)


def test_learned_people_are_written_for_other_programs(ada: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Out and back again no number changes; what exists, is missing or cannot hold it is said."""
    words = Identity.load(ada).words
    assert words is not None
    for name, more in (("ada.pt", []), ("ada-ti.safetensors", []), ("bare.pt", ["--form", "official"])):
        assert main(["convert", str(ada), "--out", str(tmp_path / name), *more]) == 0
        assert np.array_equal(read_words(tmp_path / name).vectors[0], words.vectors[0])
    assert "<ada>, 2 words, official" in capsys.readouterr().out
    before = (tmp_path / "ada.pt").read_bytes()
    assert main(["convert", str(ada), "--out", str(tmp_path / "ada.pt")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert", str(ada), "--out", str(ada), "--overwrite"]) == 2
    assert main(["convert", str(tmp_path / "none.pt"), "--out", str(tmp_path / "x.pt")]) == 2
    assert main(["convert", str(ada), "--out", str(tmp_path / "ada.txt")]) == 2
    assert main(["convert", ADA, "--out", str(tmp_path / "y.pt")]) == 2
    assert (tmp_path / "ada.pt").read_bytes() == before


def test_two_people_in_one_prompt(ada: Path, tmp_path: Path):
    bo = str(tmp_path / "bo.safetensors")
    assert main(["learn", "--face", BO, "--out", bo, *FEW]) == 0
    out = str(tmp_path / "two.png")
    assert main(["generate", "--identity", str(ada), bo, "--prompt", "a photo of <ada> and <bo>", "--width", "192", "--out", out, *QUICK]) == 0


def test_a_folder_of_people_goes_on_past_a_bad_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    people = tmp_path / "people"
    (people / "bo").mkdir(parents=True)
    shutil.copy(ADA, people / "ada.png")
    shutil.copy(BO, people / "bo/one.png")
    Image.new("RGB", (128, 128), (90, 90, 90)).save(people / "nobody.png")
    assert main(["learn", "--people", str(people), "--out", str(tmp_path / "out"), *FEW]) == 1
    said = capsys.readouterr()
    assert "2 of 3 people learned, 1 skipped" in said.out
    assert "nobody" in said.err
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == ["ada.safetensors", "bo.safetensors"]


def test_what_a_real_base_needs_is_named_with_the_command_that_fetches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("SELFSAME_HOME", str(tmp_path / "home"))
    args = ["learn", "--base", str(tmp_path), "--face", ADA, "--out", str(tmp_path / "x.safetensors")]
    assert "selfsame models fetch face-vit" in fails(capsys, *args)
    assert "selfsame models fetch face-parser" in fails(capsys, *args, "--face-vit", str(tmp_path))
    assert "selfsame models fetch celebrity-names" in fails(capsys, *args, "--face-vit", str(tmp_path), "--parser", str(tmp_path))
    assert "--face-models belong to --base" in fails(capsys, "learn", "--face", ADA, "--face-models", str(tmp_path), "--out", str(tmp_path / "x.safetensors"))


def test_bad_input_is_one_line(ada: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "x.safetensors")
    wall = tmp_path / "wall.png"
    Image.new("RGB", (128, 128), (90, 90, 90)).save(wall)
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "model.pt")
    cases = (
        (["learn", "--out", out], "give --face"),
        (["learn", "--face", ADA, "--people", str(tmp_path), "--out", out], "give --face"),
        (["learn", "--face", "missing.png", "--out", out], "no such file"),
        (["learn", "--face", str(wall), "--out", out], "no face was found"),
        (["learn", "--face", ADA, "--out", str(ada)], "exists already"),
        (["learn", "--face", ADA, "--out", "x.pt"], "end the name in .safetensors"),
        (["learn", "--face", ADA, "--out", str(tmp_path / "no/x.safetensors")], "no such folder"),
        (["learn", "--face", ADA, "--name", "ada fox", "--out", out], "give letters, digits"),
        (["learn", "--face", ADA, "--out", out, "--steps", "-2"], "give 0 steps or more"),
        (["learn", "--people", str(tmp_path / "none"), "--out", out], "no such folder"),
        (["learn", "--people", str(tmp_path), "--name", "ada", "--out", out], "about one person"),
        (["learn", "--face", ADA, "--names", ADA, "--out", out], "belong to --base"),
        (["generate", "--identity", str(ada), "--use", "face", "--prompt", "a photo of <ada>"], "leaves its words out"),
        (["generate", "--identity", str(ada), "--use", "words", "--prompt", "a photo of a person"], "does not name <ada>"),
        (["generate", "--identity", str(ada), "--prompt", "<ada> beside <ada>"], "names 2 times <ada>"),
        (["generate", "--identity", str(ada), str(ada), "--prompt", "a photo of <ada>"], "share the placeholder"),
        (["generate", "--identity", str(tmp_path / "model.pt"), "--prompt", "a photo of <model>"], "holds no learned words"),
        (["generate", "--identity", str(tmp_path / "none.pt"), "--prompt", "a photo of <none>"], "no such file"),
    )
    before = sorted(tmp_path.iterdir())
    for args, match in cases:
        assert match in fails(capsys, *args), args
    assert sorted(tmp_path.iterdir()) == before


def test_nobodys_photo_and_nobody_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A preview never replaces a photo, two people never share a file, and what is no picture beside the photos is left alone."""
    people, out = tmp_path / "people", tmp_path / "out"
    (people / "bo").mkdir(parents=True)
    shutil.copy(ADA, people / "ada.png")
    shutil.copy(BO, people / "bo/one.png")
    (people / "bo/one.txt").write_text("a photo of bo")
    before = (people / "ada.png").read_bytes()
    assert main(["learn", "--people", str(people), "--out", str(people.with_name("out")), *FEW]) == 0
    assert (people / "ada.png").read_bytes() == before
    assert sorted(p.name for p in out.iterdir()) == ["ada.preview.png", "ada.safetensors", "bo.preview.png", "bo.safetensors"]
    shutil.copy(BO, people / "bo.png")
    assert "would be written as bo.safetensors" in fails(capsys, "learn", "--people", str(people), "--out", str(tmp_path / "more"))
    assert "is a file" in fails(capsys, "learn", "--people", str(people / "bo"), "--out", str(out / "ada.safetensors"))


def test_a_folder_of_people_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    people = tmp_path / "people"
    people.mkdir()
    shutil.copy(ADA, people / "Ada Fox.png")
    args = ["learn", "--people", str(people), "--out", str(people), *FEW]  # beside the photos, where previews are nobody's photos
    assert main(args) == 0
    assert "<ada-fox>" in capsys.readouterr().out
    before = (people / "Ada Fox.safetensors").stat().st_mtime_ns
    shutil.copy(BO, people / "bo.png")
    capsys.readouterr()
    assert main(args) == 0
    assert "1 of 2 people are there already" in capsys.readouterr().out
    assert (people / "Ada Fox.safetensors").stat().st_mtime_ns == before
    assert (people / "bo.safetensors").exists()


def test_a_misspelt_placeholder_is_not_painted_silently(ada: Path, capsys: pytest.CaptureFixture[str]):
    assert "nobody given is called so: <ada>" in fails(capsys, "generate", "--identity", str(ada), "--prompt", "a photo of <adda>")
