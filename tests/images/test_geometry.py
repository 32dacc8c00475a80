"""Alignment and key-point drawings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfsame.images.align import ARCFACE_112, align_as_ffhq, crop_face, ffhq_matrix, similarity, template
from selfsame.images.draw import KPS_COLOURS, draw_kps, draw_kps_small
from selfsame.mannequins.attributes import View
from selfsame.mannequins.render import landmarks_of
from selfsame.mannequins.world import average_scene

finite = st.floats(-50, 50)


@given(angle=st.floats(-3, 3), zoom=st.floats(0.2, 5), dx=finite, dy=finite)
def test_similarity_recovers_any_turn_zoom_and_shift(angle: float, zoom: float, dx: float, dy: float):
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(ARCFACE_112, ARCFACE_112 @ turn.T + [dx, dy])
    assert np.allclose(matrix, np.c_[turn, [dx, dy]], atol=1e-6)


def test_similarity_never_mirrors():
    mirrored = ARCFACE_112 * [-1, 1]
    assert np.linalg.det(similarity(ARCFACE_112, mirrored)[:, :2]) > 0


def test_points_on_one_spot_are_refused():
    with pytest.raises(ValueError, match="one spot"):
        similarity(np.ones((5, 2)), ARCFACE_112)


@given(share=st.floats(0.3, 1.2))
def test_template_keeps_its_middle(share: float):
    assert np.allclose(template(64, share=share).mean(0) - 32, (ARCFACE_112.mean(0) / 112 - 0.5) * 64 * share)


@pytest.mark.parametrize("zoom", [1, 3, 7])
def test_crops_of_the_same_face_at_any_size_agree(zoom: int):
    y, x = np.mgrid[0 : 60 * zoom, 0 : 60 * zoom] / zoom
    image = np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 8), x * 4], -1).astype(np.uint8)
    kps = (template(60) + 0.5) * zoom - 0.5
    crop = crop_face(image, kps, 48, share=0.7)
    y1, x1 = np.mgrid[0:60, 0:60]
    plain = np.stack([127 + 100 * np.sin(x1 / 9), 127 + 100 * np.cos(y1 / 8), x1 * 4], -1).astype(np.uint8)
    assert np.abs(crop.astype(int) - crop_face(plain, template(60), 48, share=0.7))[4:-4, 4:-4].mean() < 6


def test_small_drawings_keep_the_colours_apart():
    kps = np.array([[44.0, 50], [80, 50], [62, 70], [50, 90], [76, 90]])
    image = draw_kps_small(128, 128, kps)
    for colour, (x, y) in zip(KPS_COLOURS, kps.astype(int), strict=True):
        assert np.abs(image[y, x].astype(int) - colour).max() < 30
    assert image.shape == (128, 128, 3)


def test_dense_points_are_drawn_as_lines_of_their_parts():
    points = landmarks_of(average_scene(View()))[0]
    image = draw_kps_small(128, 128, points)
    for k, colour in ((39, (255, 0, 0)), (42, (0, 255, 0)), (50, (255, 0, 255)), (28, (0, 0, 255))):
        x, y = points[k].round().astype(int)
        near = image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).astype(int)
        assert np.abs(near - colour).sum(1).min() < 250, f"point {k}"
    assert not draw_kps_small(128, 128, points + 500).any()
    for wrong in (points[:67], points[:20], np.zeros((0, 2))):
        with pytest.raises(ValueError, match="5 2 key points or 68 2 landmarks"):
            draw_kps_small(128, 128, wrong)


def test_points_off_the_canvas_are_clipped():
    far = np.array([[-500.0, 10], [900, 10], [50, -300], [40, 900], [60, 900]])
    assert draw_kps(100, 100, far).shape == (100, 100, 3)


def test_ffhq_alignment_is_its_published_square():
    """The square's corners, by the published construction, land in the corners of the result; upright, the eyes lie at fixed places."""
    kps = np.array([[210.0, 180], [290, 200], [250, 240], [215, 270], [275, 285]])
    eyes, mouth = kps[:2].mean(0), kps[3:].mean(0)
    across, down = kps[1] - kps[0], mouth - eyes
    x = across - down[::-1] * [-1, 1]
    x *= max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8) / np.hypot(*x)
    y, centre = x[::-1] * [-1, 1], eyes + down * 0.1
    corners = np.stack([centre - x - y, centre + x - y, centre + x + y, centre - x + y])
    matrix = ffhq_matrix(kps, 256)
    assert np.allclose(corners @ matrix[:, :2].T + matrix[:, 2], np.array([[0, 0], [256, 0], [256, 256], [0, 256]]) - 0.5)
    with pytest.raises(ValueError, match="lie on one spot"):
        ffhq_matrix(np.ones((5, 2)), 256)


@given(angle=st.floats(-3, 3), zoom=st.floats(0.4, 3), dx=st.floats(-50, 50), dy=st.floats(-50, 50))
def test_ffhq_alignment_does_not_care_where_and_how_large_the_face_is(angle: float, zoom: float, dx: float, dy: float):
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = ARCFACE_112 @ turn.T + [dx, dy]
    here, there = ffhq_matrix(ARCFACE_112, 64), ffhq_matrix(moved, 64)
    assert np.allclose(ARCFACE_112 @ here[:, :2].T + here[:, 2], moved @ there[:, :2].T + there[:, 2], atol=1e-6)


def test_an_aligned_head_near_the_border_is_mirrored_and_not_black():
    image = np.full((200, 200, 3), 200, np.uint8)
    assert (align_as_ffhq(image, ARCFACE_112 * 1.5, 64) == 200).all()
    assert (align_as_ffhq(image, ARCFACE_112 * 1.5 + 60, 16) == 200).all(), "also of a head that is made much smaller"
