"""The identity protocol really runs, is pinned, and counts what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsame.evaluation.metrics import bootstrap_interval, paired_interval
from selfsame.mannequins.world import CANONICAL_VIEWS
from selfsame.recipes.measure import identity, protocols
from selfsame.recipes.measure.person_lora import CALLED, PersonLora, with_lora
from selfsame.recipes.measure.protocols import reference_photo
from selfsame.recipes.measure.swap import face_swapped
from selfsame.studio.painting import Row
from selfsame.studio.request import Request
from selfsame.studio.studio import Studio, load


def test_one_person_two_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    p = protocols.checked_protocol(protocols.IDENTITY)
    monkeypatch.setattr(identity, "checked_protocol", lambda name: {**p, "people": 8, "num_steps": 2})
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
    assert "data:image/png" in (tmp_path / "report.html").read_text()


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
