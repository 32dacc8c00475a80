"""Parity with the official MimicBrush code: every part, the block, the pipeline, the geometry and one whole edit."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from selfsame.adapters.processors import processors_replaced
from selfsame.diffusion.sampling import guided_together, sample
from selfsame.methods.mimicbrush import pictures
from selfsame.methods.mimicbrush.checkpoint import depth_anything_from_official, load_strictly
from selfsame.methods.mimicbrush.method import MimicBrush, Reference, inpaint_channels, predict
from selfsame.methods.mimicbrush.modules import ReferenceAttention, fused_paths
from selfsame.values.conditioning import Conditioning, ReferenceCondition, stacked
from tests.goldens import mimicbrush_recipe as recipe

T = torch.tensor(501)


def close(ours: Tensor | np.ndarray, theirs: np.ndarray, rtol: float = 1e-4) -> None:
    """Largest difference as a share of the largest value."""
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else ours
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= rtol * np.abs(theirs).max()


@pytest.fixture(scope="module")
def method() -> MimicBrush:
    return recipe.method()


def test_weights_and_pictures_are_rebuilt(method: MimicBrush):
    parts = {
        "unet": method.unet,
        "referencenet": method.reference_net.unet,
        "image_proj": method.image_projector,
        "depth_guider": method.depth_projector,
        "vae": recipe.vae(),
        "image_encoder": recipe.image_encoder(),
    }
    for name, module in parts.items():
        assert len(list(module.parameters())) == recipe.META["param_tensors"][name]
        assert sum(p.numel() for p in module.parameters()) == recipe.META["param_counts"][name]
        assert float(torch.sqrt(sum((p.double() ** 2).sum() for p in module.parameters()))) == pytest.approx(recipe.META["param_l2"][name], rel=1e-6)  # type: ignore[arg-type]
    for args in ((300, 420, 1), (350, 260, 4), (512, 512, 2)):
        text = f"test_image({','.join(map(str, args))})"
        assert hashlib.sha256(recipe.image(*args).tobytes()).hexdigest() == recipe.META["image_sha256"][text]


def test_depth_projector(method: MimicBrush):
    g = recipe.golden("unit_depth_guider")
    depth = recipe.inp("input.depth_map", (1, 1, 37, 53)).abs() * 3
    close(method.depth_projector(depth), g["depth_feature"])


def test_image_projector(method: MimicBrush):
    close(method.image_projector(recipe.inp("input.image_proj", (2, 7, 32))), recipe.golden("unit_image_proj")["y"])


def test_image_tokens(method: MimicBrush):
    g, tower = recipe.golden("unit_clip"), recipe.image_encoder()
    pixels = recipe.inp("input.pixel_values", (1, 3, 224, 224))
    close(tower(pixels, output_hidden_states=True).hidden_states[-2], g["hidden_m2"])
    close(method.image_tokens(tower, pixels), g["tokens"])
    close(method.image_tokens(tower, torch.zeros_like(pixels)), g["tokens_zeros"])


def test_vae():
    g, vae = recipe.golden("unit_vae"), recipe.vae()
    posterior = vae.encode(recipe.inp("input.vae.image", (1, 3, 64, 64), 0.5)).latent_dist
    close(posterior.mean, g["mean"])
    close(posterior.logvar, g["logvar"])
    close(vae.decode(recipe.inp("input.vae.latent", (1, 4, 8, 8))).sample, g["decoded"])


def test_solver():
    g, solver = recipe.golden("unit_ddim"), recipe.scheduler()
    solver.set_timesteps(4)
    assert solver.timesteps.tolist() == recipe.META["ddim_timesteps_4"]
    for t in solver.timesteps:
        close(solver.step(recipe.inp("input.ddim.eps", (1, 4, 8, 8)), t, recipe.inp("input.ddim.sample", (1, 4, 8, 8))).prev_sample, g[f"prev_{t}"])


def unit_reference(method: MimicBrush) -> dict[str, Tensor]:
    latents = recipe.inp("input.ref.latent", (1, 4, 32, 32)).repeat(2, 1, 1, 1)
    return method.reference_net(latents, T, recipe.inp("input.unet.ctx", (2, 9, 32)))


def test_reference_net(method: MimicBrush):
    g, features = recipe.golden("unit_referencenet"), unit_reference(method)
    assert sorted(features) == sorted(recipe.META["fusion_order"])
    assert fused_paths(method.unet) == recipe.META["fusion_order"]
    for path, value in features.items():
        assert list(value.shape) == g[f"shape/{path}"].tolist()
        close(value.flatten()[::997], g[f"samples/{path}"])
        if f"full/{path}" in g:
            close(value, g[f"full/{path}"])


def test_block(method: MimicBrush):
    g, path = recipe.golden("unit_block"), "up_blocks.1.attentions.0.transformer_blocks.0"
    block = method.unet.get_submodule(path)
    hidden, context, bank = (recipe.inp(f"input.block.{n}", (2, size, width)) for n, size, width in (("hidden", 64, 64), ("ctx", 9, 32), ("bank", 64, 64)))
    close(block(hidden, encoder_hidden_states=context), g["plain"])
    borrow = ReferenceCondition({path: bank[1:]}, torch.tensor([-1, 0]))
    with processors_replaced(block, {"attn1": ReferenceAttention(path)}):
        close(block(hidden, encoder_hidden_states=context, cross_attention_kwargs={"ip_hidden_states": borrow}), g["with_reference"])
        close(block.attn1(block.norm1(hidden)), g["attn_self"])
    with processors_replaced(block, {"attn1": ReferenceAttention(path, "concat")}):
        both = ReferenceCondition({path: bank}, torch.tensor([0, 1]))
        close(block.attn1(block.norm1(hidden), ip_hidden_states=both), g["attn_ref"])


def test_imitative_unet(method: MimicBrush):
    g = recipe.golden("unit_unet")
    noisy, tokens = recipe.inp("input.unet.sample", (2, 13, 32, 32)), recipe.inp("input.unet.ctx", (2, 9, 32))
    plain = Conditioning(tokens, inpaint=noisy[:, 4:])
    close(predict(method.unet, noisy[:, :4], T, plain), g["plain"])
    features = {path: value[1:] for path, value in unit_reference(method).items()}
    with method.attached() as unet:
        borrowing = Conditioning(tokens, inpaint=noisy[:, 4:], reference=ReferenceCondition(features, torch.tensor([-1, 0])))
        out = predict(unet, noisy[:, :4], T, borrowing)
    close(out, g["with_reference"])
    close(predict(method.unet, noisy[:, :4], T, plain), g["plain"])


def edit(method: MimicBrush, noise: Tensor, reference: Tensor, tokens: Tensor, negative: Tensor, channels: Tensor) -> list[Tensor]:
    """Latents after each of four guided steps."""
    borrowed = Reference(method.reference_net, reference, tokens)

    def both(latents: Tensor, t: Tensor, index: int) -> Tensor:
        without = Conditioning(negative, inpaint=channels)
        with_ = Conditioning(tokens, inpaint=channels, reference=borrowed.condition(t, torch.zeros(1, dtype=torch.long)))
        return predict(unet, latents, t, stacked(without, with_))

    with method.attached() as unet:
        return [step.latents for step in sample(guided_together(both, 5.0), noise, recipe.scheduler(), 4)]


def encoded(vae, pixels: Tensor, generator: torch.Generator) -> Tensor:
    return vae.encode(pixels).latent_dist.sample(generator) * vae.config.scaling_factor


def test_pipeline(method: MimicBrush):
    g, vae = recipe.golden("pipe_cfg5_depth0"), recipe.vae()
    inside = recipe.mask(256, 256) > 128
    collage = np.where(inside[..., None], np.uint8(0), recipe.image(256, 256, 1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        reference = encoded(vae, pictures.vae_pixels(recipe.image(256, 256, 4)), generator)
        collage_latents = encoded(vae, pictures.vae_pixels(collage), generator)
    close(reference, g["ref_latent"])
    close(collage_latents, g["masked_latent"])
    close(pictures.latent_mask(inside), g["mask"])
    channels = inpaint_channels(torch.from_numpy(g["mask"]), collage_latents, torch.zeros_like(collage_latents))
    tokens, negative = recipe.inp("input.prompt_embeds", (1, 9, 32)), recipe.inp("input.negative_prompt_embeds", (1, 9, 32))
    steps = edit(method, recipe.inp("input.latents", (1, 4, 32, 32)), reference, tokens, negative, channels)
    close(torch.cat(steps), g["latents_steps"], 1e-3)
    with torch.no_grad():
        pixels = vae.decode(steps[-1] / vae.config.scaling_factor).sample
    close((pixels[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)[::8, ::8], g["image_sub8"], 1e-3)


def test_geometry():
    g = recipe.golden("preprocess")
    source, mask = recipe.image(300, 420, 1), recipe.mask(300, 420)
    p = pictures.prepared(source, mask, recipe.image(350, 260, 4))
    for ours, name in ((p.source, "target_square"), (p.reference, "ref_square"), (p.collage, "collage")):
        assert np.abs(ours[::4, ::4].astype(int) - g[f"{name}_sub4"].astype(int)).max() <= 1
    assert np.array_equal(np.packbits(p.mask), g["mask_square"])
    close(pictures.depth_pixels(p.source)[:, :, ::14, ::14], g["depth_in_sub14"], 1e-3)
    close(pictures.clip_pixels(p.reference)[:, :, ::7, ::7], g["clip_pixels_sub7"], 1e-3)
    alpha = (pictures.soft(mask) * 255).round().astype(np.uint8)
    assert np.array_equal(alpha[130], g["alpha_row"])
    assert 3 * int(alpha.sum()) == int(g["alpha_sum"])  # official masks have three channels
    crop = pictures.unsquared(recipe.image(512, 512, 2), 300, 420)
    assert list(crop.shape) == g["crop_shape"].tolist()
    assert np.abs(crop[::4, ::4].astype(int) - g["crop_sub4"].astype(int)).max() <= 1
    back = pictures.pasted(crop, source, mask)[..., ::-1]
    assert np.abs(back[::4, ::4] - g["paste_sub4"]).max() <= 1


def test_a_whole_edit(method: MimicBrush):
    """The three random draws, the depth quirk, the geometry and the paste in one: 512 px, four steps."""
    g, vae, tower = recipe.golden("generate_noshape"), recipe.vae(), recipe.image_encoder()
    source, mask = recipe.image(300, 420, 1), recipe.mask(300, 420)
    p = pictures.prepared(source, mask, recipe.image(350, 260, 4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        clip = pictures.clip_pixels(p.reference)
        tokens, negative = method.image_tokens(tower, clip), method.image_tokens(tower, torch.zeros_like(clip))
        reference = encoded(vae, pictures.vae_pixels(p.reference), generator)
        noise = torch.randn(1, 4, 64, 64, generator=generator)
        collage = encoded(vae, pictures.vae_pixels(p.collage), generator)
        depth = torch.relu(2 * (pictures.depth_pixels(p.source) * 0).mean(1, keepdim=True) + 0.25)
        feature = method.depth_feature(depth, noise)
    for ours, name in ((tokens, "tokens"), (negative, "tokens_uncond")):
        close(ours, g[name], 1e-3)
    for ours, name in ((noise, "init_latents"), (reference, "ref_latent"), (collage, "masked_latent"), (feature, "depth_feature")):
        close(ours[..., ::4, ::4], g[f"{name}_sub4"], 1e-3)
    marked = pictures.latent_mask(p.mask)
    assert np.array_equal(np.packbits(marked.numpy().astype(bool)), g["mask"])
    last = edit(method, noise, reference, tokens, negative, inpaint_channels(marked, collage, feature))[-1]
    close(last, g["final_latents"], 1e-3)
    with torch.no_grad():
        pixels = vae.decode(last / vae.config.scaling_factor).sample[0].permute(1, 2, 0).numpy()
    result = ((pixels / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    assert np.abs(result[::8, ::8].astype(int) - g["pred_sub8"].astype(int)).max() <= 1
    final = pictures.pasted(pictures.unsquared(result, 300, 420), source, mask)[..., ::-1]
    assert np.abs(final[::8, ::8] - g["final_bgr_sub8"]).max() <= 2


def test_depth_anything_in_transformers_is_the_official_one():
    g = recipe.golden("unit_depth_anything")
    backbone = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14, out_indices=[9, 10, 11, 12],
        apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=384, patch_size=14, neck_hidden_sizes=[48, 96, 192, 384], fusion_hidden_size=64,
        head_hidden_size=32, head_in_index=-1,
    )  # fmt: skip
    net = DepthAnythingForDepthEstimation(config).eval()
    load_strictly(net, depth_anything_from_official(official_depth(net)), "depth_anything")
    pixels = recipe.inp("input.depth_anything.image", (1, 3, 518, 518))
    with torch.no_grad():
        close(net(pixels).predicted_depth[:, ::7, ::7], g["depth_sub7"])
        close(net(torch.zeros_like(pixels)).predicted_depth[:, ::7, ::7], g["zero_sub7"])


def official_depth(net: DepthAnythingForDepthEstimation) -> dict[str, Tensor]:
    """The official file's tensors for this size, by the fill rule: its names are those of the ViT-B list, its shapes this net's."""
    names = json.loads((recipe.FOLDER / "depth_anything_keys.json").read_text())
    own = net.state_dict()
    placeholder = {name: torch.zeros(3, 1) for name in names}
    values: dict[str, Tensor] = {}
    for name in names:
        (new,) = (k for k in depth_anything_from_official({name: placeholder[name]}) if ".k_proj." not in k and ".v_proj." not in k)
        shape = tuple(own[new].shape)
        if ".attn.qkv." in name:
            shape = (3 * shape[0], *shape[1:])
        values[name] = recipe.parameter(f"depth_anything.{name}", shape)
    return values
