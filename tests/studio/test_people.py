"""Several people in one picture, views, mixes, pictures to start from: what holds whatever the weights can do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import selfsame
from selfsame.diffusion.sampling import guided_together
from selfsame.images.files import InputError, path_and_share, read_image
from selfsame.images.head import head_kps
from selfsame.mannequins.attributes import Look, View
from selfsame.mannequins.people import person_of
from selfsame.mannequins.render import PersonIn, Scene, draw
from selfsame.models.text import tower_hash
from selfsame.perception.detector import Found
from selfsame.studio.family import Family
from selfsame.studio.orders import Order
from selfsame.studio.painting import PACES
from selfsame.studio.people import people_of
from selfsame.studio.places import Match, Person, Places, Pose, matched, shown
from selfsame.studio.ready import jobs_of, told
from selfsame.studio.request import Made, Request, Strengths
from selfsame.studio.studio import Studio
from selfsame.studio.styles import read_styles
from selfsame.values.identity import Identity, LearnedWords, mixed

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = {"num_steps": 2}


@pytest.fixture(scope="module")
def studio() -> Studio:
    return selfsame.load("mannequin")


@pytest.fixture(scope="module")
def ada(studio: Studio) -> Identity:
    return studio.identity(EXAMPLES / "ada.png")


@pytest.fixture(scope="module")
def bo(studio: Studio) -> Identity:
    return studio.identity(EXAMPLES / "bo.png")


# ---------------------------------------------------------------------------------------------- places


def test_people_without_regions_stand_side_by_side(ada: Identity, bo: Identity):
    places = Places.of([Person(ada), Person(bo), Person(ada)], 128, 256)
    assert sum(np.asarray(m) for m in places.masks).min() == 1 == sum(np.asarray(m) for m in places.masks).max()
    assert [b[0] for b in places.boxes] == sorted(b[0] for b in places.boxes)
    faces, notes = shown([Person(ada), Person(bo)], [torch.zeros(1, 1, 512)] * 2, 128, 192, Strengths())
    assert not notes
    assert faces[0].kps[:, 0].max() < 96 < faces[1].kps[:, 0].min()


def test_who_is_painted_by_words_keeps_a_place_free(studio: Studio, ada: Identity, bo: Identity):
    """Their words act everywhere, but the others' faces stay out of their column."""
    vectors = studio.text[1].get_input_embeddings().weight[5:7].detach().numpy()
    ben = Identity.of_words(LearnedWords((vectors,), "<ben>", tower_hash(studio.text[1])))
    request = Request(prompt="a photo of a person beside <ben>", width=192, height=128)
    (job,) = studio.jobs(request, [Person(ada, name="ada"), Person(ben, name="ben", strengths=Strengths(adapter_scale=0.5))])
    (face,) = job.row.faces
    assert face.region is not None
    assert np.asarray(face.region)[:, :96].all()
    assert not np.asarray(face.region)[:, 96:].any()
    assert face.kps[:, 0].max() < 96
    assert job.notes == ("ben is painted by words, which have no pose or strength of their own",)
    (alone,) = studio.jobs(Request(prompt="a photo of <ben>"), [Person(ben, (0, 0, 64, 128), name="ben")])
    assert "have no region" in alone.notes[0]
    (job,) = studio.jobs(request, [Person(ben, name="ben"), Person(ada, name="ada")])
    assert job.row.faces[0].kps[:, 0].min() > 96
    (job,) = studio.jobs(replace(request, use="both", prompt="<ada>"), [replace_words(ada, ben)])
    assert job.row.faces[0].region is None, "one person's photo and words are one place"


def replace_words(who: Identity, words: Identity) -> Identity:
    assert words.words is not None
    return replace(who, words=replace(words.words, placeholder="<ada>"))


def test_one_person_alone_acts_everywhere_and_stands_as_before(ada: Identity):
    (face,), _ = shown([Person(ada)], [torch.zeros(1, 1, 512)], 128, 128, Strengths())
    assert face.region is None
    assert np.array_equal(face.kps, Pose.of(ada).in_picture(128, 128))


