"""Several people, views and mixes are measured by pinned protocols; anybody's folder of pictures by the same judges."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfsame.cli.main import main
from selfsame.evaluation.metrics import copy_paste, is_monotonic
from selfsame.images.files import InputError, read_image, write_image
from selfsame.recipes.measure import folder as measure_folder
from selfsame.recipes.measure import protocols, uses
from selfsame.recipes.measure.folder import folder, people_in
from selfsame.recipes.measure.protocols import reference_photo
from selfsame.recipes.measure.uses import Asking
from selfsame.studio.studio import ENCODER_NAME, Studio

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGESTS: dict[str, Any] = {uses.PEOPLE: uses.people_digest, uses.VIEWS: uses.views_digest, uses.MIX: uses.mix_digest}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "checked_protocol", lambda name, digest: protocols.protocol(name) | {"num_steps": 2, "people": 6, "gallery_people": 12})


@pytest.mark.parametrize("name", DIGESTS)
def test_the_protocols_are_pinned(name: str, monkeypatch: pytest.MonkeyPatch):
    p = protocols.checked_protocol(name, DIGESTS[name])
    assert p["name"] == name
    monkeypatch.setattr(protocols, "protocol", lambda n: p | {"seed": 1})
    with pytest.raises(ValueError, match="pin a new protocol"):
        protocols.checked_protocol(name, DIGESTS[name])


def test_groups_are_judged_where_everyone_was_to_stand(small: None, tmp_path: Path):
    report = uses.people(Asking(tmp_path), cases=3, only=("both, a region each", "oracle"))
    both, oracle = report.rows
    assert both.name == "both, a region each"
    assert oracle.columns["no face there"] == 0
    assert oracle.columns["kps error"] < 0.15
    assert oracle.columns["all"] > 0.4
    for count in (2, 3):
        assert any(f"{count} people, both, a region each, over the oracle's" in n for n in report.notes)
        assert any(f"{count} people, both, a region each minus" in n for n in report.notes) is False, "no other row was asked for"
    assert [len(c.pictures) for c in report.cases] in ([3, 3, 4], [3, 4, 3], [4, 3, 3]), "everybody's photo beside the picture"
    shares = [float(c.said.split(": ")[1][0]) / float(c.said.split(" of ")[-1][0]) for c in report.cases]
    assert shares == sorted(shares)
    assert "Worst cases first" in (tmp_path / "report.html").read_text()


def test_views_and_mixes_run(small: None, tmp_path: Path):
    views = uses.views(Asking(tmp_path), people=1, only=("yaw +0", "yaw +30"))
    assert [r.name for r in views.rows] == ["yaw +0", "yaw +30"]
    assert any("minus frontal" in n for n in views.notes)
    assert len(views.cases) == 2
    mixes = uses.mixes(Asking(tmp_path), pairs=1, only=("linear",))
    assert set(mixes.rows[0].columns) == {
        "monotonic to both ends", "95 %", "single strips", "cosine from end to end", "strips with a step without a face", "s",
    }  # fmt: skip
    assert any(note.startswith("linear, mean cosine to the first and to the second at each share: 0: ") for note in mixes.notes)
    assert any("only 1 of the protocol's 6" in n for n in mixes.notes)
    with pytest.raises(ValueError, match="row 'cubic' is unknown"):
        uses.mixes(Asking(tmp_path), only=("cubic",))


BRIEF: dict[str, dict[str, Any]] = {uses.PEOPLE: {}, uses.VIEWS: {}, uses.MIX: {"seeds": 1, "shares": [0.0, 1.0]}}


@pytest.mark.parametrize(
    ("what", "more"),
    [("people", {"cases": 1, "only": ("oracle",)}), ("views", {"people": 1, "only": ("yaw +0", "yaw +30")}), ("mix", {"pairs": 1, "only": ("linear",)})],
)
def test_any_tools_answers_give_the_numbers_of_our_own_pictures(what: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Questions are written out under the names of the pictures; a second run paints nothing anew, and other judges look too."""
    monkeypatch.setattr(uses, "checked_protocol", lambda name, digest: protocols.protocol(name) | {"num_steps": 2, "gallery_people": 12} | BRIEF[name])
    run = {"people": uses.people, "views": uses.views, "mix": uses.mixes}[what]
    where = uses.ask(what, tmp_path / "asked", count=1)
    asked = json.loads(where.read_text())["pictures"]
    assert all((where.parent / photo).exists() for a in asked for part in a["people"] for photo in part["photos"])
    ours = run(Asking(tmp_path), **more).rows
    (painted,) = (tmp_path / "pictures").iterdir()
    when = {p.name: p.stat().st_mtime_ns for p in painted.iterdir()}
    assert when.keys() <= {a["file"] for a in asked}
    shutil.copy(where, painted)
    both = run(Asking(tmp_path, painted, ("judge", "encoder"), "encoder"), **more).rows
    assert {p.name: p.stat().st_mtime_ns for p in painted.glob("*.png")} == when
    theirs = [r for r in both if r.name.startswith(f"pictures of {painted.name}")]
    for mine, other in zip(ours, theirs, strict=True):
        assert str({k: other.columns[k] for k in mine.columns if k != "s"}) == str({k: v for k, v in mine.columns.items() if k != "s"})
        assert any("encoder (also the conditioner)" in column for column in other.columns)


