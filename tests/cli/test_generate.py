"""The main job from the command line, on the shipped weights: what it promises and every way to use it wrongly."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsame.cli.generate import Generate
from selfsame.cli.main import main
from selfsame.images.files import read_image, read_metadata, write_image
from selfsame.mannequins.attributes import Look, View
from selfsame.mannequins.people import person_of
from selfsame.mannequins.render import PersonIn, Scene, draw

EXAMPLES = Path(__file__).parents[2] / "examples"
ADA = str(EXAMPLES / "ada.png")
QUICK = ["--num-steps", "2"]


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run, expect exit code 2 and exactly one line on stderr; return it."""
    assert main(list(args)) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert error.startswith("selfsame: ")
    return error


def scene_of(tmp_path: Path, *subjects: PersonIn, width: int = 128, name: str = "scene.png") -> str:
    image = draw([Scene(subjects, width=width)])[0].image
    Image.fromarray(image).save(tmp_path / name)
    return str(tmp_path / name)


def test_a_face_in_a_picture_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.png"
    assert main(["generate", "--face", ADA, "--prompt", "a watercolour of a person laughing on a beach", "--out", str(out), *QUICK]) == 0
    printed = capsys.readouterr().out
    assert str(out) in printed
    assert printed.rstrip().endswith("s")
    assert read_image(out).shape == (128, 128, 3)
    about = read_metadata(out)
    assert about["request"]["prompt"].startswith("a watercolour")
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_like_repeats_the_picture_and_flags_change_it(tmp_path: Path):
    a, b, c = (str(tmp_path / f"{n}.png") for n in "abc")
    assert main(["generate", "--face", ADA, "--prompt", "a photo of a person in a city", "--seed", "5", "--guidance-scale", "2", "--out", a, *QUICK]) == 0
    assert main(["generate", "--like", a, "--out", b]) == 0
    assert np.array_equal(read_image(a), read_image(b))
    assert main(["generate", "--like", a, "--seed", "6", "--out", c]) == 0
    assert not np.array_equal(read_image(a), read_image(c))
    assert read_metadata(c)["request"]["guidance_scale"] == 2


def test_another_speed_brings_its_own_steps(tmp_path: Path):
    """What was settled for one speed is wrong for the other: distilled weights are not guided, and the others need all their steps."""
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    assert main(["generate", "--prompt", "a person", "--out", str(a), *QUICK]) == 0
    said = read_metadata(a)
    assert Generate.like_defaults(["--like", str(a)]).num_steps == said["request"]["num_steps"] > 0
    assert Generate.like_defaults(["--like", str(a), "--speed", "fast"]).num_steps == said["request"]["num_steps"]
    hurried = Generate.like_defaults(["--like", str(a), "--speed=turbo"])
    assert (hurried.num_steps, hurried.guidance_scale) == (0, -1)
    write_image(b, read_image(a), said | {"request": said["request"] | {"speed": "turbo", "num_steps": 4, "guidance_scale": 1.0, "solver": "ddim"}})
    whole = Generate.like_defaults(["--like", str(b), "--speed", "exact"])
    assert (whole.num_steps, whole.guidance_scale, whole.solver) == (0, -1, "dpmpp-2m")
    assert Generate.like_defaults(["--like", str(b)]).num_steps == 4


def test_lcm_brings_its_own_steps_too(tmp_path: Path):
    a = tmp_path / "a.png"
    assert main(["generate", "--prompt", "a person", "--guidance-scale", "2", "--out", str(a), *QUICK]) == 0
    few = Generate.like_defaults(["--like", str(a), "--solver", "lcm"])
    assert (few.num_steps, few.guidance_scale) == (0, -1)
    write_image(a, read_image(a), (said := read_metadata(a)) | {"request": said["request"] | {"solver": "lcm", "num_steps": 8, "guidance_scale": 1.0}})
    assert Generate.like_defaults(["--like", str(a), "--solver=euler"]).num_steps == 0
    assert Generate.like_defaults(["--like", str(a)]).num_steps == 8


