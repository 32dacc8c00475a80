"""What MimicBrush's parts promise, on the goldens' tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsame.methods.mimicbrush import pictures
from selfsame.methods.mimicbrush.checkpoint import POSITION_IDS, mimicbrush_from_official, mimicbrush_to_official
from selfsame.methods.mimicbrush.method import MimicBrush, Reference, predict
from selfsame.methods.mimicbrush.modules import fused_paths, trimmed
from selfsame.values.conditioning import Conditioning, ReferenceCondition, stacked
from tests.goldens import mimicbrush_recipe as recipe

T = torch.tensor(321)


@pytest.fixture(scope="module")
def method() -> MimicBrush:
    return recipe.method()


def inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, 16, 16, generator=g), torch.randn(rows, 9, 16, 16, generator=g), torch.randn(rows, 5, 32, generator=g)


def test_without_a_reference_the_attached_net_is_the_plain_one_and_detached_it_is_untouched(method: MimicBrush):
    noisy, channels, tokens = inputs(2)
    c = Conditioning(tokens, inpaint=channels)
    before = repr(method.unet), predict(method.unet, noisy, T, c)
    with method.attached() as unet:
        nobody = ReferenceCondition({}, torch.tensor([-1, -1]))
        assert torch.allclose(predict(unet, noisy, T, c), before[1], atol=1e-6)
        assert torch.allclose(predict(unet, noisy, T, Conditioning(tokens, inpaint=channels, reference=nobody)), before[1], atol=1e-6)

    def fail() -> None:
        with method.attached():
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert repr(method.unet) == before[0]
    assert torch.equal(predict(method.unet, noisy, T, c), before[1])


@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_rows_with_different_references_and_none_share_a_batch(method: MimicBrush, fusion: Any):
    noisy, channels, tokens = inputs(4)
    references, _, seen = inputs(2, seed=9)
    both = Reference(method.reference_net, references, seen)
    picks = torch.tensor([1, -1, 0, 1])
    with method.attached(fusion) as unet, torch.no_grad():
        together = predict(unet, noisy, T, Conditioning(tokens, inpaint=channels, reference=both.condition(T, picks)))
        for i, pick in enumerate(picks.tolist()):
            row = slice(i, i + 1)
            alone = None
            if pick >= 0:
                alone = Reference(method.reference_net, references[pick : pick + 1], seen[pick : pick + 1]).condition(T, torch.tensor([0]))
            out = predict(unet, noisy[row], T, Conditioning(tokens[row], inpaint=channels[row], reference=alone))
            assert torch.allclose(together[row], out, atol=1e-5)


def test_guidance_stacks_rows_without_and_with(method: MimicBrush):
    noisy, channels, tokens = inputs(2)
    reference = Reference(method.reference_net, noisy[:1], tokens[:1])
    with_ = Conditioning(tokens, inpaint=channels, reference=reference.condition(T, torch.tensor([0, -1])))
    without = Conditioning(tokens, inpaint=channels)
    c = stacked(without, with_).reference
    assert c is not None
    assert c.rows.tolist() == [-1, -1, 0, -1]
    twice = stacked(with_, with_).reference
    assert twice is not None
    assert twice.rows.tolist() == [0, -1, 1, -1]
    assert all(len(v) == 2 for v in twice.features.values())


def test_features_are_computed_once_a_timestep(method: MimicBrush):
    latents, _, tokens = inputs(1)
    calls: list[int] = []
    hook = method.reference_net.register_forward_hook(lambda *_: calls.append(1))
    try:
        reference = Reference(method.reference_net, latents, tokens)
        first = reference.at(T)
        assert reference.at(T) is first
        assert len(calls) == 1
        assert not torch.equal(reference.at(5)[fused_paths(method.unet)[0]], first[fused_paths(method.unet)[0]])
        assert len(calls) == 2
    finally:
        hook.remove()
    assert not any(m._forward_hooks for m in method.reference_net.modules())


def test_the_trimmed_net_gives_the_features_of_the_whole_one():
    torch.manual_seed(0)
    whole = UNet2DConditionModel(**recipe.UNET, in_channels=4).eval()
    heard: dict[str, Tensor] = {}
    last = fused_paths(whole)[-1]
    whole.get_submodule(f"{last}.norm1").register_forward_hook(lambda m, i, out: heard.update({last: out}))
    latents, _, tokens = inputs(1)
    with torch.no_grad():
        whole(latents, T, encoder_hidden_states=tokens)
        short = UNet2DConditionModel(**recipe.UNET, in_channels=4).eval()
        short.load_state_dict(whole.state_dict())
        features = recipe.ReferenceNet(short)(latents, T, tokens)
    assert torch.equal(features[last], heard[last])


def test_a_full_size_trimmed_net_has_exactly_the_official_keys():
    """SD 1.5's layout at its real shapes, without memory for the weights."""
    names = json.loads((Path(recipe.FOLDER) / "referencenet_keys.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        ours = {k: list(v.shape) for k, v in trimmed(unet).state_dict().items()}
    assert ours == names


def test_the_official_file_is_loaded_strictly_and_written_back(method: MimicBrush):
    tower = recipe.image_encoder()
    values: dict[str, dict[str, Tensor]] = {part: dict(v) for part, v in mimicbrush_to_official(method, tower).items()}
    values["image_encoder"][POSITION_IDS] = torch.arange(50)[None]
    fresh = MimicBrush(
        UNet2DConditionModel(**recipe.UNET, in_channels=13), recipe.ReferenceNet(UNet2DConditionModel(**recipe.UNET, in_channels=4)),
        recipe.ImageProjector(32, 32), recipe.DepthProjector(),
    )  # fmt: skip
    mimicbrush_from_official(values, fresh, recipe.image_encoder())
    assert all(torch.equal(v, method.state_dict()[k]) for k, v in fresh.state_dict().items())
    with pytest.raises(ValueError, match="lacks unet"):
        mimicbrush_from_official({k: v for k, v in values.items() if k != "unet"}, fresh, tower)
    values["image_proj"]["extra"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"image_proj does not fit: 0 keys missing \[\], 1 unexpected \['extra'\]"):
        mimicbrush_from_official(values, fresh, tower)
    values["image_proj"] = {"projector.weight": torch.ones(2, 2), "projector.bias": torch.ones(32)}
    with pytest.raises(ValueError, match=r"shape \(2, 2\), this model needs \(32, 32\)"):
        mimicbrush_from_official(values, fresh, tower)


@given(st.integers(16, 700), st.integers(16, 700))
@settings(max_examples=40, deadline=None)
def test_a_picture_comes_back_from_its_square_at_its_size(height: int, width: int):
    image = np.zeros((height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2 + 1, width // 4 : width // 2 + 1] = 255
    p = pictures.prepared(image, mask, image, 128)
    assert p.source.shape == p.collage.shape == (128, 128, 3)
    assert p.mask.shape == (128, 128)
    assert not p.collage[p.mask].any()
    back = pictures.unsquared(np.zeros((512, 512, 3), np.uint8), height, width)
    assert abs(back.shape[0] - height) <= 2
    assert abs(back.shape[1] - width) <= 2


def test_outside_the_soft_mask_the_source_is_untouched():
    source, mask = recipe.image(90, 120, 1), recipe.mask(90, 120)
    out = pictures.pasted(np.zeros_like(source), source, mask)
    outside = pictures.soft(mask) == 0
    assert outside.any()
    assert np.array_equal(out[outside], source[outside].astype(float))