@given(st.integers(32, 128), st.integers(32, 256), st.integers(0, 100), st.integers(0, 100))
def test_a_face_fits_into_its_box(height: int, width: int, x: int, y: int):
    pose = Pose(np.array([[40.0, 58], [69, 60], [51, 71], [40, 84], [66, 86]]), 128, 128)
    kps = pose.in_box((x, y, x + width, y + height))
    assert (kps >= (x, y)).all()
    assert (kps <= (x + width, y + height)).all()


def test_regions_that_cannot_be_used_are_refused(ada: Identity):
    for regions, match in (
        ([(0, 0, 64, 128), None], "1 of 2 people have no region"),
        ([(0, 0, 64, 128), (64, 0, 80, 128)], "region 2 is 16 x 128"),
        ([(0, 0, 64, 128), (64, 0, 300, 128)], "inside the picture of 128 x 128"),
        ([(0, 0, 64, 128), (64, 0, 60, 128)], "left, top, right, bottom"),
        ([np.ones((64, 64)), (0, 0, 64, 128)], "region 1 is 64 x 64, the picture 128 x 128"),
        ([np.zeros((128, 128)), (0, 0, 64, 128)], "region 1 is 0 x 0"),
    ):
        with pytest.raises(InputError, match=match):
            Places.of([Person(ada, r) for r in regions], 128, 128)  # type: ignore[arg-type]
    thin = np.zeros((128, 128), np.float32)
    thin[np.arange(40, 100), np.arange(41, 101)] = 1
    for region, least, match in ((thin, 32, "region 1 is too thin"), ((0, 0, 48, 128), 64, "region 1 is 48 x 128: this base needs at least 64 x 64")):
        with pytest.raises(InputError, match=match):
            Places.of([Person(ada, region), Person(ada, (64, 0, 128, 128))], 128, 128, least)
    places = Places.of([Person(ada, (0, 0, 80, 128)), Person(ada, (64, 0, 128, 128))], 128, 128)
    assert places.notes == ("regions 1 and 2 overlap by 25% of the smaller: there both people act",)


def test_faces_are_given_to_people_so_that_likenesses_add_up_to_most():
    def at(x: float) -> Found:
        return Found(np.array([x - 10, 0, x + 10, 20]), np.full((5, 2), [x, 10.0]), 1.0)

    boxes = [(0, 0, 50, 100), (50, 0, 100, 100)]
    faces = [at(75), at(25)]
    straight = matched(np.array([[0.1, 0.9], [0.8, 0.2]]), faces, boxes)
    assert [m.ok for m in straight] == [True, True]
    assert [m.likeness for m in straight] == [0.9, 0.8]
    swapped = matched(np.array([[0.9, 0.1], [0.2, 0.8]]), faces, boxes)
    assert [m.ok for m in swapped] == [False, False]
    one = matched(np.array([[0.1], [0.8]]), faces[:1], boxes)
    assert [m.found is None for m in one] == [True, False]
    assert [m.told() for m in (one[0], swapped[0])] == ["person 1: not found", "person 1: found elsewhere (likeness 0.90)"]
    assert matched(np.array([[1.0], [0.0]]), faces[1:], boxes, ["ada", "bo"])[0].told() == "ada: in place (likeness 1.00)"
    twice = matched(np.array([[0.55, 0.6], [0.01, 0.02]]), faces, boxes, ["ada", "bo"])  # ada painted in both places
    assert [m.ok for m in twice] == [True, False]
    assert twice[1].told() == "bo: looks more like somebody else of the picture (likeness 0.01)"
    assert twice[1].to_json() == {"person": "bo", "found": True, "in_place": False, "likeness": 0.01, "box": [65.0, 0.0, 85.0, 20.0]}
    assert all(m.found is None for m in matched(np.zeros((2, 0)), [], boxes))
    around = np.ones((100, 100), np.float32)  # all but a corner, which is the other's; its box is the whole picture
    around[:50, 50:] = 0
    assert [m.ok for m in matched(np.array([[0.9, 0.1], [0.2, 0.8]]), faces, [around, 1 - around])] == [False, False]
    assert [m.ok for m in matched(np.array([[0.1, 0.9], [0.8, 0.2]]), faces, [around, 1 - around])] == [True, True]