def test_flags_of_a_face_go_with_the_face(tmp_path: Path):
    a = tmp_path / "a.png"
    assert main(["generate", "--face", ADA, "--which", "0", "--prompt", "a person", "--out", str(a), *QUICK]) == 0
    said = read_metadata(a)
    assert Generate.like_defaults(["--like", str(a), "--face", "b.png"]).which is None
    write_image(a, read_image(a), said | {"request": said["request"] | {"use": "both"}, "order": {"mix": [ADA, ADA], "mix_steps": 3}})
    assert Generate.like_defaults(["--like", str(a), "--face", "b.png"]).use == "auto"
    assert Generate.like_defaults(["--like", str(a), "--mix", "a.png:1"]).mix_steps == 0


@pytest.mark.parametrize(
    "args", [["generate", "--prompt", "x", "--face"], ["generate", "--face", "--prompt", "x"], ["edit", "--source", ADA, "--mask", "--person", ADA]]
)
def test_a_flag_without_its_values_is_not_a_flag_left_out(args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert "give at least one value, or leave the flag out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_one_way_takes_the_place_of_another(tmp_path: Path):
    """What is typed beside --like stands instead of what says the same in another way."""
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    assert main(["generate", "--face", ADA, "--view", "right", "--prompt", "a person", "--out", str(a), *QUICK]) == 0
    turned = Generate.like_defaults(["--like", str(a), "--yaw", "10"])
    assert (turned.view, turned.face) == ("", (Path(ADA),))
    several = Generate.like_defaults(["--like", str(a), "--people", ADA, ADA])
    assert (several.face, several.view) == ((), "")
    assert Generate.like_defaults(["--like", str(a)]).view == "right"
    assert main(["generate", "--like", str(a), "--yaw", "10", "--out", str(b)]) == 0


def test_a_picture_is_repeated_beside_itself_not_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """As the README types it: both commands without --out."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ADA, "ada.png")
    assert main(["generate", "--face", "ada.png", "--prompt", "a person", *QUICK]) == 0
    assert main(["generate", "--like", "out.png"]) == 0
    assert np.array_equal(read_image("out.png"), read_image("out-again.png"))
    capsys.readouterr()
    Image.fromarray(read_image("ada.png")[::-1]).save("ada.png")
    assert main(["generate", "--like", "out.png"]) == 0
    assert "made from other photos" in capsys.readouterr().err
    assert "would be overwritten" in fails(capsys, "generate", "--like", "out.png", "--out", "out.png")


def test_several_pictures_are_those_of_their_seeds(tmp_path: Path):
    assert main(["generate", "--face", ADA, "--num-images", "2", "--seed", "3", "--out", str(tmp_path / "two.png"), *QUICK]) == 0
    assert main(["generate", "--face", ADA, "--seed", "4", "--out", str(tmp_path / "one.png"), *QUICK]) == 0
    second, alone = read_image(tmp_path / "two-2.png"), read_image(tmp_path / "one.png")
    assert np.abs(second.astype(int) - alone.astype(int)).max() <= 2


def test_strength_zero_is_the_base_model(tmp_path: Path):
    common = ["--prompt", "a photo of a person in a library", "--seed", "1", *QUICK]
    assert main(["generate", *common, "--out", str(tmp_path / "base.png")]) == 0
    assert main(["generate", *common, "--face", ADA, "--adapter-scale", "0", "--controlnet-scale", "0", "--out", str(tmp_path / "zero.png")]) == 0
    assert np.array_equal(read_image(tmp_path / "base.png"), read_image(tmp_path / "zero.png"))


def test_windows_photos_pose_size_and_styles_are_accepted(tmp_path: Path):
    out = tmp_path / "out.png"
    args = ["--face", ADA, str(EXAMPLES / "cleo.png"), "--photos", "joint", "--pose", str(EXAMPLES / "dan.png"), "--style", "comic", "--width", "192"]
    windows = ["--adapter-start", "0.1", "--controlnet-end", "0.6", "--solver", "euler", "--negative-prompt", "a hat"]
    assert main(["generate", *args, *windows, "--out", str(out), "--num-steps", "4"]) == 0
    assert read_image(out).shape == (128, 192, 3)


def test_words_beyond_the_limit_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    prompt = " ".join(["beach"] * 1000)
    assert main(["generate", "--prompt", prompt, "--out", str(tmp_path / "out.png"), *QUICK]) == 0
    assert "left out" in capsys.readouterr().err


def test_several_faces_warn_and_which_chooses(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    left = PersonIn(person_of(300_001), Look(), View(scale=0.52, x=-0.5, y=0.2))
    right = PersonIn(person_of(300_005), Look(), View(scale=0.58, x=0.5, y=0.2))
    two = scene_of(tmp_path, left, right, width=256)
    out = str(tmp_path / "out.png")
    assert main(["generate", "--face", two, "--out", out, *QUICK]) == 0
    assert "2 faces" in capsys.readouterr().err
    assert main(["generate", "--face", two, "--which", "0", "--out", out, *QUICK]) == 0
    assert "faces" not in capsys.readouterr().err
    assert "--which 7" in fails(capsys, "generate", "--face", two, "--which", "7", "--out", out)


def test_bad_photos_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "out.png")
    assert "no such file" in fails(capsys, "generate", "--face", str(tmp_path / "none.png"), "--out", out)
    (tmp_path / "text.png").write_text("hello")
    assert "not a picture" in fails(capsys, "generate", "--face", str(tmp_path / "text.png"), "--out", out)
    (tmp_path / "cut.png").write_bytes(Path(ADA).read_bytes()[:3000])
    assert "damaged or cut off" in fails(capsys, "generate", "--face", str(tmp_path / "cut.png"), "--out", out)
    empty = scene_of(tmp_path, name="empty.png")
    assert "no face was found" in fails(capsys, "generate", "--face", empty, "--out", out)
    half = scene_of(tmp_path, PersonIn(person_of(300_001), Look(), View(scale=0.75, x=-0.75, y=0.1)), name="half.png")
    error = fails(capsys, "generate", "--face", half, "--out", out)
    assert "cut by the border" in error or "no face" in error
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--adapter-scale", "3"], "0 to 2"),
        (["--controlnet-scale", "nan"], "nan"),
        (["--adapter-scale", "-0.1"], "0 to 2"),
        (["--height", "100"], "multiple of 32"),
        (["--width", "4096"], "multiple of 32"),
        (["--style", "watercolor"], "did you mean 'watercolour'"),
        (["--solver", "eular"], "did you mean 'euler'"),
        (["--num-steps", "201"], "1 to 200"),
        (["--guidance-scale", "-2"], "from 0 to 30"),
        (["--num-images", "0"], "1 to 64"),
        (["--guidance-scale", "inf"], "0 to 30"),
        (["--adapter-start", "0.9", "--adapter-end", "0.1"], "before the end"),
        (["--seed", "-1"], "seed -1"),
        (["--out", "/nowhere/at/all.png"], "no such folder"),
        (["--out", "out.gif"], ".png"),
        (["--device", "cuda:99"], "torch sees"),
        (["--device", "gpu"], "choose cpu, cuda"),
        (["--out", "/proc/out.png"], "cannot be written"),
        (["--like", "missing.png"], "no such file"),
        (["--mix", "a.png", "b.png", "--mix-steps", "1000000000"], "in 2 to 64 pictures"),
    ],
)
def test_bad_values_are_named_with_their_remedy(capsys: pytest.CaptureFixture[str], args: list[str], said: str):
    assert said in fails(capsys, "generate", "--prompt", "a person", *args)


def test_missing_and_wrong_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from selfsame.weights import mannequin

    monkeypatch.setattr(mannequin, "FOLDER", tmp_path)
    assert "is missing: reinstall" in fails(capsys, "generate", "--face", ADA, "--out", str(tmp_path / "o.png"))
    (tmp_path / "detector.safetensors").write_bytes(b"wrong")
    (tmp_path / "manifest.json").write_text('{"files": {"detector.safetensors": "00"}, "provenance": {}}')
    mannequin._checked.cache_clear()
    assert "sha256" in fails(capsys, "generate", "--face", ADA, "--out", str(tmp_path / "o.png"))
    mannequin._checked.cache_clear()


def test_only_commercial_weights_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = ["generate", "--licence", "commercial", "--prompt", "a mug", "--num-steps", "1", "--out", str(tmp_path / "a.png")]
    assert main(base) == 0, "the miniature is Apache-2.0"
    (tmp_path / "buffalo_l").mkdir()
    own = ["--base", str(tmp_path), "--instantid", str(tmp_path), "--face-models", str(tmp_path / "buffalo_l")]
    for more, says in (
        ([], "instantid: its weights are non-commercial research"),
        (own[:2], "instantid: its weights are non-commercial research"),
        (own, "buffalo_l: its weights are non-commercial research; commercially: yunet-sface"),
    ):
        assert says in fails(capsys, *base, "--model", "instantid-sdxl", "--face", ADA, *more)
    said = fails(capsys, *base, "--model", "instantid-sd15", "--base", str(tmp_path))  # words alone: nothing that is not commercial
    assert "non-commercial" not in said
    said = fails(capsys, *base, "--model", "instantid-sd15", "--base", str(tmp_path), "--face", ADA, "--keep", "glasses")
    assert "clip-vit-l14: its weights are" in said
    said = fails(capsys, *base, "--model", "instantid-sdxl", "--base", str(tmp_path))  # nobody's face
    assert "non-commercial" not in said
    edit = ["edit", "--licence", "commercial", "--model", "mimicbrush", "--source", str(EXAMPLES / "mug.png"), "--mask", str(EXAMPLES / "mug-mask.png")]
    edit += ["--reference", ADA]
    assert "mimicbrush: its weights are not stated" in fails(capsys, *edit)
    (tmp_path / "mine").mkdir()
    assert "not stated" not in fails(capsys, *edit, "--weights", str(tmp_path / "mine"))


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from selfsame.studio.painting import Painter

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Painter, "paint", interrupted)
    assert main(["generate", "--prompt", "a person", "--out", str(tmp_path / "out.png")]) == 130
    assert list(tmp_path.iterdir()) == []


def test_training_and_datasets_refuse_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "did you mean 'encoder'" in fails(capsys, "train", "encodr")
    assert "holds no dataset" in fails(capsys, "train", "vae", "--data", str(tmp_path), "--smoke")
    assert "--rehearse belongs to instantid of the miniature, not to judge" in fails(capsys, "train", "judge", "--rehearse")
    assert "leave --accumulate out" in fails(capsys, "train", "instantid", "--rehearse", "--accumulate", "2")
    assert "--mean is between" in fails(capsys, "train", "instantid", "--mean", "0.5")
    assert "give a share above 0" in fails(capsys, "train", "instantid", "--warm", "--mean", "0")
    assert "choose cpu, cuda" in fails(capsys, "render", "--dataset", str(tmp_path / "d"), "--device", "tpu9")
    assert list(tmp_path.iterdir()) == []


def test_faces_says_which_one_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["faces", ADA, "--out", str(tmp_path / "faces.png")]) == 0
    said = capsys.readouterr().out
    assert "<- used" in said
    assert "cut by the border" not in said
    write_image(tmp_path / "cut.png", np.pad(read_image(ADA)[:, 52:], ((0, 0), (0, 52), (0, 0)), constant_values=255))
    assert main(["faces", str(tmp_path / "cut.png")]) == 0
    assert "<- used  (cut by the border: refused by generate)" in capsys.readouterr().out
    assert read_image(tmp_path / "faces.png").shape == (128, 128, 3)


def test_render_draws_people_and_refuses_strangers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "p.png")
    assert main(["render", "--person", "300007", "--out", out]) == 0
    assert main(["render", "--name", "ada fox", "--out", out]) == 0
    assert main(["render", "--people", "1", "--out", out]) == 0
    assert "first and a last name" in fails(capsys, "render", "--name", "nobody", "--out", out)
    assert "give 1 to 100" in fails(capsys, "render", "--people", "0", "--out", out)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["generate", "--num-steps", "abc"], "--num-steps"),
        (["generate", "--nosuch", "3"], "--nosuch"),
        (["edit", "--mask", "x.png"], "--source"),
        (["paint"], "generate, edit, batch"),
        (["evaluate", "nothing"], "identity"),
    ],
)
def test_what_the_parser_cannot_read_is_one_line_too(args: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(args)
    assert left.value.code == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert error.startswith("selfsame: ")
    assert says in error
    assert "--help`" in error
    assert "│" not in error
