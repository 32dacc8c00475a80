"""Learning a person: resumable, deterministic, clear about bad photos. Random parser and face transformer; all else as shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsame.images.files import InputError, read_image
from selfsame.mannequins import paint
from selfsame.methods.stableidentity.method import FreeWords, celebrity_space, name_ids
from selfsame.methods.stableidentity.samples import square
from selfsame.perception.face_vit import FaceViT
from selfsame.perception.parser import FaceParser
from selfsame.recipes.stableidentity import Learning, Samples, framed, learn, photo_of, words_module
from selfsame.studio.studio import Studio
from selfsame.training.loop import Progress

ADA = Path(__file__).parents[2] / "examples/ada.png"
SHORT = Learning(steps=4, batch_size=2, look_every=0)


@pytest.fixture(scope="module")
def studio() -> Studio:
    torch.manual_seed(0)
    return Studio().with_parts(parser=FaceParser().eval(), face_vit=FaceViT().eval())


def test_a_resumed_learning_equals_an_uninterrupted_one(studio: Studio, tmp_path: Path):
    whole = learn(studio, [ADA], "<ada>", tmp_path / "a", SHORT)

    def stop_at_two(p: Progress) -> None:
        if p.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(studio, [ADA], "<ada>", tmp_path / "b", replace(SHORT, log_every=1), on_progress=stop_at_two)
    again = learn(studio, [ADA], "<ada>", tmp_path / "b", SHORT)
    assert whole.words is not None
    assert again.words is not None
    assert np.array_equal(whole.words.vectors[0], again.words.vectors[0])
    assert dict(whole.words.about) == {"base": "mannequin", "method": "stableidentity", "steps": 4, "seed": 0}
    assert whole.num_photos == 1
    assert (tmp_path / "a/samples/0000004.png").exists()


def test_another_persons_checkpoint_is_not_continued(studio: Studio, tmp_path: Path):
    learn(studio, [ADA], "<ada>", tmp_path / "a", replace(SHORT, steps=1))
    with pytest.raises(ValueError, match="holds a run on <ada>"):
        learn(studio, [ADA.with_name("bo.png")], "<bo>", tmp_path / "a", SHORT)


def test_learning_leaves_the_base_untouched(studio: Studio, tmp_path: Path):
    before = {k: v.clone() for part in (studio.unet, studio.text[1], studio.vae) for k, v in part.state_dict().items()}
    learn(studio, [ADA], "<ada>", tmp_path / "a", replace(SHORT, steps=1))
    after = {k: v for part in (studio.unet, studio.text[1], studio.vae) for k, v in part.state_dict().items()}
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not studio.text[1].get_input_embeddings()._forward_hooks


def test_textual_inversion_starts_at_the_celebrities_mean(studio: Studio):
    net = words_module(studio, replace(SHORT, method="textual-inversion"))
    assert isinstance(net, FreeWords)
    space, _ = celebrity_space(*studio.text, ["ada fox", "ben stone", "cleo tanaka"])
    assert net(torch.zeros(3, 128)).shape == (3, 2, 128)
    assert net.words.shape == space.mean.shape


def test_names_that_are_not_two_tokens_are_skipped_and_told(studio: Studio):
    ids, skipped = name_ids(studio.text[0], ["ada fox", "ada", "ada fox stone", "ben stone"])
    assert ids.shape == (2, 2)
    assert skipped == ("ada", "ada fox stone")


def test_samples_depend_on_the_step_alone(studio: Studio):
    photo = photo_of(studio, read_image(ADA), 255, "ada")
    a, b = (Samples(studio, [photo], SHORT, "<ada>", 2) for _ in range(2))
    one, two = a.batch(7), b.batch(7)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["noisy"], a.batch(8)["noisy"])
    assert one["face_mask"].shape == (2, 1, 16, 16)
    assert a.shown(4).shape == (512, 256, 3)


def test_several_photos_are_averaged_or_taken_in_turn(studio: Studio):
    photos = [photo_of(studio, read_image(ADA.with_name(f"{n}.png")), 255, n) for n in ("ada", "bo")]
    mean = Samples(studio, photos, replace(SHORT, batch_size=8), "<ada>", 2).batch(0)["features"]
    each = Samples(studio, photos, replace(SHORT, batch_size=8, features="one"), "<ada>", 2).batch(0)["features"]
    assert len(mean.unique(dim=0)) <= 2 < len(each.unique(dim=0))


def test_a_face_is_framed_inside_its_picture(studio: Studio):
    image = read_image(ADA)
    (found,) = studio.faces(image)
    wide = np.concatenate([np.zeros_like(image), image], 1)
    moved = replace(found, box=found.box + np.array([128, 0, 128, 0]), kps=found.kps + np.array([128, 0]))
    assert framed(wide, moved).shape == (128, 128, 3)
    assert np.abs(framed(wide, moved).astype(int) - framed(image, found).astype(int)).mean() < 3


def test_faces_too_small_to_learn_from_are_refused(studio: Studio):
    image = read_image(ADA)
    canvas = np.full((128, 128, 3), 128, np.uint8)
    canvas[20:100, 24:104] = square(image, 80)
    with pytest.raises(InputError, match="too small to learn from"):
        photo_of(studio, canvas, 255, "far.png")
    with pytest.raises(InputError, match="no face was found"):
        photo_of(studio, np.full((128, 128, 3), 90, np.uint8), 255, "wall.png")


def test_the_parser_has_the_pictures_size_and_a_persons_parts(studio: Studio):
    from selfsame.perception.parser import PARSED, overlap, parse

    assert parse(studio.parser, np.zeros((100, 52, 3), np.uint8)).shape == (100, 52)
    truth = np.array([[[paint.SKIN, paint.SKIN, paint.HAIR, 0]]])
    scores = overlap(np.array([[[paint.SKIN, 0, paint.HAIR, 0]]]), truth)
    assert scores["skin"] == 0.5
    assert scores["hair"] == 1
    assert np.isnan(scores["hat"])
    assert len(PARSED) == 12


def test_the_run_says_what_it_was(studio: Studio, tmp_path: Path):
    learn(studio, [ADA], "<ada>", tmp_path / "a", replace(SHORT, steps=1))
    said = json.loads((tmp_path / "a/run.json").read_text())
    assert said["decay"] == "constant"
    assert said["betas"] == [0.9, 0.999]