# ---------------------------------------------------------------------------------------------- pictures


def test_each_person_is_found_where_they_stand_in_a_render(studio: Studio):
    """The assignment works on a true picture of both, so what it says of a generated one means something."""
    left, right = 300_001, 300_005
    scene = Scene(
        (PersonIn(person_of(left), Look(), View(scale=0.56, x=-0.55, y=0.2)), PersonIn(person_of(right), Look(), View(scale=0.56, x=0.55, y=0.2))), width=256
    )
    photos = [draw([Scene((PersonIn(person_of(seed), Look(), View(yaw_deg=8, y=0.16)),), "forest")])[0].image for seed in (left, right)]
    people = [Person(studio.identity(p)) for p in photos]
    picture = draw([scene])[0].image
    assert all(m.ok for m in studio.recognised(picture, people))
    assert not any(m.ok for m in studio.recognised(picture, people[::-1]))


def test_a_person_acts_in_their_region_only(studio: Studio, ada: Identity, bo: Identity):
    """Another person at the right, another picture at the right; the left differs only by what the base's own attention carries over."""
    request = Request(prompt="a photo of two people", width=256, **QUICK)
    one = studio.generate(request, [ada, bo])[0].pixels.astype(int)
    other = studio.generate(request, [ada, studio.identity(EXAMPLES / "dan.png")])[0].pixels.astype(int)
    changed = np.abs(one - other).mean((0, 2))
    assert changed[128:].mean() > 3 * changed[:128].mean()


def test_strengths_of_zero_leave_the_base_to_everybody(studio: Studio, ada: Identity, bo: Identity):
    nothing = Strengths(adapter_scale=0, controlnet_scale=0)
    request = Request(prompt="a photo of two people", width=192, **QUICK)
    base = studio.generate(request)[0].pixels
    assert np.array_equal(studio.generate(request, [Person(ada, strengths=nothing), Person(bo, strengths=nothing)])[0].pixels, base)
    assert not np.array_equal(studio.generate(request, [Person(ada, strengths=nothing), Person(bo)])[0].pixels, base)


def test_rows_of_other_people_strengths_and_windows_share_a_batch_and_stay_what_they_are(studio: Studio, ada: Identity, bo: Identity):
    orders = [
        (Request(prompt="a photo of a person", seed=1, **QUICK), ada),
        (Request(prompt="a comic of a person", seed=2, adapter_scale=0.5, controlnet_end=0.5, **QUICK), bo),
        (Request(prompt="a photo of a mug", seed=3, **QUICK), None),
        (Request(prompt="a photo of two people", seed=4, **QUICK), [Person(ada, (0, 0, 64, 128)), Person(bo, (64, 0, 128, 128))]),
    ]
    jobs = [job for request, who in orders for job in studio.jobs(request, who)]
    assert len({job.kind for job in jobs}) == 1
    together = studio.painter().paint([j.row for j in jobs], jobs[0].request, [j.request.seed for j in jobs])[0]
    for job, image in zip(jobs, together, strict=True):
        alone = studio.painter().paint([job.row], job.request, [job.request.seed])[0][0]
        assert np.abs(alone.astype(int) - image.astype(int)).max() <= 1
    assert len({j.kind for j in studio.jobs(Request(guidance_scale=2), ada)} | {jobs[0].kind}) == 2


def test_fast_rows_share_a_batch_only_when_their_windows_open_and_close_together(studio: Studio, ada: Identity, bo: Identity):
    fast = {"num_steps": 8, "speed": "fast"}
    whole, other = Request(prompt="a photo of a person", **fast), Request(prompt="a comic of a person", seed=4, adapter_scale=0.5, **fast)
    jobs = [studio.jobs(r, who)[0] for r, who in ((whole, ada), (other, bo), (Request(controlnet_end=0.5, **fast), ada), (whole, None))]
    assert len({job.kind for job in jobs}) == 3
    assert jobs[0].kind == jobs[1].kind
    together = studio.painter().paint([j.row for j in jobs[:2]], jobs[0].request, [0, 4])[0]
    for job, image in zip(jobs, together, strict=False):
        alone = studio.painter().paint([job.row], job.request, [job.request.seed])[0][0]
        assert np.abs(alone.astype(int) - image.astype(int)).max() <= 1


