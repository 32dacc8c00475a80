"""The identity protocol really runs, is pinned, and counts what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsame.cli.main import main
from selfsame.evaluation.metrics import bootstrap_interval, paired_interval
from selfsame.images.files import InputError, read_image, write_image
from selfsame.mannequins.world import CANONICAL_VIEWS
from selfsame.recipes.measure import identity, judging, pictures, protocols
from selfsame.recipes.measure.person_lora import CALLED, PersonLora, with_lora
from selfsame.recipes.measure.protocols import reference_photo
from selfsame.recipes.measure.swap import face_swapped
from selfsame.studio.painting import Row
from selfsame.studio.request import Request
from selfsame.studio.studio import Studio, load


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    p = protocols.checked_protocol(protocols.IDENTITY)
    monkeypatch.setattr(identity, "checked_protocol", lambda name: {**p, "people": 8, "num_steps": 2})


def test_one_person_two_rows(tmp_path: Path, brief: None):
    shares: list[float] = []
    report = identity.identity(tmp_path, people=1, only=("both", "both, fast", "oracle"), on_progress=lambda share, _: shares.append(share))
    assert sum(shares) == pytest.approx(1)
    assert [r.name for r in report.rows] == ["both", "both, fast", "oracle"]
    for row in report.rows:
        assert 0 <= float(row.columns["rank-1 of 100"]) <= 1
        assert 0 <= float(row.columns["attributes"]) <= 1
    assert [len(c.pictures) for c in report.cases] == [2] * 4, "the photo beside each picture of the row that counts"
    assert all("cosine" in c.said or "no face" in c.said for c in report.cases)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["protocol"]["weights_sha256"]["judge.safetensors"]
    assert content["protocol"]["commit"]
    assert any("only 1 of the protocol" in n for n in content["notes"])
    assert any("attributes, both, fast minus both" in n for n in content["notes"])
    assert sum("over the oracle's" in n for n in content["notes"]) == 6
    assert all(0 < float(row.columns["diversity over seeds"]) < 2 for row in report.rows)
    assert "data:image/png" in (tmp_path / "report.html").read_text()


def test_a_run_that_was_stopped_goes_on_with_the_pictures_it_has(tmp_path: Path, brief: None, monkeypatch: pytest.MonkeyPatch):
    """Painted files are read, not painted again; one that is lost is painted anew, the same but for rounding; of other weights or questions none is taken."""
    first = identity.identity(tmp_path, people=1, only=("base without a face",))
    files = sorted((tmp_path / "pictures").rglob("*.png"))
    assert [f.name for f in files] == [f"000-{k}.png" for k in range(7)], "four prompts, and three more seeds of the first"
    assert files[0].parent.name.startswith("base-without-a-face-")
    lost, before = read_image(files[2]).astype(int), [f.stat().st_mtime_ns for f in files]
    files[2].unlink()
    second = identity.identity(tmp_path, people=1, only=("base without a face",))
    assert np.abs(read_image(files[2]) - lost).max() <= 2
    assert [f.stat().st_mtime_ns for k, f in enumerate(files) if k != 2] == [t for k, t in enumerate(before) if k != 2]
    assert second.rows[0].columns["cosine"] == pytest.approx(float(first.rows[0].columns["cosine"]), abs=0.01)
    monkeypatch.setattr(pictures, "source_digest", lambda: "another")
    identity.identity(tmp_path, people=1, only=("base without a face",))
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_any_tools_pictures_are_judged_like_our_own(tmp_path: Path, brief: None):
    """What is asked is written out; answers of that name stand as one more row, with the numbers they would have had; missing ones are missed."""
    where = identity.ask(tmp_path / "asked", people=1)
    asked = json.loads(where.read_text())["pictures"]
    assert [a["file"] for a in asked] == [f"000-{k}.png" for k in range(7)]
    (part,) = asked[0]["people"]
    assert (where.parent / part["photos"][3]).exists()
    assert (np.array(part["kps"]).shape, part["share"]) == ((5, 2), 1)
    ours = identity.identity(tmp_path, people=1, only=("oracle",)).rows[0].columns
    (painted,) = (tmp_path / "pictures").iterdir()
    report = identity.identity(tmp_path / "b", people=1, only=("oracle",), pictures=painted, judges=("judge", "encoder"), conditioner="encoder")
    theirs = report.rows[0]
    assert theirs.name == f"pictures of {painted.name}"
    same = {k: v for k, v in theirs.columns.items() if k in ours and k != "s"}
    assert str(same) == str({k: v for k, v in ours.items() if k != "s"})
    assert theirs.columns["rank-1, encoder (also the conditioner)"] == 1
    assert any("flatters them" in n for n in report.notes)
    assert "rank-1, encoder" in report.rows[1].columns, "no encoder conditioned the oracle"
    assert any(n.startswith(f"judge cosine, {theirs.name} minus oracle: +0.000") for n in report.notes)
    assert any(n.startswith(f"rank-1, {theirs.name}, over the oracle's") for n in report.notes)
    assert any("no asked.json" in n for n in report.notes)
    shutil.copy(where, painted)
    assert not any("no asked.json" in n for n in identity.identity(tmp_path / "b", people=1, only=("oracle",), pictures=painted).notes)
    (painted / "asked.json").write_text('{"protocol": "identity-1"}')
    with pytest.raises(InputError, match="asks protocol identity-1, this version judges by identity-4"):
        identity.identity(tmp_path / "b", people=1, only=("oracle",), pictures=painted)
    (painted / "asked.json").write_text("[]")
    with pytest.raises(InputError, match="not what --ask writes"):
        identity.identity(tmp_path / "b", people=1, only=("oracle",), pictures=painted)
    (painted / "asked.json").unlink()
    flattered = identity.identity(tmp_path / "b", people=1, only=("oracle",), pictures=painted, conditioner="judge")
    assert flattered.rows[0].name.endswith("(judged by what conditioned it)")
    assert any("the protocol's judge conditioned these pictures" in n for n in flattered.notes)
    for k in range(1, 7):
        (painted / f"000-{k}.png").unlink()
    write_image(painted / "000-1.png", np.zeros((64, 96, 3), np.uint8))
    less = identity.identity(tmp_path / "c", people=1, only=("oracle",), pictures=painted)
    assert less.rows[0].columns["no face"] == 0.75
    assert any("000-1.png: 96 x 64, not of the shape" in n for n in less.notes)
    with pytest.raises(InputError, match=r"none of the protocol's pictures is here, such as 000-0\.png"):
        identity.identity(tmp_path / "d", people=1, pictures=tmp_path)


def test_what_is_asked_is_asked_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", "identity", "--ask", "--people", "2", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "asked.json")
    assert main(["evaluate", "identity", "--ask", "--rows", "both", "--out", str(tmp_path)]) == 2
    assert "--ask only writes" in capsys.readouterr().err
    assert main(["evaluate", "words", "--ask", "--out", str(tmp_path)]) == 2
    assert "--ask belongs to `evaluate identity`" in capsys.readouterr().err
    assert main(["evaluate", "folder", "--rows", "both", "--out", str(tmp_path)]) == 2
    assert "judges every picture" in capsys.readouterr().err


def test_copy_paste_compares_with_a_photo_that_no_row_is_given():
    lent = [int(n.split(", ")[1].split()[0]) for n in (*identity.ROW_NAMES, *identity.EXTRA) if n.endswith("photos")]
    assert judging.UNLENT >= max(lent) == 8


@pytest.mark.parametrize("name", [protocols.IDENTITY, protocols.WORDS])
def test_the_protocols_are_pinned(name: str, monkeypatch: pytest.MonkeyPatch):
    protocols.checked_protocol(name)
    monkeypatch.setattr(protocols, "CANONICAL_VIEWS", CANONICAL_VIEWS[::-1])
    with pytest.raises(ValueError, match="figures would not compare"):
        protocols.checked_protocol(name)


def test_bad_rows_and_people_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="row 'none' is unknown"):
        identity.identity(tmp_path, only=("none",))
    with pytest.raises(ValueError, match="1 to 100"):
        identity.identity(tmp_path, people=101)


def test_no_pose_can_leak_by_construction():
    """The protocol's key points are those of the average face: nothing of the person is in them."""
    kps, width = protocols.canonical_kps(0)
    assert np.allclose(kps[0, 1], kps[1, 1], atol=0.1)
    assert np.allclose((kps[0, 0] + kps[1, 0]) / 2, 63.5, atol=0.1)
    assert 60 < width < 100


