"""Parity with the official StableIdentity code: celebrity space, projection, insertion, loss, training step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsame.adapters.words import Slots, words_inserted
from selfsame.diffusion.schedule import add_noise, scaled_linear_alphas_cumprod, velocity
from selfsame.methods.stableidentity.modules import CelebritySpace, WordProjection
from selfsame.methods.stableidentity.objective import TwoPhaseLoss, two_phase_loss
from tests.goldens import stableidentity_recipe as recipe

SCALE = 0.18215


def close(ours: Tensor | np.ndarray | float, theirs: np.ndarray, rtol: float = 1e-4) -> None:
    """Largest difference as a share of the largest value."""
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= rtol * np.abs(theirs).max() + 1e-9


def tensor(golden: dict[str, np.ndarray], name: str) -> Tensor:
    return torch.from_numpy(golden[name])


def projection(space: CelebritySpace, depth: int = 2) -> WordProjection:
    made = WordProjection(space, 48, 32, depth=depth)
    total = recipe.fill(made, "mlp")
    if depth == 2:
        assert np.isclose(total, recipe.MANIFEST["weight_checks"]["mlp"]["abs_sum"])
    return made


def epsilon_batch(g: dict[str, np.ndarray], t: Tensor, rows: slice) -> dict[str, Tensor]:
    """The loss goldens' inputs as a batch for an epsilon model."""
    clean, noise, face, hair = (tensor(g, name)[rows] for name in ("latents", "noise", "face_mask", "hair_mask"))
    noisy = add_noise(clean, noise, t, scaled_linear_alphas_cumprod())
    return {"clean": clean, "noisy": noisy, "t": t, "target": noise, "face_mask": face, "hair_mask": hair}


def space10() -> CelebritySpace:
    g = recipe.golden("celeb_space")
    return CelebritySpace.of(tensor(g, "token_table"), tensor(g, "token_ids10"))


def test_the_celebrity_space():
    g = recipe.golden("celeb_space")
    close(recipe.text_encoder().get_input_embeddings().weight, g["token_table"])
    for n in (10, 12):
        space = CelebritySpace.of(tensor(g, "token_table"), tensor(g, f"token_ids{n}"))
        close(space.mean, g[f"mean{n}"])
        close(space.std, g[f"std{n}"])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_projection_and_its_names(depth: int):
    g = recipe.golden("embedding_manager")
    net = projection(CelebritySpace(tensor(g, "celeb_mean"), tensor(g, "celeb_std")), depth)
    names = [n for n, _ in net.named_parameters()]
    shapes = [tuple(p.shape) for p in net.parameters()]
    feature = tensor(g, "face_feat")
    if depth == 2:
        assert names == [str(n) for n in g["mlp_param_names"]]
        assert [str(list(s)) for s in shapes] == [str(s) for s in g["mlp_param_shapes"]] or [str(s) for s in shapes] == [str(s) for s in g["mlp_param_shapes"]]
        close(net.net[0](feature), g["layer0_out"])
        close(net.net(feature), g["layer1_out"])
        close(net(feature), g["v_star"])
    else:
        assert names == [str(n) for n in g[f"mlp_param_names_depth{depth}"]]
        close(net(feature), g[f"v_star_depth{depth}"])


def test_a_picture_becomes_words():
    g = recipe.golden("embedding_manager")
    feature = recipe.vit()(tensor(g, "vit_pixels")).last_hidden_state[:, 0]
    close(feature, g["vit_cls"])
    close(projection(space10())(feature), g["v_star_vit"])


def test_words_stand_in_for_the_placeholder_and_the_token_after_it():
    g, m = recipe.golden("text_encoder"), recipe.golden("embedding_manager")
    ids, words = tensor(g, "caption_ids"), tensor(g, "v_star")
    model = recipe.text_encoder()
    lookup = model.get_input_embeddings()
    with torch.no_grad():
        slots = Slots.after_placeholder(ids, int(m["placeholder_id"]), tensor(m, "v_star"))
        with words_inserted(lookup, slots):
            close(lookup(ids), m["embedded_out"])
        with words_inserted(lookup, Slots.after_placeholder(ids, int(m["placeholder_id"]), words)):
            close(model(ids).last_hidden_state, g["hidden_replaced"])
        close(lookup(ids), m["token_embeds"])
        close(model(ids).last_hidden_state, g["hidden_plain"])
        assert np.abs(g["hidden_replaced"] - g["inference_hidden"]).max() == 0


