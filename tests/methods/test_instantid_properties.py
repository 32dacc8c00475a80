"""What InstantID promises whatever the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from selfsame.adapters.processors import cross_attention_paths
from selfsame.methods.instantid.checkpoint import adapter_from_official, adapter_to_official, resampler_from_official
from selfsame.methods.instantid.method import InstantID, ResamplerSize, face_conditions, predict
from selfsame.methods.instantid.objective import InstantIDTrainer, instantid_loss
from selfsame.methods.instantid.samples import InstantIDSamples, PhotosOf, drop, face_weights, lend_faces
from selfsame.training.loop import checkpoint_activations
from selfsame.values.conditioning import Conditioning, FaceCondition, SpatialCondition, stacked

SIZE = ResamplerSize(dim=32, depth=1, dim_head=16, heads=2, num_queries=4, embedding_dim=512, output_dim=16)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
    ).eval()


@pytest.fixture(scope="module")
def method(unet: UNet2DConditionModel) -> InstantID:
    torch.manual_seed(1)
    made = InstantID.new(unet, SIZE, conditioning_channels=(8, 8, 8, 16)).eval()
    for block in [*made.identity_net.controlnet_down_blocks, made.identity_net.controlnet_mid_block]:
        torch.nn.init.normal_(block.weight, std=0.2)  # a trained net: its residuals are not zero
    return made


def inputs(n: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(n, 4, 8, 8, generator=g), torch.randn(n, 7, 16, generator=g), torch.randn(n, 1, 512, generator=g), torch.rand(n, 3, 64, 64, generator=g)


@torch.no_grad()
def base(unet: UNet2DConditionModel) -> Tensor:
    x, text, _, _ = inputs()
    return unet(x, torch.tensor(500), text).sample


@torch.no_grad()
def with_face(unet: UNet2DConditionModel, method: InstantID, adapter_scale: float, controlnet_scale: float) -> Tensor:
    x, text, embedding, kps = inputs()
    face, spatial = face_conditions(method.tokens(embedding), kps, adapter_scale, controlnet_scale)
    with method.attached(unet):
        return predict(unet, method.identity_net, x, torch.tensor(500), Conditioning(text, face=face, spatial=spatial))


def test_strength_zero_is_the_base_model_bit_for_bit(unet, method):
    assert torch.equal(with_face(unet, method, 0.0, 0.0), base(unet))


@pytest.mark.parametrize("scales", [(1.0, 0.0), (0.0, 1.0)])
def test_either_part_changes_the_prediction(unet, method, scales: tuple[float, float]):
    assert not torch.allclose(with_face(unet, method, *scales), base(unet), atol=1e-4)


def test_a_row_of_zero_scale_in_a_mixed_batch_is_the_base_model(unet, method):
    x, text, embedding, kps = (v.repeat(2, *[1] * (v.ndim - 1)) for v in inputs())
    tokens, scale = method.tokens(embedding), torch.tensor([0.0, 1.0])
    c = Conditioning(text, face=FaceCondition(tokens, scale), spatial=SpatialCondition(kps, tokens, scale))
    with torch.no_grad(), method.attached(unet):
        out = predict(unet, method.identity_net, x, torch.tensor(500), c)
    assert torch.allclose(out[:1], base(unet), atol=1e-5)
    assert not torch.allclose(out[1:], base(unet), atol=1e-3)


def test_detaching_leaves_no_trace_also_after_an_error(unet, method):
    before, names = base(unet), list(unet.state_dict())
    processors = dict(unet.attn_processors)
    with pytest.raises(RuntimeError, match="half-way"), method.attached(unet):
        raise RuntimeError("half-way")
    assert unet.attn_processors == processors
    assert list(unet.state_dict()) == names
    assert torch.equal(base(unet), before)


def test_attaching_without_a_face_changes_nothing_and_owns_no_base_weight(unet, method):
    before, names = base(unet), list(unet.state_dict())
    with method.attached(unet):
        assert torch.equal(base(unet), before)
        assert list(unet.state_dict()) == names
    own = {id(p) for p in method.parameters()}
    assert not own & {id(p) for p in unet.parameters()}


def test_identity_net_never_sees_the_text(unet, method):
    """IdentityNet's residuals do not change with the prompt."""
    x, text, embedding, kps = inputs()
    seen = []
    hook = method.identity_net.register_forward_pre_hook(lambda m, a, k: seen.append(k["encoder_hidden_states"]), with_kwargs=True)
    try:
        tokens = method.tokens(embedding)
        face, spatial = face_conditions(tokens, kps, 1.0, 1.0)
        with torch.no_grad(), method.attached(unet):
            predict(unet, method.identity_net, x, torch.tensor(1), Conditioning(text, face=face, spatial=spatial))
    finally:
        hook.remove()
    assert torch.equal(seen[0], tokens)


def test_no_face_is_the_resampler_of_zeros_and_not_zero(method):
    assert torch.equal(method.no_face(2)[1:], method.tokens(torch.zeros(1, 1, 512)))
    assert method.no_face(1).abs().mean() > 0.1


def test_several_photos_jointly_still_give_the_same_number_of_tokens(method):
    assert method.tokens(torch.randn(2, 3, 512)).shape == (2, 4, 16)