def test_intervals_draw_people_not_pictures():
    """Four equal pictures of a person are one observation: the interval is wider than that of independent pictures."""
    rng = np.random.default_rng(0)
    values = np.repeat(rng.random(30), 4)
    groups = np.repeat(np.arange(30), 4).tolist()
    low, high = bootstrap_interval(values.tolist())
    wide_low, wide_high = bootstrap_interval(values.tolist(), groups)
    assert wide_high - wide_low > 1.6 * (high - low)
    middle, low, high = paired_interval((values + 0.5).tolist(), values.tolist(), groups)
    assert middle == pytest.approx(0.5)
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(0.5)


def test_a_swapped_face_is_the_photos_and_the_rest_stays():
    """Laid over itself a face changes little; over another's, the judge sees more of the photo's person; where nobody is nothing changes."""
    studio = load()
    ada, ben = (reference_photo("test", i, 0) for i in (3, 8))
    same = face_swapped(ada.image, ada.kps[0], ada.image, ada.kps[0])
    assert np.abs(same.astype(int) - ada.image).mean() < 3
    made = face_swapped(ben.image, ben.kps[0], ada.image, ada.kps[0])
    vectors = [studio.vectors(image, [kps])[0] for image, kps in ((made, ben.kps[0]), (ada.image, ada.kps[0]), (ben.image, ben.kps[0]))]
    assert vectors[0] @ vectors[1] > vectors[2] @ vectors[1] + 0.1
    assert np.array_equal(made[:, :4], ben.image[:, :4])
    assert face_swapped(ben.image, None, ada.image, ada.kps[0]) is ben.image


def test_a_lora_of_a_person_is_anothers_unet():
    """It learns the photo; the studio's own U-Net stays bit for bit what it was."""
    studio = load()
    before = {k: v.clone() for k, v in studio.unet.state_dict().items()}
    photo = reference_photo("test", 0, 0).image
    learned = with_lora(studio, [photo], PersonLora(steps=2, batch_size=2))
    assert all(torch.equal(v, before[k]) for k, v in studio.unet.state_dict().items())
    request = Request(num_steps=2)
    ours, theirs = (
        Studio().with_parts(unet=unet).paint([Row(f"a photo of {CALLED}")], request, [0])[0][0].astype(int) for unet in (learned, studio.unet)
    )  # fmt: skip
    assert np.abs(ours - theirs).max() > 0
    assert any("lora_B" in name and p.detach().abs().sum() > 0 for name, p in learned.named_parameters())