@pytest.mark.parametrize("case", ["mixed", "mixed_lam0", "all_noise", "all_z0", "one_vs_three", "mixed_vpred"])
def test_the_two_phase_loss(case: str):
    g = recipe.golden("loss")
    t = tensor(g, f"{case}.timesteps")
    abar = scaled_linear_alphas_cumprod()
    close(abar, g["alphas_cumprod"])
    batch = epsilon_batch(g, t, slice(0, 4))
    close(batch["noisy"], g[f"{case}.noisy"])
    is_v = case == "mixed_vpred"
    if is_v:
        batch["target"] = velocity(batch["clean"], batch["target"], t, abar)
    how = TwoPhaseLoss(hair_weight=float(g[f"{case}.lam"]), clean_from="epsilon")
    said = tensor(g, "model_pred").requires_grad_(True)
    loss, parts = two_phase_loss(said, batch, how, alphas_cumprod=abar, prediction_type="v_prediction" if is_v else "epsilon", scaling_factor=SCALE)
    loss.backward()
    close(loss, g[f"{case}.loss"])
    assert said.grad is not None
    close(said.grad, g[f"{case}.grad_model_pred"])
    for ours, theirs in (("noise_face", "fg_loss_noise"), ("noise_hair", "hair_loss_noise"), ("clean_face", "fg_loss_z0"), ("clean_hair", "hair_loss_z0")):
        if f"{case}.{theirs}" in g and ours in parts:
            close(parts[ours], g[f"{case}.{theirs}"])


@pytest.mark.parametrize("t", [600, 601])
def test_the_boundary_belongs_to_the_reconstruction(t: int):
    g = recipe.golden("loss")
    abar, at = scaled_linear_alphas_cumprod(), torch.tensor([t])
    batch = epsilon_batch(g, at, slice(0, 1))
    loss, _ = two_phase_loss(tensor(g, "model_pred")[:1], batch, TwoPhaseLoss(), alphas_cumprod=abar, prediction_type="epsilon", scaling_factor=SCALE)
    close(loss, g[f"single_{t}.loss"])


@pytest.mark.parametrize("tag", ["b4", "b1_t600", "b1_t601"])
def test_five_training_steps(tag: str):
    """Gradients, clipping, AdamW and the words after one and after five steps."""
    g, m, losses = recipe.golden("train_step"), recipe.golden("embedding_manager"), recipe.golden("loss")
    t = tensor(g, f"{tag}.timesteps")
    rows = slice(0, len(t))
    net, text, unet = projection(space10()), recipe.text_encoder().requires_grad_(False), recipe.unet().requires_grad_(False)
    with torch.no_grad():
        feature = recipe.vit()(tensor(m, "vit_pixels")[rows]).last_hidden_state[:, 0]
    ids, abar = tensor(m, "caption_ids")[rows], scaled_linear_alphas_cumprod()
    batch = epsilon_batch(losses, t, rows)
    optimizer = torch.optim.AdamW(net.parameters(), lr=float(g[f"{tag}.lr"]), betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
    curve = []
    for step in range(5):
        words = net(feature)
        with words_inserted(text.get_input_embeddings(), Slots.after_placeholder(ids, int(m["placeholder_id"]), words)):
            states = text(ids).last_hidden_state
        said = unet(batch["noisy"], t, encoder_hidden_states=states).sample
        loss, _ = two_phase_loss(said, batch, TwoPhaseLoss(), alphas_cumprod=abar, prediction_type="epsilon", scaling_factor=SCALE)
        curve.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            close(words, g[f"{tag}.v_star_before"])
            close(states, g[f"{tag}.encoder_hidden"])
            close(said, g[f"{tag}.model_pred"])
            for name, p in net.named_parameters():
                if f"{tag}.grad.{name}" in g:
                    assert p.grad is not None
                    close(p.grad, g[f"{tag}.grad.{name}"], 1e-3)
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), float(g[f"{tag}.max_norm"]))
        if step == 0:
            close(norm, g[f"{tag}.total_grad_norm"], 1e-3)
        optimizer.step()
        if step == 0:
            close(net(feature), g[f"{tag}.v_star_after"], 1e-3)
    close(np.array(curve), g[f"{tag}.loss_curve"], 1e-3)
    close(net(feature), g[f"{tag}.v_star_end"], 1e-3)
