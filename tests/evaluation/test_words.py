"""The words protocol really learns, paints and compares; its numbers are what their definitions say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsame.evaluation.metrics import frechet_distance
from selfsame.images.files import InputError
from selfsame.methods.stableidentity.objective import TwoPhaseLoss
from selfsame.perception.reader import AttributeReader, perceptual_distance, reader_features
from selfsame.recipes.common import Options, Trained
from selfsame.recipes.measure import words
from selfsame.recipes.measure.protocols import WORDS, Task, checked_protocol
from selfsame.recipes.naming import Variant, new_projection
from selfsame.recipes.stableidentity import Learning
from selfsame.studio.studio import Studio, load
from selfsame.values.identity import Identity


def test_one_person_is_learned_once_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    p = checked_protocol(WORDS)
    monkeypatch.setattr(words, "checked_protocol", lambda name: {**p, "gallery_people": 4, "prompts_per_person": 2, "num_steps": 2})
    few = {"StableIdentity": Learning(steps=2, batch_size=1)}
    report = words.words(tmp_path, people=1, only=("base, nobody named", "StableIdentity", "oracle"), methods=few)
    assert [r.name for r in report.rows] == ["base, nobody named", "StableIdentity", "oracle"]
    assert "range" in report.rows[1].columns
    assert len(report.cases) == 2  # its two pictures beside the photo, the worse first
    kept = words.kept_in(tmp_path, "StableIdentity", few["StableIdentity"]) / "0.safetensors"
    before = kept.stat().st_mtime_ns
    words.words(tmp_path, people=1, only=("StableIdentity",), methods=few)
    assert kept.stat().st_mtime_ns == before
    assert "People learned as words" in (tmp_path / "report.html").read_text()
    few = {words.OURS: Learning(steps=1, batch_size=1)}
    monkeypatch.setitem(words.ABLATIONS, "no mask", Learning(steps=1, batch_size=1, loss=TwoPhaseLoss(has_mask=False)))
    monkeypatch.setitem(words.ABLATIONS, words.REFINED, few[words.OURS])
    report = words.words(tmp_path, people=1, only=(words.REFINED, "no mask"), methods=few)
    assert [n.split(" minus ")[1].split(":")[0] for n in report.notes if " minus " in n] == ["no mask"] * 4
    clip, face = (words.kept_in(tmp_path, "x", Learning(encoder=e)) for e in ("clip", "face"))
    files = words.mannequin.manifest()["files"] | {"clip_image.safetensors": "another"}
    monkeypatch.setattr(words.mannequin, "manifest", lambda: {"files": files})
    assert clip != words.kept_in(tmp_path, "x", Learning(encoder="clip"))  # people learned with another tower are not taken for these
    assert face == words.kept_in(tmp_path, "x", Learning())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="row 'none' is unknown"):
        words.words(tmp_path, people=1, only=("none",))
    with pytest.raises(ValueError, match="1 to 50"):
        words.words(tmp_path, people=51)


def test_a_start_that_was_taught_here_is_learned_from_and_compared_with_its_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two trainings in the place of the recipe's: what the words become follows the projection, also where the photo is read by CLIP."""
    p, text, made = checked_protocol(WORDS), load().text, []
    monkeypatch.setattr(words, "checked_protocol", lambda name: {**p, "gallery_people": 4, "prompts_per_person": 2, "num_steps": 1})

    def naming(options: Options, variant: Variant, name: str) -> Trained:
        made.append(name.split("/")[1].rsplit("-", 1)[0])
        torch.manual_seed(len(made))
        projection = new_projection(*text, variant.landing)
        module = torch.nn.Module()
        module.words = torch.nn.ModuleList([projection])
        return Trained(module, {"held_out_face": 1.0}, tmp_path, 64)

    monkeypatch.setattr(words, "naming", naming)
    monkeypatch.setattr(words, "open_table", lambda data, split: SimpleNamespace(digest=f"{data} {split}"))
    monkeypatch.setattr(words, "TAUGHT", {n: (replace(how, steps=0), variant) for n, (how, variant) in words.TAUGHT.items()})
    report = words.ablated(tmp_path / "out", Options(steps=3), people=1, only=("CLIP encoder", "no AdaIN"))
    assert [row.name for row in report.rows] == [words.BRIEF, "no AdaIN", "CLIP encoder"]
    assert made == ["words-stableidentity-taught-here-3", "words-no-adain-3", "words-clip-encoder-3"]
    assert {n.split(": ")[0].split(", ", 1)[1] for n in report.notes if " minus " in n} == {f"{words.BRIEF} minus {n}" for n in ("no AdaIN", "CLIP encoder")}
    assert sum("trained here, 64 samples" in note for note in report.notes) == 3
    kept = [np.asarray(Identity.load(path).words.vectors[0]) for path in sorted((tmp_path / "out/learned").glob("*/0.safetensors"))]  # type: ignore[union-attr]
    assert len(kept) == 3
    assert not any(np.allclose(a, b) for a, b in itertools.combinations(kept, 2))
    with pytest.raises(InputError, match="did you mean 'no AdaIN'"):
        words.ablated(tmp_path / "out", Options(), only=("no adain",))


def test_a_run_that_was_stopped_paints_no_row_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    p, painted = checked_protocol(WORDS), []
    monkeypatch.setattr(words, "checked_protocol", lambda name: {**p, "gallery_people": 4, "prompts_per_person": 2, "num_steps": 1})
    paint, stopped = words._painted, [True]

    def counted(studio: Studio, tasks: Sequence[Task], *rest: Any) -> list[np.ndarray]:
        if len(painted) == 1 and stopped:
            stopped.clear()
            raise KeyboardInterrupt
        painted.append(len(tasks))
        return paint(studio, tasks, *rest)

    monkeypatch.setattr(words, "_painted", counted)
    with pytest.raises(KeyboardInterrupt):
        words.words(tmp_path, people=1, only=("base, nobody named",))
    words.words(tmp_path, people=1, only=("base, nobody named",))
    assert painted == [2, 2], "the celebrities once, the row once"


@given(st.integers(0, 1000), st.integers(1, 5), st.floats(0.1, 5))
@settings(max_examples=20, deadline=None)
def test_the_frechet_distance_of_known_clouds(seed: int, dim: int, shift: float):
    """Zero for a cloud and itself; the squared shift for a cloud that was moved; (s - 1)^2 times the variance for one that was scaled."""
    a = np.random.default_rng(seed).normal(size=(200, dim))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(a, a + shift) == pytest.approx(dim * shift**2, rel=1e-6)
    centred = a - a.mean(0)
    assert frechet_distance(centred, shift * centred) == pytest.approx((shift - 1) ** 2 * centred.var(0, ddof=1).sum(), rel=1e-6, abs=1e-9)


def test_a_cloud_needs_two_points():
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))


def test_the_perceptual_distance_is_none_to_itself_and_symmetric():
    torch.manual_seed(0)
    net = AttributeReader()
    a, b = torch.rand(3, 3, 128, 128) * 2 - 1, torch.rand(3, 3, 128, 128) * 2 - 1
    assert torch.equal(perceptual_distance(net, a, a), torch.zeros(3))
    assert torch.allclose(perceptual_distance(net, a, b), perceptual_distance(net, b, a))
    assert (perceptual_distance(net, a, b) > perceptual_distance(net, a, a + 0.05 * torch.randn_like(a))).all()
    assert reader_features(net, [np.zeros((128, 128, 3), np.uint8)] * 3).shape == (3, 128)
