"""MimicBrush's training: what samples promise, what learns, what is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsame.mannequins.clips import clip_scene
from selfsame.mannequins.render import draw
from selfsame.methods.mimicbrush import samples
from selfsame.methods.mimicbrush.method import MimicBrush, Reference, inpaint_channels, predict, widened
from selfsame.methods.mimicbrush.objective import MimicBrushTrainer, mimicbrush_loss
from selfsame.methods.mimicbrush.samples import Pair, PairSamples, gentle, training_sample
from selfsame.values.conditioning import Conditioning
from tests.goldens import mimicbrush_recipe as recipe

STILL = PairSamples(brightness=0, contrast=0, saturation=0, hue=0, rotate_deg=0, resize_low=1, resize_high=1, flip=0, warp=0)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return [draw([scene])[0].image for scene in clip_scene("validation", 3, 4)]


def tiny_base() -> UNet2DConditionModel:
    unet = recipe.fill(UNet2DConditionModel(**recipe.UNET, in_channels=4), "referencenet")
    assert isinstance(unet, UNet2DConditionModel)
    return unet


def batch_of(rows: int, channels: int, tokens: int, width: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    return {
        "noisy": noise(rows, channels, 16, 16), "t": torch.randint(0, 1000, (rows,), generator=g), "target": noise(rows, channels, 16, 16),
        "mask": (noise(rows, 1, 16, 16) > 0).float(), "collage": noise(rows, channels, 16, 16), "reference": noise(rows, channels, 16, 16),
        "depth": noise(rows, 1, 128, 128).abs(), "image_states": noise(rows, tokens, width), "with_reference": torch.tensor([True, False] * (rows // 2)),
    }  # fmt: skip


def fresh(lora_rank: int = 0) -> MimicBrush:
    torch.manual_seed(0)
    return MimicBrush.from_base(tiny_base(), 12, lora_rank=lora_rank).trainable()


# ------------------------------------------------------------------------------------------ samples


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 140))
def test_grid_masks_hide_whole_cells_and_never_nothing(seed: int, size: int):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, size, (int(rng.integers(0, 6)), 2))
    how = PairSamples(match_rate=0.05, other_rate=0.0)
    mask = samples.grid_mask(size, points, rng, how)
    assert mask.shape == (size, size)
    assert mask.any()
    edges = np.flatnonzero((mask[:, 1:] != mask[:, :-1]).any(0))
    assert len(edges) < how.grid_high


def test_cells_with_matches_are_hidden_more_often():
    how = PairSamples(grid_low=4, grid_high=4)
    points = np.array([[5.0, 5.0]])
    hidden = np.mean([samples.grid_mask(64, points, np.random.default_rng(i), how)[[2, 60], [2, 60]] for i in range(2000)], 0)
    assert hidden[0] == pytest.approx(0.75, abs=0.04)
    assert hidden[1] == pytest.approx(0.50, abs=0.04)


def test_matches_of_a_picture_with_itself_are_everywhere_and_with_noise_nowhere(frames: list[np.ndarray]):
    own = samples.matches(frames[0], frames[0])
    noise = np.random.default_rng(0).integers(0, 256, frames[0].shape).astype(np.uint8)
    assert len(own) > 10
    assert len(samples.matches(frames[0], noise)) < len(own) / 5
    assert samples.matches(np.zeros((64, 64, 3), np.uint8), noise).shape == (0, 2)


def test_alikeness_is_1_for_equals_and_falls_along_a_clip(frames: list[np.ndarray]):
    assert samples.alikeness(frames[0], frames[0]) == pytest.approx(1, abs=1e-4)
    assert samples.alikeness(frames[0], frames[3]) < samples.alikeness(frames[0], frames[1]) < 1


def test_only_pairs_in_the_band_count(frames: list[np.ndarray]):
    wide, none = PairSamples(ssim_low=-1, ssim_high=1), PairSamples(ssim_low=0.9999, ssim_high=1)
    rng = np.random.default_rng(0)
    assert sum(inside for *_, inside in samples.chosen_pairs(frames, 3, rng, wide)) == 3
    assert not any(inside for *_, inside in samples.chosen_pairs(frames, 3, rng, none))


def test_without_augmentation_a_sample_is_its_pair(frames: list[np.ndarray]):
    made = training_sample(Pair(frames[0], frames[1]), np.random.default_rng(0), STILL)
    assert np.abs(made.source.astype(int) - frames[0]).max() <= 1
    assert np.abs(made.reference.astype(int) - frames[1]).max() <= 1


def test_mask_and_depth_move_with_the_source():
    source = np.zeros((64, 64, 3), np.uint8)
    source[20:40, 10:30] = 255
    thing = source[..., 0] > 0
    how = replace(PairSamples(), brightness=0, contrast=0, saturation=0, hue=0)
    for seed in range(10):
        made = training_sample(Pair(source, source, thing, thing.astype(np.uint8) * 200), np.random.default_rng(seed), how)
        assert made.depth is not None
        assert np.array_equal(made.mask, made.depth > 0)
        inside = made.source[..., 0] > 127
        assert (inside & made.mask).sum() > 0.8 * made.mask.sum()


def test_a_clip_hides_its_thing_by_lot_and_a_still_always(frames: list[np.ndarray]):
    thing = np.zeros(frames[0].shape[:2], bool)
    thing[40:80, 50:90] = True
    how = replace(STILL, object_share=0.5)
    clips = [training_sample(Pair(frames[0], frames[1], thing), np.random.default_rng(i), how) for i in range(200)]
    assert np.mean([m.hides_thing for m in clips]) == pytest.approx(0.5, abs=0.12)
    assert all(np.array_equal(m.mask, thing) == m.hides_thing for m in clips)
    for share in (0.0, 0.5):
        still = training_sample(Pair(frames[0], frames[0], thing), np.random.default_rng(0), replace(how, object_share=share))
        assert still.hides_thing
        assert np.array_equal(still.mask, thing)
    assert not training_sample(Pair(frames[0], frames[1], thing), np.random.default_rng(0), STILL).hides_thing


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_rough_masks_are_whole_cells_that_hold_the_thing(seed: int):
    rng = np.random.default_rng(seed)
    thing = np.zeros((64, 64), bool)
    y, x = rng.integers(8, 40, 2)
    thing[y : y + 15, x : x + 9] = True
    mask = samples.rough_mask(thing, rng, replace(STILL, rough=6))
    assert mask[thing].all()
    cells = mask.reshape(8, 8, 8, 8).mean((1, 3))
    assert set(np.unique(cells)) <= {0.0, 1.0}
    assert np.array_equal(samples.rough_mask(thing, rng, STILL), thing)


def test_common_jitter_changes_both_looks_alike(frames: list[np.ndarray]):
    def apart(common: float) -> float:
        how = replace(STILL, brightness=0.4, hue=0.1, common=common)
        made = [training_sample(Pair(frames[0], frames[0].copy()), np.random.default_rng(i), how) for i in range(12)]
        return float(np.mean([np.abs(m.source.astype(int) - m.reference).mean() for m in made]))

    assert apart(1.0) < 1
    assert apart(0.75) < 0.5 * apart(0.0)


def test_samples_are_functions_of_their_seed(frames: list[np.ndarray]):
    one, two, other = (training_sample(Pair(frames[0], frames[1]), np.random.default_rng(s), PairSamples()) for s in (1, 1, 2))
    assert np.array_equal(one.source, two.source)
    assert np.array_equal(one.mask, two.mask)
    assert not np.array_equal(one.source, other.source)


def test_gentle_augmentation_changes_less(frames: list[np.ndarray]):
    def change(how: PairSamples) -> float:
        made = [training_sample(Pair(frames[0], frames[1]), np.random.default_rng(i), how).source for i in range(8)]
        return float(np.mean([np.abs(m.astype(int) - frames[0]).mean() for m in made]))

    assert change(gentle(PairSamples())) < 0.7 * change(PairSamples())


@pytest.mark.parametrize(
    "wrong",
    [
        {"ssim_low": 0.9, "ssim_high": 0.3},
        {"grid_low": 0},
        {"grid_low": 5, "grid_high": 4},
        {"resize_low": 0},
        {"match_rate": 1.5},
        {"drop_depth": -0.1},
        {"rough": -1},
        {"common": 2},
    ],
)
def test_impossible_numbers_are_refused(wrong: dict):
    with pytest.raises(ValueError, match="give"):
        PairSamples(**wrong)


# ------------------------------------------------------------------------------------------ learning


def test_a_widened_net_starts_as_its_base():
    base = tiny_base()
    noisy, tokens = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 32)
    wide = widened(base, 13)
    out = predict(wide, noisy, torch.tensor(5), Conditioning(tokens, inpaint=inpaint_channels(torch.ones(2, 1, 16, 16), noisy, noisy)))
    assert torch.allclose(out, base(noisy, torch.tensor(5), tokens).sample, atol=1e-6)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_everything_that_should_learn_gets_a_gradient(lora_rank: int):
    method = fresh(lora_rank)
    trainer = MimicBrushTrainer(method, torch.zeros(5, 12))
    loss, parts = mimicbrush_loss(trainer, batch_of(4, 4, 5, 12))
    loss.backward()
    assert loss.item() == pytest.approx(parts["plain"].item())
    learning = {n for n, p in trainer.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for n, p in trainer.named_parameters() if n in learning)
    in_net = {n for n in learning if "reference_net" in n}
    assert in_net
    assert all(".lora_" in n for n in in_net) == bool(lora_rank)


def test_the_weight_on_the_mask_moves_the_loss_toward_it():
    trainer = MimicBrushTrainer(fresh(), torch.zeros(5, 12))
    batch = batch_of(2, 4, 5, 12)
    with torch.no_grad():
        heavy, _ = mimicbrush_loss(trainer, batch, 1e6)
        each = [mimicbrush_loss(trainer, {k: v[i : i + 1] for k, v in batch.items()})[1]["inside"] for i in range(2)]
    assert float(heavy) == pytest.approx(float(sum(each)) / 2, rel=1e-3), "each picture's hidden part counts alike"


def test_a_dropped_reference_is_never_looked_at_and_another_one_changes_the_prediction():
    trainer = MimicBrushTrainer(fresh(), torch.zeros(5, 12)).eval()
    batch = batch_of(2, 4, 5, 12)
    other = batch | {"reference": batch["reference"].flip(0) * 3, "image_states": batch["image_states"] + 1}
    names = ("noisy", "t", "mask", "collage", "depth", "reference", "image_states", "with_reference")
    with torch.no_grad():
        a, b = (trainer(*(x[n] for n in names)) for x in (batch, other))
    assert not torch.allclose(a[0], b[0], atol=1e-4)
    assert torch.allclose(a[1], b[1], atol=1e-6)


def test_the_ablations_leave_out_what_they_say():
    batch = batch_of(2, 4, 5, 12)
    names = ("noisy", "t", "mask", "collage", "depth", "reference", "image_states", "with_reference")
    torch.manual_seed(0)
    method = MimicBrush.from_base(tiny_base(), 12)
    for switches, silent in (({"use_net": False}, "reference"), ({"use_tokens": False}, "image_states")):
        trainer = MimicBrushTrainer(method, torch.zeros(5, 12), **switches).eval()
        with torch.no_grad():
            a, b = (trainer(*(x[n] for n in names)) for x in (batch, batch | {silent: batch[silent] + 1}))
        assert torch.allclose(a, b, atol=1e-6)
        trainer.detach()
    trainer = MimicBrushTrainer(method, torch.zeros(5, 12), pooled=True).eval()
    others = batch["image_states"].clone()
    others[:, 1:] += 1
    with torch.no_grad():
        a, b, c = (trainer(*(x[n] for n in names)) for x in (batch, batch | {"image_states": others}, batch | {"image_states": batch["image_states"] + 1}))
    assert torch.allclose(a, b, atol=1e-6), "CLIP's first token alone is told"
    assert not torch.allclose(a, c, atol=1e-5)
    trainer.detach()


def test_a_net_that_always_looks_at_one_timestep_is_saved_so_and_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    method = fresh()
    batch = batch_of(2, 4, 5, 12)
    names = ("noisy", "t", "mask", "collage", "depth", "reference", "image_states", "with_reference")
    trainer = MimicBrushTrainer(method, torch.zeros(5, 12)).eval()
    seen: list[Tensor] = []
    method.reference_net.register_forward_pre_hook(lambda net, args: seen.append(args[1]))
    with torch.no_grad():
        own = trainer(*(batch[n] for n in names))
        method.reference_timestep = 0
        fixed = trainer(*(batch[n] for n in names))
    assert torch.equal(seen[0], batch["t"])
    assert not seen[1].any()
    assert not torch.allclose(own[0], fixed[0], atol=1e-5)
    trainer.detach()
    method.save_pretrained(tmp_path)
    again = MimicBrush.from_pretrained(tmp_path, tiny_base())
    assert again.reference_timestep == 0
    calls: list[Tensor] = []
    again.reference_net.register_forward_pre_hook(lambda net, args: calls.append(args[1]))
    kept = Reference(again.reference_net, batch["reference"][:1], torch.zeros(1, 5, 32), again.reference_timestep)
    assert kept.at(900) is kept.at(20)
    assert len(calls) == 1


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, lora_rank: int):
    method = fresh(lora_rank)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.01 * torch.randn_like(p) * p.requires_grad)
    method.save_pretrained(tmp_path)
    again = MimicBrush.from_pretrained(tmp_path, tiny_base())
    assert again.fusion == method.fusion
    assert not again.pooled
    batch = batch_of(2, 4, 5, 12)
    with torch.no_grad():
        a, b = (mimicbrush_loss(MimicBrushTrainer(m, torch.zeros(5, 12)).eval(), batch)[0] for m in (method, again))
    assert float(a) == pytest.approx(float(b), abs=1e-6)


def test_additions_to_another_base_are_refused_but_may_be_trained_on(tmp_path: Path):
    fresh(2).save_pretrained(tmp_path)
    other = tiny_base()
    with torch.no_grad():
        other.conv_in.weight.add_(0.1)
    with pytest.raises(ValueError, match="this is another base"):
        MimicBrush.from_pretrained(tmp_path, other)
    moved = MimicBrush.from_pretrained(tmp_path, other, to_train=True)
    assert torch.equal(moved.reference_net.unet.conv_in.weight, other.conv_in.weight)
    moved.save_pretrained(tmp_path / "moved")
    MimicBrush.from_pretrained(tmp_path / "moved", other)


def test_files_of_another_model_are_refused(tmp_path: Path):
    fresh(2).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"image_width": 12, "lora_rank": 0, "fusion": "concat"}')
    with pytest.raises(ValueError, match="reference_net does not fit"):
        MimicBrush.from_pretrained(tmp_path, tiny_base())


@pytest.mark.parametrize("use_net", [True, False])
def test_every_part_that_learns_gets_a_gradient_also_when_no_row_has_a_reference(use_net: bool):
    """Several processes wait for all of them."""
    method = fresh(2)
    method.use_net = use_net
    trainer = MimicBrushTrainer(method.trainable(), torch.zeros(5, 12))
    batch = batch_of(2, 4, 5, 12) | {"with_reference": torch.zeros(2, dtype=torch.bool)}
    mimicbrush_loss(trainer, batch)[0].backward()
    assert all(p.grad is not None for p in trainer.parameters() if p.requires_grad)