def test_a_warning_belongs_to_the_row_that_earned_it(studio: Studio):
    long = " ".join(["beach"] * 200)
    jobs = [job for prompt in ("a person", long) for job in studio.jobs(Request(prompt=prompt, num_steps=1))]
    notes = {i: made.notes for i, made in studio.paint_jobs(jobs)}
    assert notes[0] == ()
    assert "left out" in notes[1][0]


def test_a_picture_that_lacks_somebody_is_drawn_again(studio: Studio, ada: Identity, bo: Identity, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    def recognised(image: np.ndarray, people: object) -> list[Match]:
        seen.append(1)
        box = Found(np.zeros(4), np.zeros((5, 2)), 1.0)
        return [Match(0, box, 0.5, in_place=True), Match(1, box if len(seen) > 2 else None, 0.5, in_place=len(seen) > 2)]

    monkeypatch.setattr(studio, "recognised", recognised)
    request = Request(prompt="two people", width=192, num_steps=1)
    made = studio.generate(request, [ada, bo], retries=5)[0]
    assert len(seen) == 3
    assert made.everybody
    assert made.seed == made.request.seed != 0
    again = studio.generate(made.request, [ada, bo])[0]
    assert np.array_equal(again.pixels, made.pixels)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_start_is_changed_as_far_as_is_asked(studio: Studio, strength: float):
    start = read_image(EXAMPLES / "ada.png")
    request = Request(prompt="a photo of a person", num_steps=8, start_strength=strength)
    steps: list[int] = []
    made = studio.generate(request, start=start, on_step=lambda s: steps.append(s.num_steps))[0].pixels
    assert len(steps) == max(1, int(8 * strength)) == studio.num_calls(request, has_start=True)
    error = np.abs(made.astype(int) - start.astype(int)).mean()
    assert error < 12 if strength == 0 else error > 12


def test_changing_a_picture_is_the_end_of_a_schedule_from_the_noised_picture(studio: Studio):
    """Written out with diffusers' scheduler: noise to the first kept timestep, then guided steps."""
    start = read_image(EXAMPLES / "ada.png")
    request = Request(prompt="a photo of a person on a beach", num_steps=5, start_strength=0.6, solver="ddim", seed=3)
    clean = studio.to_latents(start, request.sized(studio.limits))
    scheduler = studio.scheduler("ddim")
    scheduler.set_timesteps(5)
    states = torch.cat([studio.text_states([p])[0] for p in ("", request.prompt)])
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(3))[None]
    latents = scheduler.add_noise(clean, noise, scheduler.timesteps[2:3])
    with torch.no_grad():
        for t in scheduler.timesteps[2:]:
            u, c = studio.unet(latents.repeat(2, 1, 1, 1), t, states).sample.chunk(2)
            latents = scheduler.step(u + 3.0 * (c - u), t, latents).prev_sample
    expected = studio.decode(latents)[0]
    made = studio.generate(request, start=start)[0].pixels
    assert np.abs(made.astype(int) - expected.astype(int)).max() <= 1


def test_fast_is_near_exact_and_exact_is_the_default(studio: Studio, ada: Identity):
    exact, fast, again = (
        studio.generate(Request(prompt="a photo of a person in a garden", num_steps=8, **more), ada)[0].pixels
        for more in ({}, {"speed": "fast"}, {"speed": "exact"})
    )
    assert np.array_equal(exact, again)
    difference = np.abs(exact.astype(int) - fast.astype(int)).mean()
    assert 0.1 < difference < 12


def test_fast_leaves_less_out_where_steps_lie_farther_apart():
    fast = PACES["fast"]
    assert fast.in_steps(50) == fast.in_steps(16) == fast
    assert [fast.in_steps(n).deep_every for n in (1, 4, 8, 12)] == [1, 1, 2, 2]
    assert PACES["exact"].in_steps(4) == PACES["exact"]


# ---------------------------------------------------------------------------------------------- views and mixes


