"""An identity is a plain value in one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selfsame.values.identity import Identity, LearnedWords


def identity(photos: int = 2, encoder: str = "a") -> Identity:
    rng = np.random.default_rng(0)
    sizes = np.tile([128, 96], (photos, 1))
    return Identity(
        rng.normal(size=(photos, 512)).astype(np.float32), encoder, rng.uniform(0, 90, (photos, 5, 2)).astype(np.float32), sizes, ("x",) * photos, "mine"
    )


def test_it_comes_back_from_its_file(tmp_path: Path):
    a = identity()
    b = Identity.load(a.save(tmp_path / "ada.safetensors"))
    assert np.array_equal(a.embeddings, b.embeddings)
    assert np.array_equal(a.kps, b.kps)
    assert (a.encoder, a.sources, a.consent) == (b.encoder, b.sources, b.consent)


def test_learned_words_travel_with_it(tmp_path: Path):
    rng = np.random.default_rng(1)
    words = LearnedWords(tuple(rng.normal(size=(2, d)).astype(np.float32) for d in (32, 48)), "<ada>", "abc", {"steps": 450, "base": "b"})
    for who in (replace(identity(), words=words), Identity.of_words(words)):
        back = Identity.load(who.save(tmp_path / "ada.safetensors")).words
        assert back is not None
        assert all(np.array_equal(a, b) for a, b in zip(back.vectors, words.vectors, strict=True))
        assert (back.placeholder, back.text_encoder, dict(back.about)) == ("<ada>", "abc", {"steps": 450, "base": "b"})


@pytest.mark.parametrize("name", ["ada", "<ada", "< ada>", "<Ada>", "<>"])
def test_placeholders_are_checked(name: str):
    with pytest.raises(ValueError, match="such as <ada>"):
        LearnedWords((np.zeros((2, 8)),), name, "abc")


def test_learned_words_are_checked():
    with pytest.raises(ValueError, match="one array"):
        LearnedWords((), "<ada>", "abc")
    with pytest.raises(ValueError, match="one array"):
        LearnedWords((np.zeros((2, 8)), np.zeros((3, 8))), "<ada>", "abc")
    with pytest.raises(ValueError, match="not finite"):
        LearnedWords((np.full((2, 8), np.inf),), "<ada>", "abc")


def test_identities_of_different_encoders_do_not_mix():
    with pytest.raises(ValueError, match="'a' and 'b' cannot be mixed"):
        identity(encoder="a").joined(identity(encoder="b"))
    assert identity(2).joined(identity(3)).num_photos == 5


def test_other_files_are_refused_by_name(tmp_path: Path):
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no.safetensors: cannot be read"):
        Identity.load(tmp_path / "no.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        Identity.load(tmp_path / "missing.safetensors")


def test_values_are_checked():
    with pytest.raises(ValueError, match="at least one photo"):
        Identity(np.zeros((0, 512)), "a", np.zeros((0, 5, 2)), np.zeros((0, 2)), ())
    with pytest.raises(ValueError, match="not finite"):
        Identity(np.full((1, 512), np.nan), "a", np.zeros((1, 5, 2)), np.zeros((1, 2)), ("x",))
    with pytest.raises(ValueError, match="need embeddings"):
        Identity(np.zeros((2, 512)), "a", np.zeros((1, 5, 2)), np.zeros((1, 2)), ("x",))
