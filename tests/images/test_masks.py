"""Masks: every way in, and a way back that leaves the rest of the picture alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfsame.images.files import InputError
from selfsame.images.masks import Window, colours_matched, laid_over, read_mask, resized, window_around


def drawn(height: int = 40, width: int = 60) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[10:20, 15:40] = 255
    return mask


def saved(folder: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    image.save(folder / "mask.png")
    return folder / "mask.png"


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "LA"])
def test_any_mode_reads_alike(tmp_path: Path, mode: str):
    mask, notes = read_mask(saved(tmp_path, drawn(), mode), 40, 60)
    assert np.array_equal(mask, drawn())
    assert not notes


def test_a_painted_layer_is_read_by_its_alpha(tmp_path: Path):
    layer = np.zeros((40, 60, 4), np.uint8)
    layer[..., 3] = drawn()
    layer[..., 0] = 20  # dark red paint
    assert np.array_equal(read_mask(saved(tmp_path, layer), 40, 60)[0], drawn())


def test_an_empty_layer_marks_nothing(tmp_path: Path):
    with pytest.raises(InputError, match="the mask is empty"):
        read_mask(saved(tmp_path, np.zeros((40, 60, 4), np.uint8)), 40, 60)


def test_a_palette_with_a_transparent_colour_is_a_layer_too(tmp_path: Path):
    layer = Image.fromarray(drawn() // 255).convert("P")
    layer.putpalette([10, 20, 30, 200, 10, 10])
    layer.save(tmp_path / "mask.png", transparency=0)
    assert np.array_equal(read_mask(tmp_path / "mask.png", 40, 60)[0], drawn())


def test_what_is_only_looked_at_may_be_everything(tmp_path: Path):
    mask, notes = read_mask(saved(tmp_path, np.full((40, 60), 255, np.uint8)), 40, 60, to_paint=False)
    assert mask.all()
    assert not notes


def test_soft_edges_are_cut_in_the_middle(tmp_path: Path):
    soft = drawn().copy()
    soft[9, 15:40], soft[20, 15:40] = 127, 128
    mask, _ = read_mask(saved(tmp_path, soft), 40, 60)
    assert not mask[9].any()
    assert mask[20, 20] == 255


def test_a_mask_of_nearly_everything_is_asked_about(tmp_path: Path):
    mask, notes = read_mask(saved(tmp_path, 255 - np.pad(np.full((4, 4), 255, np.uint8), ((0, 36), (0, 56)))), 40, 60)
    assert (mask > 0).mean() > 0.9
    assert "inverted" in notes[0]


@pytest.mark.parametrize(
    ("array", "says"),
    [(np.zeros((40, 60), np.uint8), "empty"), (np.full((40, 60), 255, np.uint8), "whole picture"), (drawn(30, 60), "60 x 30")],
)
def test_a_useless_mask_is_refused(tmp_path: Path, array: np.ndarray, says: str):
    with pytest.raises(InputError, match=says):
        read_mask(saved(tmp_path, array), 40, 60)


boxes = st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(0, 69), st.integers(0, 69), st.integers(1, 70), st.integers(1, 70), st.floats(1, 4))


@settings(max_examples=200, deadline=None)
@given(boxes)
def test_a_window_holds_its_mask_and_what_is_put_back_is_what_was_cropped(box: tuple):
    h, w, y, x, dy, dx, context = box
    mask = np.zeros((h, w), bool)
    mask[min(y, h - 1) : y + dy, min(x, w - 1) : x + dx] = True
    window = window_around(mask, context)
    assert window.crop(mask, False).sum() == mask.sum()
    assert window.side <= max(h, w)
    assert window_around(mask, 1.0, 32).side >= min(32, max(h, w))
    if window.side <= min(h, w):  # it fits: it lies inside
        assert window.y >= 0
        assert window.x >= 0
        assert window.y + window.side <= h
        assert window.x + window.side <= w
    picture = np.random.default_rng(h * w).integers(0, 256, (h, w, 3)).astype(np.uint8)
    assert np.array_equal(window.put(picture, window.crop(picture, 255)), picture)


def test_beyond_the_border_lies_the_filling():
    part = Window(-2, -3, 6).crop(np.zeros((4, 4), np.uint8), 255)
    assert part[:2].min() == 255
    assert part[:, :3].min() == 255
    assert part[2:, 3:].max() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(0, 1000))
def test_outside_the_soft_mask_nothing_changes(rounds: int, seed: int):
    rng = np.random.default_rng(seed)
    source, result = rng.integers(0, 256, (2, 40, 60, 3)).astype(np.uint8)
    out = laid_over(result, source, drawn(), rounds)
    near = np.zeros((40, 60), bool)
    near[max(0, 10 - rounds) : 20 + rounds, max(0, 15 - rounds) : 40 + rounds] = True
    assert np.array_equal(out[~near], source[~near])
    deep = np.zeros((40, 60), bool)
    deep[10 + rounds : 20 - rounds, 15 + rounds : 40 - rounds] = True
    assert np.array_equal(out[deep], result[deep])


def test_colours_are_moved_to_the_source():
    rng = np.random.default_rng(0)
    source = rng.integers(60, 200, (32, 32, 3)).astype(np.uint8)
    keep = np.ones((32, 32), bool)
    keep[8:24, 8:24] = False
    dull = (source * 0.6 + 20).astype(np.uint8)
    assert np.abs(colours_matched(dull, source, keep).astype(int) - source)[keep].mean() < 2
    assert np.array_equal(colours_matched(dull, source, np.zeros_like(keep)), dull)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_resizing_keeps_a_plain_picture_plain(side: int):
    assert (resized(np.full((32, 32, 3), 77, np.uint8), side) == 77).all()
