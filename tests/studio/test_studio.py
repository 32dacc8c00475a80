"""The Python door on the shipped weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import selfsame
from selfsame.images.files import InputError
from selfsame.mannequins.people import person_of
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import neutral_scene, sample
from selfsame.models.text import tower_hash
from selfsame.studio.brush import BrushEditor
from selfsame.studio.crowd import Shown
from selfsame.studio.painting import Row
from selfsame.studio.places import Pose
from selfsame.studio.real import SDXL
from selfsame.studio.request import MANNEQUIN, EditRequest, Limits, Request
from selfsame.studio.studio import Studio
from selfsame.values.identity import Identity, LearnedWords

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def studio() -> Studio:
    return selfsame.load("mannequin")


def test_the_readme_example(studio: Studio):
    ada = studio.identity(EXAMPLES / "ada.png")
    made = studio.generate("a photo of a person in a garden", ada)
    assert made[0].pixels.shape == (128, 128, 3)


def test_the_detector_finds_held_out_faces_and_no_faces_on_things(studio: Studio):
    errors = []
    for seed in range(300_020, 300_030):
        picture = draw([neutral_scene(person_of(seed))])[0]
        found = studio.faces(picture.image)
        assert len(found) == 1
        errors.append(np.linalg.norm(found[0].kps - picture.kps[0], axis=1).mean() / (picture.boxes[0][2] - picture.boxes[0][0]))
    assert np.mean(errors) < 0.08
    assert all(not studio.faces(draw([sample("train", i).scene])[0].image) for i in (12, 13, 14, 15))


def test_the_same_person_is_more_alike_than_another(studio: Studio):
    one, two, other = (draw([s])[0].image for s in (neutral_scene(person_of(300_004)), sample("test", 32).scene, neutral_scene(person_of(300_001))))
    same, different = studio.likeness(one, two), studio.likeness(one, other)
    assert same is not None
    assert different is not None
    assert same > different


def test_rows_do_not_depend_on_their_neighbours(studio: Studio):
    request = Request(num_steps=2)
    ada, bo = (studio.embedding(studio.identity(EXAMPLES / f"{n}.png"), "mean") for n in ("ada", "bo"))
    kps = Pose.of(studio.identity(EXAMPLES / "ada.png")).in_picture(128, 128)
    rows = [Row("a photo of a person", faces=(Shown(ada, kps),)), Row("a comic of a person on a beach", faces=(Shown(bo, kps),))]
    together, _ = studio.paint(rows, request, [1, 2])
    alone, _ = studio.paint(rows[1:], request, [2])
    assert np.abs(together[1].astype(int) - alone[0].astype(int)).max() <= 2


def test_mean_and_joint_photos_differ_and_one_photo_does_not_care(studio: Studio):
    one, two = studio.identity(EXAMPLES / "ada.png"), studio.identity(EXAMPLES / "ada.png", EXAMPLES / "bo.png")
    assert studio.embedding(two, "mean").shape == (1, 1, 512)
    assert studio.embedding(two, "joint").shape == (1, 2, 512)
    assert torch.equal(studio.embedding(one, "mean"), studio.embedding(one, "joint"))


def test_key_points_follow_the_picture_they_are_put_into():
    kept = Pose(np.array([[10.0, 10], [20, 10], [15, 15], [11, 20], [19, 20]]), 64, 64)
    wide = kept.in_picture(128, 192)
    assert np.allclose(np.diff(wide, axis=0), 2 * np.diff(kept.kps, axis=0))
    assert wide[:, 0].mean() == pytest.approx(2 * (15 + 0.5) - 0.5 + 32)


def test_identities_of_other_encoders_and_unknown_models_are_refused(studio: Studio):
    stranger = replace(studio.identity(EXAMPLES / "ada.png"), encoder="arcface")
    with pytest.raises(InputError, match="'arcface'"):
        studio.generate("x", stranger)
    with pytest.raises(InputError, match="did you mean 'mannequin'"):
        selfsame.load("manequin")


def test_requests_survive_their_json():
    request = Request(prompt="p", seed=4, style="comic")
    assert Request.from_json(request.to_json()) == request
    assert Request(style="comic").full_prompt == "a comic drawing of a person"
    with pytest.raises(InputError, match="unknown fields"):
        Request.from_json({"promt": "x"})


def test_a_studio_takes_other_parts_by_name_and_refuses_unknown_ones():
    studio = Studio().with_parts(vae=(other := torch.nn.Identity()))
    assert studio.vae is other
    with pytest.raises(ValueError, match="no part 'brush'"):
        Studio().with_parts(brush=other)


@pytest.mark.parametrize("left", [True, False])
def test_key_points_off_the_canvas_are_moved_onto_it(left: bool):
    """The face of a wide photo's side must not fall off a square picture."""
    points = np.array([[30, 50], [50, 50], [40, 60], [32, 70], [48, 70]], float) + (0 if left else 180)
    moved = Pose(points, 128, 256).in_picture(128, 128)
    assert moved.min() >= 5
    assert moved.max() <= 122
    assert np.allclose(moved - moved[0], points - points[0])
    inside = np.array([[50, 50], [70, 50], [60, 60], [52, 70], [68, 70]], float)
    assert np.array_equal(Pose(inside, 128, 128).in_picture(128, 128), inside)


