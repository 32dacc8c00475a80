"""What InstantID promises whatever the weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from selfsame.adapters.keeping import DeepReuse, Kept
from selfsame.adapters.processors import cross_attention_paths
from selfsame.images.draw import draw_kps
from selfsame.methods.instantid.checkpoint import adapter_from_official, adapter_to_official, resampler_from_official
from selfsame.methods.instantid.method import InstantID, ResamplerSize, face_conditions, predict, residuals_of
from selfsame.methods.instantid.objective import InstantIDTrainer, instantid_loss
from selfsame.methods.instantid.samples import InstantIDSamples, PhotosOf, drop, face_weights, lend_faces
from selfsame.studio.crowd import Crowd, Shown
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
    return as_if_trained(InstantID.new(unet, SIZE, conditioning_channels=(8, 8, 8, 16)).eval())


def as_if_trained(made: InstantID) -> InstantID:
    """What starts at zero is not."""
    net = made.identity_net
    values = [layer.to_v_ip for layer in made.adapter.layers.values()] + [net.get_submodule(path).to_v for path in cross_attention_paths(net)]
    for layer in (*values, *net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.2)
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
    assert again.net_reads == "face"
    again.net_reads = "text"
    again.save_pretrained(tmp_path / "text")
    assert InstantID.from_pretrained(tmp_path / "text", unet).net_reads == "text"


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


@torch.no_grad()
def test_a_fresh_method_is_the_base_and_its_tokens_are_about_the_face(unet):
    torch.manual_seed(2)
    fresh = InstantID.new(unet, SIZE, conditioning_channels=(8, 8, 8, 16)).eval()
    for path, layer in zip(cross_attention_paths(unet), fresh.adapter.layers.values(), strict=True):
        assert torch.equal(layer.to_k_ip.weight, unet.get_submodule(path).to_k.weight)
    x, text, embedding, kps = inputs()
    tokens = fresh.tokens(embedding)
    one = torch.ones(1)
    with fresh.attached(unet):
        made = predict(
            unet, fresh.identity_net, x, torch.tensor(500), Conditioning(text, face=FaceCondition(tokens, one), spatial=SpatialCondition(kps, tokens, one))
        )
    assert torch.equal(made, base(unet))
    people = fresh.tokens(torch.randn(64, 1, 512, generator=torch.Generator().manual_seed(0)))
    assert people.std(0).mean() / people.std() > 0.6


def test_while_the_resampler_is_held_all_else_learns(unet, method):
    for holds in (0.0, 1.0):
        trainer = InstantIDTrainer(copy.deepcopy(method).requires_grad_(True), copy.deepcopy(unet)).train()
        instantid_loss(trainer, training_batch() | {"holds": torch.full((2,), holds)})[0].backward()
        moved = [float(p.grad.abs().sum()) for p in trainer.method.resampler.parameters() if p.grad is not None]
        assert len(moved) == len(list(trainer.method.resampler.parameters())), "several processes wait for a gradient of each"
        assert any(moved) == (holds == 0)
        for part in (trainer.method.adapter, trainer.method.identity_net):
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def training_batch() -> dict[str, Tensor]:
    x, text, embedding, kps = inputs(2)
    return {
        "noisy": x, "t": torch.tensor([3, 700]), "text": text, "embedding": embedding, "kps_image": kps,
        "target": torch.randn(x.shape, generator=torch.Generator().manual_seed(9)), "weight": torch.ones(2, 1, 8, 8),
    }  # fmt: skip


def test_training_moves_the_method_and_never_the_base(unet):
    before = base(unet)
    trainer = InstantIDTrainer(as_if_trained(InstantID.new(unet, SIZE, conditioning_channels=(8, 8, 8, 16))), unet)
    loss, parts = instantid_loss(trainer, training_batch())
    loss.backward()
    assert set(parts) == {"plain", "face"}
    assert all(p.grad is None for p in unet.parameters())
    for part in (trainer.method.resampler, trainer.method.adapter, trainer.method.identity_net):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    trainer.detach()
    assert torch.equal(base(unet), before)


def said_by(trainer: InstantIDTrainer, **changed: Tensor) -> Tensor:
    batch = training_batch() | changed
    with torch.no_grad():
        return trainer(*(batch[name] for name in ("noisy", "t", "text", "embedding", "kps_image")))


@pytest.mark.parametrize(
    ("left_out", "net_reads", "heard"),
    [
        ({"use_net": False}, "face", {"embedding", "text"}), ({"use_adapter": False}, "face", {"embedding", "kps_image", "text"}),
        ({"use_adapter": False}, "text", {"kps_image", "text"}), ({}, "text", {"embedding", "kps_image", "text"}),
    ],
)  # fmt: skip
def test_what_an_ablation_leaves_out_is_not_heard(unet, method, left_out: dict[str, bool], net_reads: Literal["face", "text"], heard: set[str]):
    made = copy.deepcopy(method)
    made.net_reads = net_reads
    torch.nn.init.normal_(made.identity_net.controlnet_cond_embedding.conv_out.weight, std=0.2)  # type: ignore[arg-type]
    trainer = InstantIDTrainer(made, copy.deepcopy(unet), **left_out).eval()
    plain, batch = said_by(trainer), training_batch()
    g = torch.Generator().manual_seed(8)
    changed = {name: torch.rand(batch[name].shape, generator=g) for name in ("embedding", "kps_image", "text")}
    assert {name for name, value in changed.items() if not torch.allclose(said_by(trainer, **{name: value}), plain, atol=1e-6)} == heard


def test_neither_part_is_refused(unet, method):
    with pytest.raises(ValueError, match="nothing would learn"):
        InstantIDTrainer(copy.deepcopy(method), copy.deepcopy(unet), use_adapter=False, use_net=False)


@pytest.mark.parametrize("net_reads", ["face", "text"])
def test_a_trainer_and_a_painter_say_the_same(unet, method, net_reads: Literal["face", "text"]):
    made = copy.deepcopy(method)
    made.net_reads = net_reads
    batch = training_batch()
    kps = np.array([[20.0, 24], [44, 24], [32, 36], [24, 48], [42, 48]])
    crowd = Crowd.of([[Shown(e[None], kps)] for e in batch["embedding"]], (64, 64), made, draw_kps, torch.float32)
    with torch.no_grad(), made.attached(unet):
        painted = predict(unet, made.identity_net, batch["noisy"], batch["t"], crowd.joined(Conditioning(batch["text"]), ((0, 1), (0, 1)), guided=False))
    trainer = InstantIDTrainer(made, copy.deepcopy(unet)).eval()
    assert torch.allclose(said_by(trainer, kps_image=crowd.drawings), painted, atol=1e-6)


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


def crowded(method: InstantID, rows: list[int], regions: Tensor | None = None) -> tuple[FaceCondition, SpatialCondition]:
    """Faces of different people in these rows."""
    g = torch.Generator().manual_seed(1)
    tokens = method.tokens(torch.randn(len(rows), 1, 512, generator=g))
    kps, scale = torch.rand(len(rows), 3, 64, 64, generator=g), torch.ones(len(rows))
    at = torch.tensor(rows)
    return FaceCondition(tokens, scale, regions, at), SpatialCondition(kps, tokens, scale, regions, at)


def one_row(c: Conditioning, which: list[int]) -> Conditioning:
    """The condition of faces `which` alone, in one row."""
    assert c.face is not None
    assert c.spatial is not None
    f, s = c.face, c.spatial
    at = torch.zeros(len(which), dtype=torch.int64)
    face = FaceCondition(f.ip_tokens[which], f.scale[which], None if f.region is None else f.region[which], at)
    spatial = SpatialCondition(s.image[which], s.encoder_hidden_states[which], s.scale[which], None if s.region is None else s.region[which], at)
    return Conditioning(c.encoder_hidden_states[:1], face=face, spatial=spatial)


@torch.no_grad()
def predicted(unet, method: InstantID, x: Tensor, c: Conditioning, keeps: bool = False) -> Tensor:
    with method.attached(unet, keeps=keeps):
        return predict(unet, method.identity_net, x, torch.tensor(500), c)


def test_rows_of_none_one_and_two_people_share_a_batch_and_are_what_they_are_alone(unet, method):
    x, text, _, _ = (v.repeat(3, *[1] * (v.ndim - 1)) for v in inputs())
    left = torch.zeros(3, 1, 64, 64)
    left[0], left[1, ..., :32], left[2, ..., 32:] = 1, 1, 1
    c = Conditioning(text, face=(crowd := crowded(method, [1, 2, 2], left))[0], spatial=crowd[1])
    out = predicted(unet, method, x, c)
    assert torch.allclose(out[:1], base(unet), atol=1e-5)
    assert torch.allclose(out[1:2], predicted(unet, method, x[:1], one_row(c, [0])), atol=1e-5)
    assert torch.allclose(out[2:], predicted(unet, method, x[:1], one_row(c, [1, 2])), atol=1e-5)


def test_a_face_acts_in_its_region_only(unet, method):
    """The Image Adapter's share, one layer deep, and IdentityNet's residuals are zero outside."""
    region = torch.zeros(1, 1, 64, 64)
    region[..., :32] = 1
    c = Conditioning(inputs()[1], face=(crowd := crowded(method, [0], region))[0], spatial=crowd[1])
    with torch.no_grad(), method.attached(unet):
        residuals = residuals_of(method.identity_net, inputs()[0], torch.tensor(500), c)
        assert residuals is not None
        first = residuals.down[0]
        path = cross_attention_paths(unet)[0]
        attn, hidden = unet.get_submodule(path), torch.randn(1, 64, unet.get_submodule(path).to_q.in_features)
        text = c.encoder_hidden_states
        share = attn(hidden, encoder_hidden_states=text, ip_hidden_states=c.face) - attn(hidden, encoder_hidden_states=text)
    assert first[..., 4:].abs().max() == 0
    assert first[..., :3].abs().max() > 0
    share = share.view(1, 8, 8, -1)
    assert share[:, :, 4:].abs().max() == 0
    assert share[:, :, :4].abs().max() > 0


def test_stacked_rows_keep_their_faces_whoever_has_some(unet, method):
    """Nobody beside somebody, a region beside none: rows of a stack are what they were."""
    x, text, embedding, kps = inputs()
    face, spatial = face_conditions(method.tokens(embedding), kps, 1.0, 1.0)
    region = torch.zeros(1, 1, 64, 64)
    region[..., :32] = 1
    nobody, everywhere = Conditioning(text), Conditioning(text, face=face, spatial=spatial)
    there = Conditioning(text, face=replace(face, region=region), spatial=replace(spatial, region=region))
    alone = [predicted(unet, method, x, c) for c in (nobody, everywhere, there)]
    for i, a in enumerate((nobody, everywhere, there)):
        for j, b in enumerate((nobody, everywhere, there)):
            out = predicted(unet, method, torch.cat([x, x]), stacked(a, b))
            assert torch.allclose(out, torch.cat([alone[i], alone[j]]), atol=1e-5), (i, j)
    assert stacked(everywhere, everywhere).face.rows is None  # the usual case takes the short way


def test_what_is_kept_changes_nothing_and_is_made_once(unet, method):
    x, text, embedding, kps = inputs()
    face, spatial = face_conditions(method.tokens(embedding), kps, 1.0, 1.0)
    c = Conditioning(text, face=face, spatial=spatial)
    calls = {"text": 0, "face": 0, "net": 0, "drawing": 0}

    def counted(name: str):
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    path = cross_attention_paths(unet)[0]
    layer = method.adapter.layers[path.replace(".", "/")]
    net = method.identity_net
    own, nets = unet.get_submodule(path), net.get_submodule(path)
    modules = {"text": own.to_k, "face": layer.to_k_ip, "net": nets.to_k, "drawing": net.controlnet_cond_embedding.conv_in}
    hooks = [m.register_forward_hook(counted(n)) for n, m in modules.items()]
    before = {k: id(v) for k, v in net.attn_processors.items()}
    try:
        with torch.no_grad(), method.attached(unet, keeps=True):
            kept = [predict(unet, net, x * k, torch.tensor(500 // k), c) for k in (1, 2, 3)]
        assert set(calls.values()) == {1}
        with torch.no_grad(), method.attached(unet):
            plain = [predict(unet, net, x * k, torch.tensor(500 // k), c) for k in (1, 2, 3)]
    finally:
        for hook in hooks:
            hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(kept, plain, strict=True))
    assert {k: id(v) for k, v in net.attn_processors.items()} == before
    assert "forward" not in net.controlnet_cond_embedding.__dict__


def test_a_tensor_that_was_written_to_is_not_taken_for_the_old_one():
    kept, x = Kept(), torch.ones(2)
    with torch.no_grad():
        assert kept("double", x, lambda v: v * 2).tolist() == [2, 2]
        x += 1
        assert kept("double", x, lambda v: v * 2).tolist() == [4, 4]
    y = torch.ones(2, requires_grad=True)
    assert kept("double", y, lambda v: v * 2).requires_grad


def test_reused_deep_features_leave_no_trace(unet):
    before, reuse = base(unet), DeepReuse(unet)
    x, text, _, _ = inputs()
    with torch.no_grad(), reuse.attached():
        assert torch.equal(unet(x, torch.tensor(500), text).sample, before)
        reuse.is_fresh = False
        assert torch.equal(unet(x, torch.tensor(500), text).sample, before)  # nothing changed, so old features are right
        other = unet(x + 1, torch.tensor(400), text).sample
        reuse.is_fresh = True
        whole = unet(x + 1, torch.tensor(400), text).sample
    assert not torch.allclose(other, before, atol=1e-4)
    assert not torch.allclose(other, whole, atol=1e-4)
    assert torch.equal(base(unet), before)
    assert not any("forward" in m.__dict__ for m in unet.modules())


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


def test_photos_of_the_same_person_are_lent_and_none_twice_while_there_are_others():
    people = np.array([5, 5, 9, 5, 9, 5, -3, 9])
    photos = PhotosOf(people, np.arange(8))
    rows, rng = np.array([0, 2, 3, 7]), np.random.default_rng(0)
    seen: dict[int, set[int]] = {}
    for _ in range(60):
        for count in (1, 2, 3, 4):
            picked = photos.others(rows, count, rng)
            assert picked.shape == (4, count)
            for row, mine in zip(rows, picked, strict=True):
                assert set(people[mine]) == {people[row]}
                assert row not in mine
                assert len(set(mine)) == min(count, (people == people[row]).sum() - 1)
                seen.setdefault(int(row), set()).update(mine.tolist())
    assert seen == {0: {1, 3, 5}, 2: {4, 7}, 3: {0, 1, 5}, 7: {2, 4}}


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