def test_views_go_on_where_they_were_stopped(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = uses.views(Asking(tmp_path), people=2, only=("yaw +0", "yaw +30"))
    (made,) = (tmp_path / "pictures").iterdir()
    assert sorted(p.name for p in made.iterdir()) == ["000+00.png", "000+30.png", "001+00.png", "001+30.png"]
    before = {p.name: p.stat().st_mtime_ns for p in made.iterdir()}
    (made / "001+30.png").unlink()
    second = uses.views(Asking(tmp_path), people=2, only=("yaw +0", "yaw +30"))
    assert [name for name, when in before.items() if (made / name).stat().st_mtime_ns != when] == ["001+30.png"]
    assert [{k: v for k, v in r.columns.items() if k != "s"} for r in second.rows] == [{k: v for k, v in r.columns.items() if k != "s"} for r in first.rows]


def test_nothing_of_a_person_is_in_the_asked_points():
    two, three = (np.stack([uses.group_kps(n, k, w) for k in range(n)]) for n, w in ((2, 192), (3, 256)))
    assert np.allclose(two[1] - two[0], [96, 0])
    assert np.allclose(three[2] - three[1], [256 / 3, 0])


@given(st.integers(0, 2**31))
def test_copying_is_one_and_painting_the_person_is_none(seed: int):
    rng = np.random.default_rng(seed)
    reference, other = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 8)))
    assert copy_paste(reference, reference, other) == pytest.approx(1)
    between = (reference + other) / np.linalg.norm(reference + other)
    assert copy_paste(between, reference, other) == pytest.approx(0, abs=1e-9)
    assert copy_paste(other, reference, other) == pytest.approx(-1)
    assert np.isnan(copy_paste(reference, other, other))


def test_monotonic_is_never_turning_back():
    assert is_monotonic([0, 1, 1, 2], rising=True)
    assert not is_monotonic([0, 2, 1], rising=True)
    assert is_monotonic([3, 1, 0], rising=False)
    assert uses.never_turns_back(np.array([[3.0, 1, 0], [0, 1, 1]]))
    assert not uses.never_turns_back(np.array([[3.0, 1, 0], [0, 2, 1]]))
    assert not uses.never_turns_back(np.zeros((2, 3))), "blank pictures go nowhere"