@pytest.mark.parametrize("who", ["head", "world"])
def test_a_turned_head_moves_its_points_as_a_head_does(who: str, studio: Studio):
    def kps(yaw: float = 0, pitch: float = 0, roll: float = 0) -> np.ndarray:
        return head_kps(yaw, pitch, roll, 128) if who == "head" else studio.view(yaw, pitch, roll).kps

    front = kps()
    assert np.allclose(front[0, 1], front[1, 1], atol=0.1)
    assert abs(front[2, 0] - front[:2, 0].mean()) < 0.1
    right, up, rolled = kps(yaw=20), kps(pitch=12), kps(roll=10)
    assert right[2, 0] - right[:2, 0].mean() > 2  # the nose leads
    assert right[1, 0] - right[0, 0] < front[1, 0] - front[0, 0]
    assert (up[:, 1] < front[:, 1]).all()
    assert rolled[1, 1] < rolled[0, 1]
    left = kps(yaw=-20)
    mirrored = np.array([2 * front[2, 0], 0]) + left * (-1, 1)
    assert np.allclose(mirrored[[1, 0, 2, 4, 3]], right, atol=0.2)


def test_a_mix_is_somebody_between(ada: Identity, bo: Identity):
    for how in ("linear", "spherical", "even"):
        ends = [mixed([ada, bo], s, how).embeddings[0] for s in ((1, 0), (0, 1))]
        assert np.allclose(ends[0], ada.embeddings[0], atol=1e-5)
        assert np.allclose(ends[1], bo.embeddings[0], atol=1e-5)
        half = mixed([ada, bo], (2, 2), how).embeddings[0]
        toward = [half @ e / np.linalg.norm(half) / np.linalg.norm(e) for e in ends]
        assert min(toward) > ends[0] @ ends[1] / np.linalg.norm(ends[0]) / np.linalg.norm(ends[1])
    between = mixed([ada, bo], (0.75, 0.25), "even").embeddings[0]
    a, b = (who.embeddings[0] / np.linalg.norm(who.embeddings[0]) for who in (ada, bo))
    aside = b - (a @ b) * a  # at right angles the squared cosines are the shares
    upright = mixed([ada, replace(bo, embeddings=20 * aside[None] / np.linalg.norm(aside))], (0.75, 0.25), "even").embeddings[0]
    assert (upright @ a / np.linalg.norm(upright)) ** 2 == pytest.approx(0.75, rel=1e-4)
    assert np.linalg.norm(between) == pytest.approx(0.75 * np.linalg.norm(ada.embeddings) + 0.25 * np.linalg.norm(bo.embeddings), rel=1e-5)
    spherical = mixed([ada, bo], (1, 1), "spherical").embeddings[0]
    assert np.linalg.norm(spherical) == pytest.approx((np.linalg.norm(ada.embeddings) + np.linalg.norm(bo.embeddings)) / 2, rel=1e-5)
    for people, shares, how, match in (
        ([ada, bo], (1, 1, 1), "linear", "2 people and 3 shares"), ([ada, bo], (0, 0), "linear", "at least one above"),
        ([ada, bo], (1, -1), "linear", "numbers from 0"), ([ada, bo, ada], (1, 1, 1), "spherical", "not among 3"),
        ([ada, bo], (1, 1), "cubic", "choose linear"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            mixed(people, shares, how)


# ---------------------------------------------------------------------------------------------- orders


def test_orders_survive_their_json(tmp_path: Path):
    order = Order(prompt="p", people=(tmp_path / "a.png", tmp_path / "b.png"), regions=("0,0,64,128", "64,0,128,128"), yaw=None, which=None, retries=2)
    assert Order.of(order.request.to_json() | order.extras) == order
    assert Order.of({"face": "a.png b.png", "which": "1", "yaw": 12}, Path("/x"), is_table=True) == Order(
        face=(Path("/x/a.png"), Path("/x/b.png")), which=1, yaw=12.0
    )


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({"seed": "many"}, "field 'seed': 'many' cannot be used"),
        ({"seed": float("inf")}, "field 'seed'"),
        ({"face": 3}, "field 'face'"),
        ({"prompt": ["x"]}, "field 'prompt'"),
        ({"pose": True}, "field 'pose'"),
    ],
)
def test_fields_that_cannot_be_read_are_named(values: dict, match: str):
    with pytest.raises(InputError, match=match):
        Order.of(values)


