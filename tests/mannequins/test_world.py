"""The world is exact, repeatable and free of leaks between splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsame.mannequins import paint
from selfsame.mannequins.attributes import EXPRESSIONS, SCENES, STYLES, Look, View
from selfsame.mannequins.clips import clip
from selfsame.mannequins.people import FIRST_NAMES, LAST_NAMES, SPLITS, celebrities, person_named, person_of, split_person
from selfsame.mannequins.render import PersonIn, Scene, ThingIn, draw, faces_of, landmarks_of, signature
from selfsame.mannequins.scenes import BACKDROPS
from selfsame.mannequins.solids import rotation
from selfsame.mannequins.styles import STYLE_PAINTERS
from selfsame.mannequins.things import THING_KINDS, thing_of
from selfsame.mannequins.world import lent_kps, neutral_scene, sample


def test_the_promised_numbers_of_scenes_styles_names_and_celebrities():
    assert len(SCENES) >= 10
    assert set(SCENES) == set(BACKDROPS)
    assert len(STYLES) >= 7
    assert set(STYLES) == set(STYLE_PAINTERS)
    assert len(set(FIRST_NAMES)) == len(set(LAST_NAMES)) == 64
    assert len(set(celebrities())) == 326
    assert {f for f, _ in celebrities()} == set(FIRST_NAMES)
    assert {n for _, n in celebrities()} == set(LAST_NAMES)


def test_splits_are_disjoint():
    ranges = sorted((start, start + count) for start, count in SPLITS.values())
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    with pytest.raises(ValueError, match="choose 0 to"):
        split_person("test", 10**6)


@pytest.mark.parametrize("i", [0, 9, 11, 13])
def test_a_sample_is_a_function_of_its_number(i: int):
    a, b = (draw([sample("train", i).scene])[0] for _ in range(2))
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.labels, b.labels)
    assert sample("train", i).caption == sample("train", i).caption


@pytest.mark.parametrize("rows", [range(6), (12, 13, 14, 15, 28, 29), (11, 43)], ids=["people", "things", "groups"])
def test_a_batch_is_its_pictures_one_by_one(rows: Sequence[int]):
    """A batch on a GPU takes the same path as this one: windows of all its pictures together, points of all in one row."""
    scenes = [sample("train", i).scene for i in rows]
    scenes = [s for s in scenes if signature(s) == signature(scenes[0])]
    together = draw(scenes)
    for scene, picture in zip(scenes, together, strict=True):
        alone = draw([scene])[0]
        assert np.abs(alone.image.astype(int) - picture.image.astype(int)).max() <= 1
        assert (alone.labels != picture.labels).mean() < 1e-3


def test_scenes_of_different_kinds_are_not_drawn_together():
    with pytest.raises(ValueError, match="signature"):
        draw([sample("train", 0).scene, sample("train", 13).scene])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 20_000), yaw=st.floats(-35, 35), roll=st.floats(-10, 10), expression=st.sampled_from(EXPRESSIONS))
def test_key_points_lie_on_their_features(seed: int, yaw: float, roll: float, expression: str):
    """An eye's point is on an eye, the nose's on the nose, in any pose, as long as nothing hides it."""
    view = View(yaw_deg=yaw, roll_deg=roll, scale=0.72, y=0.15)
    scene = Scene((PersonIn(person_of(seed), Look(expression=expression), view),))
    picture = draw([scene])[0]
    eyes = np.argwhere(picture.labels == paint.EYES)[:, ::-1]
    for point in picture.kps[0][:2]:
        if abs(yaw) < 25:
            assert np.linalg.norm(eyes - point, axis=1).min() < 4
    x, y = picture.kps[0][2].round().astype(int)
    assert picture.labels[y, x] in (paint.NOSE, paint.SKIN, paint.HAIR)
    assert picture.kps[0][0, 0] < picture.kps[0][1, 0]


def test_all_parts_of_a_dressed_face_are_labelled():
    look = Look(hat="cap", glasses="round")
    bald = draw([Scene((PersonIn(person_of(300_012), look, View(scale=0.7, y=0.1)),))])[0]
    haired = draw([neutral_scene(person_of(s)) for s in range(8)])
    seen = set(np.unique(bald.labels)) | set(np.unique(np.stack([p.labels for p in haired])))
    assert seen >= {0, paint.SKIN, paint.HAIR, paint.EYES, paint.BROWS, paint.NOSE, paint.MOUTH, paint.EARS, paint.NECK, paint.CLOTH, paint.HAT, paint.GLASSES}


def test_depth_is_nearest_at_the_nose_and_empty_behind():
    picture = draw([neutral_scene(person_of(3))])[0]
    x, y = picture.kps[0][2].round().astype(int)
    assert picture.depth[y, x] >= np.percentile(picture.depth, 97)
    assert (picture.depth[picture.labels == 0] == 0).mean() > 0.98


def test_mirrored_pose_mirrors_key_points():
    kps, _ = faces_of(Scene((PersonIn(person_of(5), Look(), View(yaw_deg=20)),)))
    back, _ = faces_of(Scene((PersonIn(person_of(5), Look(), View(yaw_deg=-20)),)))
    flipped = back[0][[1, 0, 2, 4, 3]] * [-1, 1] + [127, 0]
    assert np.allclose(kps[0], flipped, atol=0.05)


def test_dense_points_agree_with_the_five_and_lie_on_their_parts():
    """Lips on the mouth, brows on brows, and the five points among the sixty-eight."""
    on = {name: [] for name in ("mouth", "brows")}
    for i in (k for k in range(96) if sample("train", k).kind == "person"):
        scene = sample("train", i).scene
        points, kps = landmarks_of(scene)[0], faces_of(scene)[0][0]
        assert np.allclose(points[[30, 48, 54]], kps[2:], atol=1e-3), "nose and corners of the mouth"
        width = np.linalg.norm(kps[1] - kps[0])
        assert np.abs([points[36:42].mean(0) - kps[0], points[42:48].mean(0) - kps[1]]).max() < 0.12 * width
        labels = draw([scene])[0].labels
        for name, rows in (("mouth", range(49, 54)), ("brows", (18, 19, 20, 23, 24, 25))):
            x, y = points[list(rows)].round().astype(int).clip(1, 126).T
            near = np.stack([labels[y + dy, x + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
            on[name].append(np.any(near == paint.LABELS.index(name), axis=0).mean())
    assert np.median(on["mouth"]) == 1
    assert np.mean(on["brows"]) > 0.8  # some are hidden by hats, hair and glasses


def test_dense_points_tell_the_expression():
    def opening(expression: str) -> float:
        points = landmarks_of(Scene((PersonIn(person_of(5), Look(expression=expression), View()),)))[0]
        return float(points[66, 1] - points[62, 1])

    assert opening("laughing") > opening("neutral") + 3


def test_lent_key_points_are_somebody_elses_in_the_same_view():
    indices = [i for i in range(64) if sample("train", i).kind == "person"]
    own = np.stack([faces_of(sample("train", i).scene)[0][0] for i in indices])
    lent = np.stack([lent_kps("train", i) for i in indices])
    assert np.array_equal(lent[0], lent_kps("train", indices[0]))
    width = np.linalg.norm(own[:, 1] - own[:, 0], axis=1)
    away = np.linalg.norm(lent - own, axis=2).mean(1) / width
    assert away.min() > 0  # another face
    assert np.median(away) < 0.25  # in the same place

    def turn(kps: np.ndarray) -> np.ndarray:  # where the nose stands between the eyes
        return (kps[:, 2, 0] - kps[:, 0, 0]) / (kps[:, 1, 0] - kps[:, 0, 0])

    assert np.corrcoef(turn(own), turn(lent))[0, 1] > 0.9  # turned as far


def test_rotation_is_a_rotation():
    r = rotation(30, -10, 5)
    assert np.allclose(r @ r.T, np.eye(3))
    assert np.linalg.det(r) == pytest.approx(1)


def test_every_name_pair_is_somebody_and_halves_mean_what_they_should():
    a, b = person_named("ada", "fox"), person_named("ada", "holm")
    assert a.first == b.first
    assert a.last != b.last
    with pytest.raises(ValueError, match="not one of the world"):
        person_named("nobody", "fox")


def test_identity_changes_shape_not_only_colour():
    """Two people of the same colours still differ where their faces are drawn."""
    a = person_of(11)
    colours = {name: getattr(a.first, name) for name in ("skin", "undertone", "hair_colour", "hair_shade")}
    b = replace(person_of(12), first=replace(person_of(12).first, **colours))
    one, two = draw([neutral_scene(a)])[0], draw([neutral_scene(b)])[0]
    assert (one.labels != two.labels).mean() > 0.02


def test_things_have_kinds_textures_and_named_parts():
    assert len(THING_KINDS) >= 8
    labels = set()
    for seed in range(24):
        picture = draw([Scene((ThingIn(thing_of(seed), View(pitch_deg=-15, scale=0.75)),))])[0]
        labels |= set(np.unique(picture.labels[picture.labels > 0]))
    assert labels >= {paint.FIRST_PART + i for i in range(5)}


def test_a_clip_starts_with_its_scene_and_moves():
    scene = sample("train", 13).scene
    frames = clip(scene, 4, seed=1)
    assert frames[0] == scene
    assert frames == clip(scene, 4, seed=1)
    assert frames[3].subjects != scene.subjects
    with pytest.raises(ValueError, match="at least 1"):
        clip(scene, 0, seed=1)