# ---------------------------------------------------------------------------------------------- a folder of pictures


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two people with two photos each; of one a copy and a true other picture, of the other somebody else's face and none at all."""
    references, made = tmp_path / "photos", tmp_path / "made"
    for name, person in (("ada", 3), ("ben", 8)):
        (references / name).mkdir(parents=True)
        for k in range(2):
            write_image(references / name / f"{k}.png", reference_photo("test", person, k).image)
    made.mkdir()
    shutil.copy(references / "ada/0.png", made / "ada-1.png")
    write_image(made / "ada_beach.png", reference_photo("test", 3, 2).image)
    shutil.copy(references / "ada/1.png", made / "ben-1.png")
    write_image(made / "ben-2.png", np.full((128, 128, 3), 90, np.uint8))
    for hidden in (made / "._ada-1.png", references / "._ada.png", references / "ada/._0.png"):  # as a Mac leaves them
        hidden.write_bytes(b"\0\5\x16\7")
    return made, references


def test_a_folder_is_judged_and_its_worst_pictures_come_first(folders: tuple[Path, Path], tmp_path: Path):
    made, references = folders
    report = folder(made, references, tmp_path / "report", judges=("judge", "encoder"), conditioner=ENCODER_NAME)
    judge, encoder = report.rows
    assert encoder.name == "encoder (also the conditioner)"
    assert judge.columns["pictures"] == "4"
    assert judge.columns["no face"] == 0.25
    assert judge.columns["gallery"] == "2"
    assert judge.columns["found first in it"] == 0.5
    assert "no face found" in report.cases[0].said
    assert "taken for somebody else" in report.cases[1].said
    assert any("flatters" in n for n in report.notes)
    assert "Worst cases first" in (tmp_path / "report/report.html").read_text()


def test_pictures_that_say_who_made_them_flag_their_own_encoder(folders: tuple[Path, Path], tmp_path: Path):
    made, references = folders
    (made / "ada_beach.png").unlink()
    write_image(made / "ada_beach.png", reference_photo("test", 3, 2).image, {"model": "mannequin", "encoder": ENCODER_NAME})
    judge, encoder = folder(made, references, tmp_path / "report", judges=("judge", "encoder")).rows
    assert judge.name == "judge"
    assert encoder.name == "encoder (also the conditioner)"


def test_older_pictures_flag_the_encoder_of_their_model_and_edits_none(tmp_path: Path):
    image = np.zeros((8, 8, 3), np.uint8)
    for name, said, expected in (
        ("old", {"model": "mannequin"}, ENCODER_NAME), ("photo", {"model": "instantid-sdxl"}, "antelopev2"),
        ("edit", {"model": "mannequin", "encoder": ""}, ""), ("other", {}, ""), ("own", {"model": "instantid-sdxl", "encoder": "mine"}, "mine"),
    ):  # fmt: skip
        assert measure_folder.conditioner_of([[write_image(tmp_path / f"{name}.png", image, said)]]) == expected