def test_orders_that_contradict_themselves_are_refused(studio: Studio):
    photo = EXAMPLES / "ada.png"
    for order, match in (
        (Order(face=(photo,), people=(photo,)), "--face or --people"),
        (Order(regions=("0,0,64,64",)), "belongs to --people"),
        (Order(people=(photo, photo), regions=("0,0,64,64",)), "1 regions for 2 people"),
        (Order(people=(photo, photo), scales=("1", "2,3,4")), "one number, or two"),
        (Order(people=(photo, photo), regions=("left", "right")), "left,top,right,bottom"),
        (Order(face=(photo,), pose=photo, view="left"), "--pose or --view"),
        (Order(people=(photo, photo), view="left"), "is for one person"),
        (Order(face=(photo,), yaw=80), "does not show its five key points"),
        (Order(face=(photo,), view="lft"), "did you mean 'left'"),
        (Order(mix=("ada.png",)), "as in ada.png:0.3"),
        (Order(mix=(f"{photo}:0.5", f"{photo}:0.5"), mix_steps=3), "makes its own shares"),
        (Order(mix=(str(photo), str(photo)), mix_steps=3, keep=("hat",)), "a strip shows"),
        (Order(mix=(f"{photo}:x",)), "'x' is no number"),
        (Order(keep=("nose",), face=(photo,)), "--keep 'nose' is unknown"),
        (Order(keep=("glasses",)), "--keep needs --face"),
        (Order(face=(photo,), retries=99), "99 retries"),
        (Order(people=(EXAMPLES.parent / "src", photo)), "no pictures in this folder"),
        (Order(face=(photo,), start_strength=0.3), "--start-strength belongs to --start"),
        (Order(face=(photo,), mix_how="linear"), "--mix-how belongs to --mix"),
        (Order(mix=(f"{photo}:1",), mix_how="sphere"), "did you mean 'spherical'"),
        (Order(mix=(f"{photo}:1",), photos="joint"), "the mean is used"),
        (Order(prompt="a mug", retries=2), "--retries looks for people"),
        (Order(mix=(str(photo), str(photo)), mix_steps=3, retries=1), "none is drawn again"),
        (Order(people=(photo, photo), scales=("1", "3")), "--scales '3': the Image Adapter's strength 3.0"),
        (Order(mix=(f"{photo}:0", f"{photo}:0")), "--mix: "),
        (Order(people=(photo, photo), regions=("0,0,64,\u00b2", "0,0,64,64")), "left,top,right,bottom"),
    ):
        with pytest.raises(InputError, match=match):
            jobs_of(order, studio)


def test_what_never_acts_or_does_not_fit_is_said(studio: Studio, ada: Identity):
    def said(start: np.ndarray | None = None, **request: Any) -> str:
        return "; ".join(studio.jobs(Request(**request), ada, start=start)[0].notes)

    assert said() == said(num_steps=4, adapter_end=0.25) == ""
    assert said(num_steps=4, adapter_end=0.2) == "the Image Adapter never acts: no whole step of 4 lies between 0 and 0.2 of the run"
    assert said(num_steps=4, adapter_end=0.2, adapter_scale=0.0) == ""
    assert "IdentityNet never acts" in said(num_steps=16, controlnet_start=0.9, controlnet_end=0.95)
    assert "guidance never acts" in said(num_steps=4, guidance_start=0.9)
    assert "the negative prompt acts by guidance" in said(guidance_scale=1.0, negative_prompt="hats")
    assert said(np.zeros((256, 256, 3), np.uint8)) == said(np.zeros((130, 128, 3), np.uint8)) == ""
    assert "50% of the start picture, 400 x 200, is cut off at 128 x 128" in said(np.zeros((200, 400, 3), np.uint8))


