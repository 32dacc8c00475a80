"""Parity with the official InstantID code, through our own modules and our own sampling loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from selfsame.diffusion.sampling import guided_together, sample
from selfsame.images.draw import draw_kps
from selfsame.images.resize import official_size, resize_official
from selfsame.methods.instantid.checkpoint import adapter_from_official, adapter_to_official, resampler_from_official
from selfsame.methods.instantid.method import InstantID, ResamplerSize, face_conditions, predict
from selfsame.methods.instantid.modules import DecoupledCrossAttention, FaceProjections, Resampler
from selfsame.studio.painting import begun
from selfsame.values.conditioning import Conditioning, FaceCondition, stacked
from tests.goldens import recipe


def close(ours: Tensor | np.ndarray, theirs: np.ndarray, rtol: float) -> None:
    """Largest difference as a share of the largest value."""
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else ours
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= rtol * np.abs(theirs).max()


def test_u01_small_resampler():
    net, g = recipe.fill(Resampler(**recipe.RESAMPLER), "image_proj"), recipe.golden("u01_resampler_small")
    a, b = recipe.tensor("face_emb", 512), recipe.tensor("face_emb_b", 512)
    cases = {
        "cond": a.view(1, 1, -1),
        "zero": torch.zeros(1, 1, 512),
        "two": torch.stack([a, b])[None],
        "two_zero": torch.zeros(1, 2, 512),
        "normed": (a / a.norm()).view(1, 1, -1),
    }
    for name, x in cases.items():
        close(net(x), g[name], 1e-4)


def test_u02_full_size_resampler():
    net, g = recipe.fill(Resampler(), "image_proj_full"), recipe.golden("u02_resampler_full")
    close(net(recipe.tensor("face_emb", 512).view(1, 1, -1)), g["cond"], 1e-4)
    close(net(torch.zeros(1, 1, 512)), g["zero"], 1e-4)


def test_u03_decoupled_cross_attention():
    g = recipe.golden("u03_ip_attention")
    attn = recipe.fill(Attention(query_dim=64, cross_attention_dim=48, heads=4, dim_head=16), "unit_attn")
    layer = recipe.fill(FaceProjections(64, 48), "unit_proc")
    attn.set_processor(DecoupledCrossAttention(layer))
    x, context = recipe.tensor("unit_attn_x", 2, 96, 64), recipe.tensor("unit_attn_ctx", 2, 93, 48)
    text, tokens = context[:, :77], context[:, 77:]
    face = FaceCondition(tokens, torch.full((2,), 0.7))
    close(attn(x, text, ip_hidden_states=face), g["out"], 1e-4)
    region = torch.zeros(2, 1, 96, 64)
    region[:, :, 20:71, 11:45] = 1
    close(attn(x, text, ip_hidden_states=replace(face, region=region)), g["out_region"], 1e-4)


@pytest.mark.parametrize("name", recipe.KPS)
def test_u04_key_point_drawing_is_exact(name: str):
    (width, height), kps = recipe.KPS[name]
    assert np.array_equal(draw_kps(height, width, np.array(kps, np.float32)), recipe.golden("u04_draw_kps")[name])


def test_u05_sizes_are_exact_and_pixels_agree():
    g = recipe.golden("u05_resize_img")
    for w, h, w1280, h1280, w1024, h1024 in g["table"].tolist():
        assert official_size(w, h, max_side=1280) == (w1280, h1280)
        assert official_size(w, h, max_side=1024) == (w1024, h1024)
    y, x = np.mgrid[0:61, 0:47]
    if g["pixels"].shape[0] < g["pixels"].shape[1]:
        y, x = np.mgrid[0:47, 0:61]
    image = np.stack([(5 * x + y * (c + 2)) % 256 for c in range(3)], -1).astype(np.uint8)
    for pad, name in ((False, "pixels"), (True, "padded")):
        ours = resize_official(image, max_side=128, min_side=96, multiple=16, pad=pad)
        assert np.array_equal(ours, g[name])


@pytest.fixture(scope="module")
def toy() -> tuple[UNet2DConditionModel, InstantID]:
    unet = recipe.fill(UNet2DConditionModel(**recipe.UNET), "unet")
    assert isinstance(unet, UNet2DConditionModel)
    method = InstantID.new(unet, ResamplerSize(**recipe.RESAMPLER))
    recipe.fill(method.identity_net, "controlnet")
    resampler_from_official({k: recipe.parameter(f"image_proj.{k}", tuple(v.shape)) for k, v in method.resampler.state_dict().items()}, method.resampler)
    official = {k: recipe.parameter(f"ip_adapter.{k}", tuple(v.shape)) for k, v in adapter_to_official(method.adapter).items()}
    adapter_from_official(official, method.adapter)
    return unet, method.eval()


def run(
    toy: tuple[UNet2DConditionModel, InstantID], noise: Tensor, guidance_scale: float, num_steps: int = 4, start: Tensor | None = None, strength: float = 1.0
) -> Tensor:
    unet, method = toy
    n = len(noise)
    kps_image = torch.from_numpy(recipe.golden("u04_draw_kps")["pipeline"]).permute(2, 0, 1)[None].float() / 255
    kps_image = kps_image.expand(n, -1, -1, -1)
    time_ids = torch.tensor([[192.0, 128, 0, 0, 192, 128]]).expand(n, -1)

    def condition(prefix: str, tokens: Tensor) -> Conditioning:
        face, spatial = face_conditions(tokens.expand(n, -1, -1), kps_image, 0.8, 0.8)
        text = recipe.tensor(prefix + "prompt_embeds", 1, 77, 64).expand(n, -1, -1)
        return Conditioning(text, recipe.tensor(prefix + "pooled_prompt_embeds", 1, 32).expand(n, -1), time_ids, face, spatial)

    with torch.no_grad(), method.attached(unet):
        c = condition("", method.tokens(recipe.tensor("face_emb", 512).view(1, 1, -1)))
        if guidance_scale > 1:
            both = stacked(condition("negative_", method.no_face(1)), c)
            step = guided_together(lambda x, t, i: predict(unet, method.identity_net, x, t, both), guidance_scale)
        else:

            def step(x: Tensor, t: Tensor, i: int) -> Tensor:
                return predict(unet, method.identity_net, x, t, c)

        scheduler, timesteps = EulerDiscreteScheduler(**recipe.EULER), None
        if start is not None:
            noise, timesteps = begun(start, noise, scheduler, num_steps, strength)
        *_, last = sample(step, noise, scheduler, num_steps, timesteps=timesteps)
    return last.latents


def test_c01_text_to_image(toy):
    close(run(toy, recipe.tensor("latents", 1, 4, 24, 16), 5.0), recipe.golden("c01_txt2img_euler")["latents"], 1e-3)


def test_c02_without_guidance(toy):
    close(run(toy, recipe.tensor("latents", 1, 4, 24, 16), 1.0), recipe.golden("c02_nocfg")["latents"], 1e-3)


def test_c05_image_to_image(toy):
    vae, drawn = recipe.fill(AutoencoderKL(**recipe.VAE), "vae"), torch.Generator().manual_seed(1234)
    ramps = np.fromfunction(lambda y, x, c: (2 * x + 3 * y + 40 * c) % 256, (192, 128, 3)).astype(np.float32)
    pixels = torch.from_numpy(ramps).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        start = 0.13025 * vae.encode(pixels).latent_dist.sample(drawn)
    noise = torch.randn(start.shape, generator=drawn)
    close(run(toy, noise, 5.0, 5, start, 0.85), recipe.golden("c05_img2img")["latents"], 1e-3)


def test_c06_two_pictures(toy):
    close(run(toy, recipe.tensor("latents_n2", 2, 4, 24, 16), 5.0), recipe.golden("c06_n2")["latents"], 1e-3)


def test_c10_decoded(toy):
    g = recipe.golden("c10_decoded")
    vae = recipe.fill(AutoencoderKL(**recipe.VAE), "vae")
    latents = run(toy, recipe.tensor("latents", 1, 4, 24, 16), 5.0)
    with torch.no_grad():
        image = (vae.decode(latents / 0.13025).sample / 2 + 0.5).clamp(0, 1)
    u8 = (image.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    theirs = g["image_u8"].reshape(u8.shape)
    assert np.abs(u8.astype(int) - theirs.astype(int)).max() <= 1