def test_a_window_covers_all_calls_of_a_solver_of_second_order(studio: Studio):
    """Heun calls the networks twice a step; a window of the whole run must not end after half of it."""
    assert studio.num_calls(Request(num_steps=4)) == 4
    assert studio.num_calls(Request(num_steps=4, solver="heun")) == 7
    ada = studio.identity(EXAMPLES / "ada.png")
    seen: list[bool] = []
    unet = studio.unet
    hook = unet.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["cross_attention_kwargs"] is not None), with_kwargs=True)
    studio.generate(Request(prompt="a person", num_steps=4, solver="heun"), ada)
    hook.remove()
    assert seen == [True] * 7


def test_guidance_runs_against_as_many_zeros_as_there_are_photos(studio: Studio, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    no_face = studio.instantid.no_face
    monkeypatch.setattr(studio.instantid, "no_face", lambda count, num_photos=1: asked.append(num_photos) or no_face(count, num_photos))
    both = studio.identity(EXAMPLES / "ada.png", EXAMPLES / "bo.png")
    for photos in ("joint", "mean"):
        studio.generate(Request(num_steps=1, photos=photos), both)
    assert asked == [2, 1]


def test_turbo_paints_by_its_own_weights_and_leaves_the_base_as_it_was(studio: Studio):
    ada = studio.identity(EXAMPLES / "ada.png")
    asked = Request(prompt="a photo of a person in a garden", seed=3)
    before = studio.generate(asked, ada)[0].pixels
    hurried = studio.generate(replace(asked, speed="turbo"), ada)[0]
    few = studio.generate(replace(asked, num_steps=4, guidance_scale=1.0, solver="ddim"), ada)[0].pixels
    assert (hurried.request.num_steps, hurried.request.guidance_scale, hurried.request.solver) == (4, 1.0, "ddim")
    assert not np.array_equal(hurried.pixels, few), "the LoRA counts"
    assert np.array_equal(studio.generate(asked, ada)[0].pixels, before)


def test_likeness_is_of_the_chosen_face(studio: Studio):
    import selfsame.mannequins.render as r
    from selfsame.mannequins.attributes import Look, View

    subjects = tuple(r.PersonIn(person_of(300_000 + i), Look(), View(scale=0.5 + 0.06 * i, x=-0.5 + i, y=0.2)) for i in range(2))
    pair = draw([r.Scene(subjects, width=256)])[0].image
    alone = draw([neutral_scene(person_of(300_000))])[0].image
    first, second = studio.likeness(alone, pair, which=0), studio.likeness(alone, pair, which=1)
    assert first is not None
    assert second is not None
    assert first > second
    assert studio.likeness(alone, pair) == second  # the larger face


# ------------------------------------------------------------------------------------------ learned words


@pytest.fixture(scope="module")
def ada_fox(studio: Studio) -> LearnedWords:
    """A celebrity's own rows of the token table as if they had been learned."""
    tokenizer, encoder = studio.text
    ids = tokenizer("ada fox", add_special_tokens=False)["input_ids"]
    return LearnedWords((encoder.get_input_embeddings().weight[ids].detach().numpy(),), "<x>", tower_hash(encoder))


def test_a_celebritys_own_vectors_paint_that_celebrity(studio: Studio, ada_fox: LearnedWords):
    who = Identity.of_words(ada_fox)
    named = studio.generate(Request(prompt="a photo of ada fox in space", num_steps=2))
    learned = studio.generate(Request(prompt="a photo of <x> in space", num_steps=2), who)
    assert np.array_equal(named[0].pixels, learned[0].pixels)


def test_words_and_face_in_one_call(studio: Studio, ada_fox: LearnedWords):
    both = replace(studio.identity(EXAMPLES / "ada.png"), words=ada_fox)
    prompt, made = "a photo of <x> in space", {}
    for use in ("face", "words", "both", "auto"):
        text = prompt if use != "face" else "a photo of a person in space"
        made[use] = studio.generate(Request(prompt=text, num_steps=2, use=use), both)[0].pixels  # type: ignore[arg-type]
    assert np.array_equal(made["auto"], made["words"])
    assert not np.array_equal(made["words"], made["both"])
    assert not np.array_equal(made["face"], made["both"])
    assert np.array_equal(studio.generate(Request(prompt="a photo of a person in space", num_steps=2), both)[0].pixels, made["face"])


def test_several_people_are_told_apart_by_their_words(studio: Studio, ada_fox: LearnedWords):
    tokenizer, encoder = studio.text
    ids = tokenizer("ben stone", add_special_tokens=False)["input_ids"]
    ben = replace(ada_fox, vectors=(encoder.get_input_embeddings().weight[ids].detach().numpy(),), placeholder="<y>")
    who = [Identity.of_words(w) for w in (ada_fox, ben)]
    learned = studio.generate(Request(prompt="a photo of <x> and <y> in space", num_steps=2, width=192), who)
    named = studio.generate(Request(prompt="a photo of ada fox and ben stone in space", num_steps=2, width=192))
    assert np.array_equal(named[0].pixels, learned[0].pixels)


def test_words_that_cannot_be_used_are_refused(studio: Studio, ada_fox: LearnedWords):
    photo = studio.identity(EXAMPLES / "ada.png")
    bare = Identity.of_words(ada_fox)

    def refused(request: Request, who: Identity | list[Identity], match: str) -> None:
        with pytest.raises(InputError, match=match):
            studio.generate(request, who)

    refused(Request(prompt="a person", use="words"), photo, "no learned words")
    refused(Request(prompt="a person"), bare, "does not name <x>")
    refused(Request(prompt="<x> beside <x>"), bare, "names 2 times <x>")
    refused(Request(prompt="a photo of <x>", use="both"), bare, "no photo")
    refused(Request(prompt="<x>"), replace(bare, words=replace(ada_fox, text_encoder="other")), "another text encoder")
    wide = LearnedWords((np.zeros((2, 1024), np.float32),), "<x>", "")
    refused(Request(prompt="<x>"), replace(bare, words=wide), "text towers of width 1024, this base has 128")
    refused(Request(prompt="<x> in space"), [bare, bare], "share the placeholder <x>")
    with pytest.raises(InputError, match="use 'mouth'"):
        Request(use="mouth")  # type: ignore[arg-type]


def test_rows_of_a_solver_that_draws_noise_on_the_way_do_not_depend_on_their_neighbours(studio: Studio):
    request = Request(prompt="a photo of a person", num_steps=3, solver="lcm", guidance_scale=1, height=64, width=64, seed=4)
    alone = studio.generate(replace(request, seed=5))[0].pixels
    together = studio.generate(replace(request, num_images=2))[1].pixels
    assert np.abs(alone.astype(int) - together).max() <= 1
    with pytest.raises(InputError, match="at most 50"):
        Request(num_steps=60, solver="lcm")


@pytest.mark.parametrize(
    ("asked", "limits", "steps", "guidance"),
    [
        ({}, MANNEQUIN, 16, 3.0),
        ({}, SDXL, 30, 5.0),
        ({}, BrushEditor.limits, 50, 5.0),
        ({"solver": "lcm"}, SDXL, 8, 1.0),
        ({"solver": "lcm", "num_steps": 4, "guidance_scale": 1.5}, SDXL, 4, 1.5),
        ({"num_steps": 7, "guidance_scale": 0.0}, MANNEQUIN, 7, 0.0),
        ({"solver": "lcm"}, MANNEQUIN, 8, 1.0),
    ],
)
def test_steps_and_guidance_are_the_models_own_unless_somebody_says(asked: dict[str, Any], limits: Limits, steps: int, guidance: float):
    for settled in (Request(**asked).sized(limits), EditRequest(**asked).settled(limits)):
        assert (settled.num_steps, settled.guidance_scale) == (steps, guidance)


def test_what_was_settled_is_what_the_picture_says(studio: Studio):
    """A picture repeats by its own numbers, whatever a later version's defaults are."""
    (job,) = studio.jobs("a person")
    assert (job.request.num_steps, job.request.guidance_scale) == (16, 3.0)
    assert studio.num_calls(Request(prompt="a person")) == 16