@pytest.mark.parametrize(("start", "acting"), [(0.0, 16 - 4), (0.75, 4), (0.7, 4)])
def test_a_late_guidance_window_acts_at_any_speed(start: float, acting: int, studio: Studio, monkeypatch: pytest.MonkeyPatch):
    guided: list[Any] = []
    monkeypatch.setattr("selfsame.studio.painting.guided_together", lambda *how: guided.append(how) or guided_together(*how))
    studio.generate(Request(prompt="a mug", num_steps=16, speed="fast", guidance_start=start))
    assert len(guided) == acting


def test_a_face_stands_in_its_mask_whatever_its_shape(ada: Identity):
    mask = np.zeros((128, 128), np.float32)
    mask[:, :48] = mask[96:] = 1  # an L
    (face,), _ = shown([Person(ada, mask)], [torch.zeros(1, 1, 512)], 128, 128, Strengths())
    assert mask[tuple(face.kps.mean(0).round().astype(int)[::-1])] == 1
    with pytest.raises(InputError, match="region 1 holds values from 0 to 255: give a mask from 0 to 1"):
        shown([Person(ada, mask * 255)], [torch.zeros(1, 1, 512)], 128, 128, Strengths())


def test_small_people_of_a_large_picture_are_found_and_refined(studio: Studio):
    seeds = (300_001, 300_005)
    stand = [PersonIn(person_of(s), Look(), View(scale=0.5, x=x, y=0.2)) for s, x in zip(seeds, (-0.9, 0.9), strict=True)]
    small = draw([Scene(tuple(stand), width=256)])[0].image
    picture = np.full((256, 256, 3), 200, np.uint8)
    picture[64:192] = small
    who = [studio.identity(draw([Scene((PersonIn(person_of(s), Look(), View(y=0.16)),))])[0].image) for s in seeds]
    job = studio.jobs(Request(prompt="a photo of two people", height=256, width=256, num_steps=4), who)[0]
    made = Made(picture, job.request, 0, matches=tuple(studio.recognised(picture, job.people)))
    assert made.everybody
    refined = studio.refined(made, job, studio.painter(), 0.5)
    assert not refined.notes
    changed = (refined.pixels != picture).any(2)
    assert changed[:, :128].any()
    assert changed[:, 128:].any()
    assert [m.likeness for m in refined.matches] == [m.likeness for m in studio.recognised(refined.pixels, job.people)]


def test_paths_and_shares_are_told_apart():
    assert path_and_share("a/b.png:0.3") == ("a/b.png", "0.3")
    assert path_and_share("folder:1e-1") == ("folder", "1e-1")
    assert path_and_share("a:b/c.png") == ("a:b/c.png", "")
    assert Order.of({"mix": ["ada:0.3", "b.png:0.7"], "regions": ["0,0,9,9", "mask"]}, Path("/x")).mix == ("/x/ada:0.3", "/x/b.png:0.7")
    assert Order.of({"face": "my photo.png"}, Path("/x")).face == (Path("/x/my photo.png"),)
    assert Order.of({"regions": ["0,0,9,9", "mask"]}, Path("/x")).regions == ("0,0,9,9", "/x/mask")


@pytest.mark.parametrize(
    ("prompt", "result"),
    [
        ("a photo of a person in space", "a photo of a person smiling in space"),
        ("a mannequin in a city", "a mannequin in a city smiling"),
        ("", "a person smiling"),
    ],
)
def test_words_go_to_the_person(prompt: str, result: str):
    assert told(prompt, "smiling") == result
    assert told(prompt, "") == prompt


def test_what_a_photo_shows_goes_into_the_prompt(studio: Studio, tmp_path: Path):
    from selfsame.images.files import write_image

    look = Look(expression="laughing", clothes="suit", clothes_colour="red", hat="crown", glasses="round")
    photo = write_image(tmp_path / "me.png", draw([Scene((PersonIn(person_of(300_004), look, View(y=0.16)),), "studio", "photo")])[0].image)
    jobs, _, _ = jobs_of(Order(face=(photo,), prompt="a comic of a person in space", keep=("glasses", "hat", "expression")), studio)
    assert jobs[0].row.prompt == "a comic of a person laughing wearing a gold crown and round glasses in space"
    with pytest.raises(InputError, match="cannot read what a photo shows"):
        Family.described(studio, np.zeros((8, 8, 3), np.uint8), ("glasses",))