def test_photos_have_no_order(method):
    photos = torch.randn(1, 3, 512, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(method.tokens(photos), method.tokens(photos.flip(1)), atol=1e-5)


def test_saving_and_loading_keeps_every_number(unet, method, tmp_path):
    method.save_pretrained(tmp_path)
    again = InstantID.from_pretrained(tmp_path, unet)
    ours, theirs = method.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_official_keys_are_strict(method):
    values = adapter_to_official(method.adapter)
    assert sorted(int(k.split(".")[0]) for k in values if "to_k" in k) == [2 * i + 1 for i in range(len(method.adapter.layers))]
    with pytest.raises(ValueError, match="1 keys missing"):
        adapter_from_official({k: v for k, v in values.items() if k != "1.to_k_ip.weight"}, method.adapter)
    with pytest.raises(ValueError, match="1 unexpected"):
        adapter_from_official(values | {"139.to_k_ip.weight": torch.zeros(1)}, method.adapter)
    with pytest.raises(ValueError, match="shape"):
        adapter_from_official(values | {"1.to_k_ip.weight": torch.zeros(3, 3)}, method.adapter)
    with pytest.raises(ValueError, match="missing"):
        resampler_from_official({}, method.resampler)


def test_adapter_starts_from_the_base_projections(unet):
    fresh = InstantID.new(unet, SIZE, conditioning_channels=(8, 8, 8, 16))
    for path, layer in zip(cross_attention_paths(unet), fresh.adapter.layers.values(), strict=True):
        assert torch.equal(layer.to_k_ip.weight, unet.get_submodule(path).to_k.weight)


def training_batch() -> dict[str, Tensor]:
    x, text, embedding, kps = inputs(2)
    return {
        "noisy": x, "t": torch.tensor([3, 700]), "text": text, "embedding": embedding, "kps_image": kps,
        "target": torch.randn(x.shape, generator=torch.Generator().manual_seed(9)), "weight": torch.ones(2, 1, 8, 8),
    }  # fmt: skip


def test_training_moves_the_method_and_never_the_base(unet):
    before = base(unet)
    trainer = InstantIDTrainer(InstantID.new(unet, SIZE, conditioning_channels=(8, 8, 8, 16)), unet)
    loss, parts = instantid_loss(trainer, training_batch())
    loss.backward()
    assert set(parts) == {"plain", "face"}
    assert all(p.grad is None for p in unet.parameters())
    for part in (trainer.method.resampler, trainer.method.adapter, trainer.method.identity_net):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    trainer.detach()
    assert torch.equal(base(unet), before)


def test_gradient_checkpointing_gives_the_same_gradients(unet, method):
    gradients = []
    for checkpointed in (False, True):
        trainer = InstantIDTrainer(copy.deepcopy(method).requires_grad_(True), copy.deepcopy(unet)).train()
        if checkpointed:
            checkpoint_activations(trainer)
        instantid_loss(trainer, training_batch())[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.method.parameters() if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    with pytest.raises(ValueError, match="no part of the module offers it"):
        checkpoint_activations(torch.nn.Linear(1, 1))


def test_conditions_only_stack_with_their_like(method):
    _, text, embedding, kps = inputs()
    face, spatial = face_conditions(method.tokens(embedding), kps, 1.0, 1.0)
    with pytest.raises(ValueError, match="cannot share a batch"):
        stacked(Conditioning(text), Conditioning(text, face=face, spatial=spatial))


def test_the_lent_photo_is_never_the_painted_one():
    import numpy as np

    people = np.array([7, 7, 7, 8, 8, 9])
    photos = PhotosOf(people, np.arange(6))
    assert set(photos.rows.tolist()) == {0, 1, 2, 3, 4}
    embeddings = np.eye(6, 512, dtype=np.float32)
    rng = np.random.default_rng(0)
    for _ in range(50):
        lent = lend_faces(embeddings, photos, [0, 3], InstantIDSamples(), rng)
        assert lent[0, :, 0].abs().max() == 0
        assert lent[1, :, 3].abs().max() == 0


def test_drops_have_their_rates_and_mean_what_they_say():
    n = 4000
    batch = {"text": torch.ones(n, 1, 1), "embedding": torch.ones(n, 1, 1)}
    out = drop(batch, torch.zeros(1, 1), InstantIDSamples(), torch.Generator().manual_seed(0))
    no_face, no_text = out["embedding"].flatten() == 0, out["text"].flatten() == 0
    assert float((no_face & ~no_text).float().mean()) == pytest.approx(0.10, abs=0.02)
    assert float((no_text & ~no_face).float().mean()) == pytest.approx(0.05, abs=0.015)
    assert float((no_text & no_face).float().mean()) == pytest.approx(0.05, abs=0.015)
    with pytest.raises(ValueError, match="drop rates"):
        InstantIDSamples(drop_face=0.9, drop_text=0.2)


def test_face_weights_have_mean_one_and_weigh_the_face():
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    weight = face_weights(mask, (8, 8), 3)
    assert float(weight.mean()) == pytest.approx(1)
    assert float(weight[0, 0, 0, 0] / weight[0, 0, 7, 0]) == pytest.approx(3)
    assert torch.equal(face_weights(mask, (8, 8), 1), torch.ones(1, 1, 8, 8))