def test_two_judges_of_one_name_are_told_apart_and_a_missing_face_is_like_nobody(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    studio, names = Studio(), ("a/antelopev2", "b/antelopev2", "judge")
    judge = measure_folder.judge_called
    monkeypatch.setattr(measure_folder, "judge_called", lambda name, s: replace(judge("judge", s), name=name.rpartition("/")[2], known_as=(name[0],)))
    first, second, own = measure_folder.judges_called(names, studio)
    assert [j.name for j in (first, second, own)] == ["antelopev2 (a/antelopev2)", "antelopev2 (b/antelopev2)", "judge"]
    assert first.conditioned("a")
    assert not second.conditioned("a")
    with pytest.raises(InputError, match="named twice"):
        measure_folder.judges_called(("judge", "judge"), studio)
    made, references = folders
    for name in ("ben-1.png", "ada_beach.png"):
        (made / name).unlink()  # left: a copied photo of one, a blank picture of the other
    shown = folder(made, references, tmp_path / "report")
    assert shown.rows[0].columns["copy-paste"] == pytest.approx(0.5, abs=0.02)
    assert set(shown.protocol["judges"]) == {"judge"}
    assert "encoder.safetensors" in shown.protocol["weights_sha256"]


def test_pictures_find_their_people_by_name(tmp_path: Path):
    references, made = tmp_path / "r", tmp_path / "m"
    (made / "ada").mkdir(parents=True)
    references.mkdir()
    blank = np.zeros((16, 16, 3), np.uint8)
    for path in (references / "ada.png", references / "ada-fox.png", made / "ada-fox-1.png", made / "ada-2.png", made / "ada/7.png", made / "adam.png"):
        write_image(path, blank)
    people, strangers = people_in(made, references)
    assert {k.name: sorted(p.name for p in k.pictures) for k in people} == {"ada": ["7.png", "ada-2.png"], "ada-fox": ["ada-fox-1.png"]}
    assert strangers == ["adam.png"]


def test_a_reference_without_a_face_counts_as_missed_and_is_named(folders: tuple[Path, Path], tmp_path: Path):
    made, references = folders
    write_image(references / "ada/0.png", np.full((128, 128, 3), 90, np.uint8))
    second = folder(made, references, tmp_path / "a").rows[0].columns  # the other photo is used
    assert second["pictures"] == "4"
    write_image(references / "ada/1.png", np.full((128, 128, 3), 90, np.uint8))
    report = folder(made, references, tmp_path / "b")
    assert report.rows[0].columns["pictures"] == "4"
    assert report.rows[0].columns["gallery"] == "1"
    assert report.rows[0].columns["found first in it"] <= 0.25  # none of hers
    assert any("no face in any photo of ada" in n for n in report.notes)
    assert report.rows[0].columns["cosine"] < second["cosine"]


def test_folders_that_cannot_be_judged_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    shutil.copy(EXAMPLES / "ada.png", tmp_path / "photos/ada.png")
    (tmp_path / "made").mkdir()
    shutil.copy(EXAMPLES / "ada.png", tmp_path / "made/zoe.png")
    for pictures, references, match in (
        ("none", "photos", "no such folder"), ("photos", "empty", "put a photo NAME.png"), ("empty", "photos", "no pictures in this folder"),
        ("made", "photos", "named after nobody"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            people_in(tmp_path / pictures, tmp_path / references)
    shutil.copy(EXAMPLES / "ada.png", tmp_path / "made/ada.png")
    with pytest.raises(InputError, match="no judge: name"):
        folder(tmp_path / "made", tmp_path / "photos", tmp_path, judges=())
    with pytest.raises(InputError, match="compared with itself"):
        folder(tmp_path / "photos", tmp_path / "photos", tmp_path)
    with pytest.raises(InputError, match="conditioner 'antelope'"):
        folder(tmp_path / "made", tmp_path / "photos", tmp_path, conditioner="antelope")
    with pytest.raises(InputError, match="judge 'jugde': choose"):
        folder(tmp_path / "made", tmp_path / "photos", tmp_path, judges=("jugde",))
    assert main(["evaluate", "folder", "--out", str(tmp_path / "out")]) == 2
    assert "needs --pictures and --references" in capsys.readouterr().err
    where = ["--pictures", str(tmp_path / "made"), "--references", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    assert main(["evaluate", "folder", *where]) == 0
    assert "judge" in capsys.readouterr().out
    (tmp_path / "made/ada.png").write_bytes(b"no picture")
    assert main(["evaluate", "folder", *where]) == 0
    assert "left as without a face" in capsys.readouterr().out
    assert read_image(tmp_path / "photos/ada.png").shape == (128, 128, 3)


def test_a_folder_and_a_picture_of_one_name_are_one_person(tmp_path: Path):
    blank = np.zeros((16, 16, 3), np.uint8)
    (tmp_path / "r/ada").mkdir(parents=True)
    (tmp_path / "m").mkdir()
    for path in ("r/ada.png", "r/ada/1.png", "m/ada-1.png"):
        write_image(tmp_path / path, blank)
    (ada,), _ = people_in(tmp_path / "m", tmp_path / "r")
    assert len(ada.photos) == 2