def test_people_are_told_apart_from_identities(ada: Identity):
    assert people_of(None) == ()
    assert people_of(ada) == (Person(ada),)
    assert people_of([ada, Person(ada)])[1] == Person(ada)
    with pytest.raises(InputError, match="one pose for 2 people"):
        people_of([ada, ada], Pose.of(ada))
    assert Made(np.zeros((1, 1, 3), np.uint8), Request(), 0).everybody


def test_a_style_sheet_wraps_prompts(tmp_path: Path):
    (tmp_path / "s.csv").write_text('name,prompt,negative_prompt\nink,"ink drawing of {prompt},\nfine lines",colour\nraw,grainy,\n')
    (tmp_path / "s.json").write_text('[{"name": "ink", "prompt": "ink drawing of {prompt}"}]')
    ink = Order(prompt="a person in a city", negative_prompt="hats", style="ink", style_sheet=tmp_path / "s.csv").request
    assert (ink.prompt, ink.negative_prompt, ink.style) == ("ink drawing of a person in a city,\nfine lines", "colour, hats", "none")
    assert Order(style="raw", style_sheet=tmp_path / "s.csv").request.full_prompt == "a person, grainy"
    assert Order(style="ink", style_sheet=tmp_path / "s.json").request.prompt == "ink drawing of a person"
    with pytest.raises(InputError, match="did you mean 'ink'"):
        _ = Order(style="inc", style_sheet=tmp_path / "s.json").request


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("s.json", "{", "cannot be read as json"),
        ("s.json", "{}", "holds no styles"),
        ("s.json", '[{"name": 3}]', "entry 1"),
        ("s.csv", "name,prompt\n,x\n", "entry 1 has no name"),
        ("s.csv", "", "holds no styles"),
        ("s.csv", "name;prompt\nink;x\n", "has the columns name;prompt; give name, prompt and negative_prompt, with commas"),
        ("s.csv", "name,prompt\nink,x\nink,y\n", "entry 2 has the name 'ink', which"),
        ("S.JSON", "{", "cannot be read as"),
    ],
)
def test_sheets_that_cannot_be_read_are_refused(name: str, content: str, match: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=match):
        read_styles(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_styles(tmp_path / "none.csv")


def test_small_faces_are_painted_anew_and_nothing_else_is_touched(studio: Studio):
    seeds = (300_001, 300_005)
    stand = [PersonIn(person_of(s), Look(), View(scale=0.5, x=x, y=0.2)) for s, x in zip(seeds, (-0.9, 0.9), strict=True)]
    picture = draw([Scene(tuple(stand), width=256)])[0]
    who = [studio.identity(draw([Scene((PersonIn(person_of(s), Look(), View(y=0.16)),))])[0].image) for s in seeds]
    job = studio.jobs(Request(prompt="a photo of two people", width=256, num_steps=8), who)[0]
    made = Made(picture.image, job.request, 0)
    steps: list[int] = []
    refined = studio.refined(made, job, studio.painter(), 0.5, lambda s: steps.append(1))
    assert len(steps) == 2 * 4
    changed = (refined.pixels != picture.image).any(2)
    for x0, y0, x1, y1 in picture.boxes:
        assert changed[int(y0) : int(y1), int(x0) : int(x1)].mean() > 0.5
    assert not changed[:, 116:140].any()
    assert not changed[:10].any()
    close = studio.identity(EXAMPLES / "ada.png")
    alone = Made(read_image(EXAMPLES / "ada.png"), Request(height=128, width=128), 0)
    job = studio.jobs(Request(prompt="a photo of a person"), close)[0]
    large = studio.refined(alone, job, studio.painter(), 0.5)
    assert np.array_equal(large.pixels, alone.pixels)
    assert "as large as this model paints" in large.notes[0]
    without = studio.jobs(Request(prompt="a photo of a mug", num_steps=1))
    made = [m for _, m in studio.paint_jobs(without, retries=2, refine=0.5)]
    assert "nobody's face" in made[0].notes[0]
    nobody = studio.refined(Made(np.zeros((128, 128, 3), np.uint8), job.request, 0), job, studio.painter(), 0.5)
    assert "was not found" in nobody.notes[0]
