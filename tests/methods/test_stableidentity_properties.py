"""What StableIdentity's parts promise, on tiny random models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from selfsame.adapters.words import Slots, words_inserted
from selfsame.diffusion.schedule import add_noise, scaled_linear_alphas_cumprod, target
from selfsame.methods.stableidentity.modules import CelebritySpace, WordProjection
from selfsame.methods.stableidentity.objective import TwoPhaseLoss, two_phase_loss
from selfsame.methods.stableidentity.samples import CAPTIONS, Draws, PhotoSamples, augmented, encoder_pixels, jittered, masks_of, square

ABAR = scaled_linear_alphas_cumprod()


def space(seed: int = 0) -> CelebritySpace:
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(60, 24, generator=g) * torch.linspace(0.5, 2, 24) + torch.linspace(-1, 1, 24)
    return CelebritySpace.of(table, torch.randint(0, 60, (40, 2), generator=g))


@given(st.integers(0, 1000), st.floats(0.1, 100))
@settings(max_examples=20, deadline=None)
def test_any_feature_lands_on_the_celebrities(seed: int, size: float):
    """In units of the celebrities' spread a new person's words have mean 0 and spread 1: jointly, or each word alone."""
    torch.manual_seed(seed)
    c = space()
    feature = torch.randn(3, 16) * size
    for landing, over in (("joint", (1, 2)), ("per_word", (2,))):
        net = WordProjection(c, 16, 24, landing=landing)  # type: ignore[arg-type]
        for p in net.net.parameters():
            nn.init.normal_(p)
        r = (net(feature) - c.mean) / c.std
        assert torch.allclose(r.mean(over), torch.zeros(()), atol=1e-4)
        assert torch.allclose(r.std(over, unbiased=False), torch.ones(()), atol=1e-2)


def test_without_landing_the_words_ignore_the_celebrities():
    torch.manual_seed(1)
    a = WordProjection(space(0), 16, 24, landing="none")
    b = WordProjection(space(1), 16, 24, landing="none")
    b.load_state_dict(a.state_dict())
    x = torch.randn(2, 16)
    assert torch.equal(a(x), b(x))


def test_the_space_is_no_part_of_the_weights():
    assert not [k for k in WordProjection(space(), 16, 24).state_dict() if "mean" in k or "std" in k]


def test_impossible_projections_are_refused():
    with pytest.raises(ValueError, match="depth 0"):
        WordProjection(space(), 16, 24, depth=0)
    with pytest.raises(ValueError, match="makes 2 words of 32"):
        WordProjection(space(), 16, 32)
    with pytest.raises(ValueError, match="landing 'adain'"):
        WordProjection(space(), 16, 24, landing="adain")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 names"):
        CelebritySpace.of(torch.randn(5, 4), torch.tensor([[0, 1]]))


def test_words_leave_no_trace_even_after_an_error():
    table, ids = nn.Embedding(9, 4), torch.arange(9)[None]
    before = table(ids)
    slots = Slots.after_placeholder(ids, 3, torch.ones(1, 2, 4))

    def fail_half_way() -> None:
        with words_inserted(table, slots):
            out = table(ids)
            assert torch.equal(out[0, 3:5], torch.ones(2, 4))
            assert torch.equal(out[0, [0, 1, 2, 5, 6, 7, 8]], before[0, [0, 1, 2, 5, 6, 7, 8]])
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()
    assert torch.equal(table(ids), before)
    assert not table._forward_hooks


def test_a_prompt_without_placeholder_is_untouched_and_two_are_refused():
    ids = torch.tensor([[1, 2, 3, 4], [1, 7, 3, 4]])
    slots = Slots.after_placeholder(ids, 7, torch.randn(2, 2, 5))
    assert slots.rows.tolist() == [1, 1]
    assert slots.positions.tolist() == [1, 2]
    with pytest.raises(ValueError, match="twice"):
        Slots.after_placeholder(torch.tensor([[7, 0, 7, 0]]), 7, torch.randn(1, 2, 5))
    with pytest.raises(ValueError, match="do not fit"):
        Slots.after_placeholder(torch.tensor([[0, 0, 0, 7]]), 7, torch.randn(1, 2, 5))


# ------------------------------------------------------------------------------------------ loss


def _batch(t: list[int], prediction_type: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    n = len(t)
    clean, noise, at = torch.randn(n, 4, 8, 8, generator=g), torch.randn(n, 4, 8, 8, generator=g), torch.tensor(t)
    face = (torch.rand(n, 1, 8, 8, generator=g) > 0.5).float()
    wanted = target(prediction_type, clean, noise, at, ABAR)
    return {"clean": clean, "noisy": add_noise(clean, noise, at, ABAR), "t": at, "target": wanted, "face_mask": face, "hair_mask": 1 - face}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_right_answer_costs_nothing_whatever_the_base_predicts(prediction_type: str):
    batch = _batch([5, 300, 700, 990], prediction_type)
    loss, _ = two_phase_loss(batch["target"], batch, TwoPhaseLoss(), alphas_cumprod=ABAR, prediction_type=prediction_type, scaling_factor=0.2)
    assert float(loss) < 1e-4


def test_switches():
    batch = _batch([0, 400, 999], "epsilon")
    said = batch["target"] + 0.1

    def parts(**how: object) -> dict[str, float]:
        _, found = two_phase_loss(said, batch, TwoPhaseLoss(**how), alphas_cumprod=ABAR, prediction_type="epsilon", scaling_factor=0.5)  # type: ignore[arg-type]
        return {k: float(v) for k, v in found.items()}

    assert parts(switch=0.0)["clean_face"] == 0 < parts(switch=0.0)["noise_face"]
    assert parts(switch=1.0)["noise_face"] == 0 < parts(switch=1.0)["clean_face"]
    assert parts()["clean_face"] == pytest.approx(4 * parts(is_unscaled=False)["clean_face"])
    assert "noise_hair" not in parts(hair_weight=0)
    assert parts(normalises_mask=True)["noise_face"] == pytest.approx(0.01, rel=1e-4)
    assert parts(has_mask=False)["noise_face"] == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(("boundary", "is_noise"), [("gt", [False, False, True]), ("ge", [False, True, True])])
def test_the_boundary_rule(boundary: str, is_noise: list[bool]):
    how = TwoPhaseLoss(boundary=boundary)  # type: ignore[arg-type]
    assert how.is_noise_phase(torch.tensor([599, 600, 601]), 1000).tolist() == is_noise


# ------------------------------------------------------------------------------------------ samples


def test_captions_are_the_usual_ones_in_three_media():
    assert len(CAPTIONS) == 81
    assert len(set(CAPTIONS)) == 57
    assert all(c.count("{}") == 1 for c in CAPTIONS)


@given(st.integers(0, 10**6), st.sampled_from([64, 128, 512]))
@settings(max_examples=60, deadline=None)
def test_draws_stay_inside(seed: int, size: int):
    d = Draws.of(np.random.default_rng(seed), size, PhotoSamples())
    crop = size - size // 4
    assert min(d.left, d.top) >= 0
    assert max(d.left, d.top) + crop <= size
    assert size // 2 <= d.height <= size
    assert d.y + d.height <= size
    assert d.x + d.width <= size


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_masks_follow_the_picture(seed: int):
    """A face painted white on black: after any augmentation the mask lies where the white lies."""
    labels = np.zeros((128, 128), np.uint8)
    labels[40:90, 30:100] = 1
    pixels = torch.from_numpy(labels.astype(np.float32))[None].repeat(3, 1, 1) * 2 - 1
    how = PhotoSamples(hair_peak=1)
    out, masks = augmented(pixels, masks_of(labels), Draws.of(np.random.default_rng(seed), 128, how), how)
    white = torch.nn.functional.interpolate(out[None, :1], (16, 16), mode="bicubic", align_corners=True)[0, 0] >= 0
    assert out.shape == (3, 128, 128)
    assert masks.shape == (2, 16, 16)
    assert (white != masks[0].bool()).float().mean() < 0.02
    assert masks[1].sum() == 0


def test_a_hair_mask_of_255_reaches_further_than_one_of_1():
    labels = np.zeros((512, 512), np.uint8)
    labels[101:300, 99:333] = 17
    draws, how = Draws(False, 13, 57, 400, 380, 20, 30), PhotoSamples()
    wide, thin = (augmented(torch.zeros(3, 512, 512), masks_of(labels, hair_peak=peak), draws, how)[1][1] for peak in (255, 1))
    assert (wide >= thin).all()
    assert wide.sum() > thin.sum()


def test_the_encoders_crop():
    photo = np.zeros((512, 512, 3), np.uint8)
    photo[70:446, 64:440] = 255
    assert encoder_pixels(photo).shape == (3, 224, 224)
    assert encoder_pixels(photo).min() == 1
    assert encoder_pixels(square(photo, 128), 64).shape == (3, 64, 64)


def test_jitter_changes_little_and_none_when_asked():
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    rng = np.random.default_rng(1)
    assert not np.array_equal(jittered(photo, PhotoSamples(), rng), photo)
    assert np.array_equal(jittered(photo, PhotoSamples(brightness=0, contrast=0, saturation=0, hue=0), rng), photo)
