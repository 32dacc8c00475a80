"""Stock diffusers pipelines with InstantID inside give the official numbers, and are themselves again afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKL, ControlNetModel, EulerDiscreteScheduler, LCMScheduler, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfsame.diffusion.sampling import guided_together, sample
from selfsame.images.files import InputError
from selfsame.methods.instantid.checkpoint import (
    adapter_to_official,
    identity_net_in,
    instantid_from_official,
    instantid_to_official,
    looks_like,
    read_adapter,
    resampler_from_official,
)
from selfsame.methods.instantid.interop import face_in
from selfsame.methods.instantid.method import ImageAdapter, InstantID, ResamplerSize, Residuals, face_conditions, predict, residuals_of
from selfsame.methods.instantid.modules import Resampler, region_weights
from selfsame.values.conditioning import Conditioning, stacked
from tests.goldens import recipe
from tests.methods.test_instantid_goldens import close

FACE = recipe.tensor("face_emb", 512)
KPS = Image.fromarray(recipe.golden("u04_draw_kps")["pipeline"])
SECOND = Image.fromarray(np.fromfunction(lambda y, x, c: (3 * x + 5 * y * (c + 1)) % 256, (192, 128, 3)).astype(np.uint8))
START = Image.fromarray(np.fromfunction(lambda y, x, c: (2 * x + 3 * y + 40 * c) % 256, (192, 128, 3)).astype(np.uint8))
SD15: dict[str, Any] = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 64,
    "norm_num_groups": 8, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def filled(unet: UNet2DConditionModel) -> InstantID:
    method = InstantID.new(unet, ResamplerSize(**recipe.RESAMPLER))
    recipe.fill(method.identity_net, "controlnet")
    recipe.fill(method.resampler, "image_proj")
    order = {k: f"{2 * i + 1}" for i, k in enumerate(method.adapter.layers)}
    recipe.fill(method.adapter, "ip_adapter", lambda k: f"{order[k.split('.')[1]]}.{'.'.join(k.split('.')[2:])}")
    return method.eval().requires_grad_(False)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl(kind: str = "StableDiffusionXLControlNetPipeline", more: list[ControlNetModel] | None = None) -> tuple[Any, InstantID]:
    unet = recipe.fill(UNet2DConditionModel(**recipe.UNET), "unet")
    assert isinstance(unet, UNet2DConditionModel)
    method = filled(unet)
    nets: Any = [method.identity_net, *more] if more else method.identity_net
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    parts |= {"unet": unet, "vae": recipe.fill(AutoencoderKL(**recipe.VAE), "vae"), "scheduler": EulerDiscreteScheduler(**recipe.EULER), "controlnet": nets}
    return quiet(getattr(diffusers, kind)(**parts, add_watermarker=False)), method


def told() -> dict[str, Tensor]:
    made = {}
    for prefix in ("", "negative_"):
        made[f"{prefix}prompt_embeds"] = recipe.tensor(f"{prefix}prompt_embeds", 1, 77, 64)
        made[f"{prefix}pooled_prompt_embeds"] = recipe.tensor(f"{prefix}pooled_prompt_embeds", 1, 32)
    return made


def painted(pipe: Any, **changes: Any) -> Tensor:
    settings: dict[str, Any] = {
        "num_inference_steps": 4, "guidance_scale": 5.0, "controlnet_conditioning_scale": 0.8, "output_type": "latent", "image": KPS,
        "latents": recipe.tensor("latents", 1, 4, 24, 16),
    }  # fmt: skip
    return pipe(**told(), **(settings | changes)).images


# ------------------------------------------------------------------------------------------ the official numbers


def test_a_stock_sdxl_pipeline_gives_the_official_numbers():
    pipe, method = sdxl()
    with face_in(pipe, method, FACE):
        close(painted(pipe), recipe.golden("c01_txt2img_euler")["latents"], 1e-4)
        close(painted(pipe, guidance_scale=1.0), recipe.golden("c02_nocfg")["latents"], 1e-4)
        two = painted(pipe, num_images_per_prompt=2, latents=recipe.tensor("latents_n2", 2, 4, 24, 16))
        close(two, recipe.golden("c06_n2")["latents"], 1e-4)


def test_image_to_image_gives_the_official_numbers():
    pipe, method = sdxl("StableDiffusionXLControlNetImg2ImgPipeline")
    with face_in(pipe, method, FACE):
        generator = torch.Generator().manual_seed(1234)
        made = painted(pipe, image=START, control_image=KPS, strength=0.85, num_inference_steps=5, generator=generator, latents=None)
    close(made, recipe.golden("c05_img2img")["latents"], 1e-3)


def test_the_pipeline_is_itself_again_also_after_an_error():
    pipe, method = sdxl()
    before, tree = painted(pipe), repr(pipe.unet)
    processors = dict(pipe.unet.attn_processors)
    with face_in(pipe, method, FACE):
        assert not torch.equal(painted(pipe), before)
    assert torch.equal(painted(pipe), before)

    def fail() -> None:
        with face_in(pipe, method, FACE):
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert torch.equal(painted(pipe), before)
    assert repr(pipe.unet) == tree
    assert pipe.unet.attn_processors == processors
    assert not method.identity_net._forward_pre_hooks
    assert not method.identity_net._forward_hooks


def test_without_any_strength_it_is_the_base():
    pipe, method = sdxl()
    plain = painted(pipe, controlnet_conditioning_scale=0.0)
    with face_in(pipe, method, FACE, ip_scale=0.0):
        assert torch.equal(painted(pipe, controlnet_conditioning_scale=0.0), plain)


# ------------------------------------------------------------------------------------------ like our own loop


def ours(
    unet: UNet2DConditionModel, method: InstantID, *, region: Tensor | None = None, second: ControlNetModel | None = None, second_scale: float = 1.0,
    time_ids: bool = True,
) -> Tensor:  # fmt: skip
    """c01's request by our own loop, with a region, or with another ControlNet that sees the text."""
    side = {"latents": recipe.tensor("latents", 1, 4, 24, 16), "kps": KPS, "second": SECOND}
    images = {k: torch.from_numpy(np.array(side[k])).permute(2, 0, 1)[None].float() / 255 for k in ("kps", "second")}
    ids = torch.tensor([[192.0, 128, 0, 0, 192, 128]])
    words = told()

    def condition(prefix: str, tokens: Tensor) -> Conditioning:
        face, spatial = face_conditions(tokens, images["kps"], 0.8, 0.8, region)
        pooled = words[f"{prefix}pooled_prompt_embeds"] if time_ids else None
        return Conditioning(words[f"{prefix}prompt_embeds"], pooled, ids if time_ids else None, face, spatial)

    with torch.no_grad(), method.attached(unet):
        both = stacked(condition("negative_", method.no_face(1)), condition("", method.tokens(FACE.view(1, 1, -1))))

        def raw(x: Tensor, t: Tensor, i: int) -> Tensor:
            if second is None:
                return predict(unet, method.identity_net, x, t, both)
            residuals, more = residuals_of(method.identity_net, x, t, both), {"text_embeds": both.pooled, "time_ids": both.time_ids}
            assert residuals is not None
            drawn = images["second"].expand(len(x), -1, -1, -1)
            down, mid = second(x, t, both.encoder_hidden_states, drawn, second_scale, added_cond_kwargs=more, return_dict=False)
            added = Residuals([a + b for a, b in zip(residuals.down, down, strict=True)], residuals.mid + mid)
            return predict(unet, method.identity_net, x, t, both, residuals=added)

        step = guided_together(raw, 5.0)
        *_, last = sample(step, side["latents"], EulerDiscreteScheduler(**recipe.EULER), 4)
    return last.latents


def test_a_region_is_that_of_our_loop():
    pipe, method = sdxl()
    region = torch.zeros(1, 1, 192, 128)
    region[:, :, 51:140, 37:101] = 1
    expected = ours(pipe.unet, method, region=region)
    with face_in(pipe, method, FACE, region=region):
        made = painted(pipe)
    close(made, expected.numpy(), 1e-4)
    assert not torch.allclose(made, torch.from_numpy(recipe.golden("c01_txt2img_euler")["latents"]), atol=1e-2)


def test_stable_diffusion_15_runs_the_same_way():
    unet = recipe.fill(UNet2DConditionModel(**SD15), "unet15")
    assert isinstance(unet, UNet2DConditionModel)
    method = filled(unet)
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    parts |= {"unet": unet, "vae": recipe.fill(AutoencoderKL(**recipe.VAE), "vae"), "scheduler": EulerDiscreteScheduler(**recipe.EULER)}
    pipe = quiet(diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=method.identity_net, requires_safety_checker=False))
    words = {k: v for k, v in told().items() if "pooled" not in k}
    expected = ours(unet, method, time_ids=False)
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0, "controlnet_conditioning_scale": 0.8, "output_type": "latent", "image": KPS}
    with face_in(pipe, method, FACE):
        made = pipe(**words, **settings, latents=recipe.tensor("latents", 1, 4, 24, 16)).images
    close(made, expected.numpy(), 1e-4)


def test_beside_another_controlnet_only_identity_net_sees_the_face():
    torch.manual_seed(0)
    other = ControlNetModel.from_unet(recipe.fill(UNet2DConditionModel(**recipe.UNET), "unet"))  # type: ignore[arg-type]
    recipe.fill(other, "controlnet2")
    pipe, method = sdxl(more=[other])
    seen: list[Tensor] = []
    other.register_forward_pre_hook(lambda net, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True)
    with face_in(pipe, method, FACE):
        both = painted(pipe, image=[KPS, SECOND], controlnet_conditioning_scale=[0.8, 0.4])
        alone = painted(pipe, image=[KPS, SECOND], controlnet_conditioning_scale=[0.8, 0.0])
    assert seen[0].shape[1] == 77
    assert torch.equal(seen[0][1:], told()["prompt_embeds"])
    close(alone, recipe.golden("c01_txt2img_euler")["latents"], 1e-4)
    assert not torch.allclose(both, alone, atol=1e-2)


def test_an_identity_net_that_learned_from_the_text_is_left_the_text():
    pipe, method = sdxl()
    seen: list[Tensor] = []
    method.identity_net.down_blocks[-1].register_forward_pre_hook(lambda net, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True)
    method.net_reads = "text"
    with face_in(pipe, method, FACE):
        text = painted(pipe)
    assert torch.equal(seen[0][1:], told()["prompt_embeds"])
    method.net_reads = "face"
    with face_in(pipe, method, FACE):
        face = painted(pipe)
    assert seen[-1].shape[1] == method.size.num_queries
    assert not torch.allclose(text, face, atol=1e-3)


def test_inpainting_keeps_what_is_not_masked():
    pipe, method = sdxl("StableDiffusionXLControlNetInpaintPipeline")
    mask = np.zeros((192, 128), np.uint8)
    mask[64:128, 32:96] = 255
    settings: dict[str, Any] = {"image": START, "mask_image": Image.fromarray(mask), "control_image": KPS, "strength": 0.99, "latents": None}

    def inpainted() -> Tensor:
        return painted(pipe, **settings, generator=torch.Generator().manual_seed(1))

    plain = inpainted()
    with face_in(pipe, method, FACE):
        faced = inpainted()
    outside = torch.ones(24, 16, dtype=torch.bool)
    outside[8:16, 4:12] = False
    assert torch.allclose(plain[0, :, outside], faced[0, :, outside], atol=1e-5)
    assert not torch.allclose(plain[0, :, ~outside], faced[0, :, ~outside], atol=1e-2)


# ------------------------------------------------------------------------------------------ beside other things


def test_a_lora_is_really_applied_inside():
    pipe, method = sdxl()
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), "style")
    with face_in(pipe, method, FACE):
        untouched = painted(pipe)  # a new LoRA adds nothing
        close(untouched, recipe.golden("c01_txt2img_euler")["latents"], 1e-4)
        with torch.no_grad():
            for name, p in pipe.unet.named_parameters():
                if "lora_B" in name:
                    p.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
        changed = painted(pipe)
        pipe.unet.disable_adapters()
        assert torch.allclose(painted(pipe), untouched, atol=1e-4)
    assert not torch.allclose(changed, untouched, atol=1e-2)


def test_what_another_processor_does_stays_and_the_face_is_added(monkeypatch: pytest.MonkeyPatch):
    """Sliced attention computes the same in slices; with the face in, it gives the official numbers too."""
    pipe, method = sdxl()
    pipe.unet.set_attention_slice(1)
    with face_in(pipe, method, FACE):
        close(painted(pipe), recipe.golden("c01_txt2img_euler")["latents"], 1e-3)
    assert "Sliced" in type(next(iter(pipe.unet.attn_processors.values()))).__name__


def test_an_ip_adapter_beside_it_keeps_working(tmp_path: Path):
    """The official file is what diffusers' own IP-Adapter loader reads; loaded there at strength 0 the face of ours remains, above 0 both count."""
    pipe, method = sdxl()
    instantid_to_official(method, tmp_path)
    before = pipe.unet.attn_processors
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="ip-adapter.bin", image_encoder_folder=None)
    embeds = [torch.stack([torch.zeros(1, 512), FACE.flip(0).view(1, 512)])[:, None]]
    made = []
    for scale in (0.0, 0.7):
        pipe.set_ip_adapter_scale(scale)
        with face_in(pipe, method, FACE):
            made.append(painted(pipe, ip_adapter_image_embeds=embeds))
    alone, both = made
    close(alone, recipe.golden("c01_txt2img_euler")["latents"], 1e-3)
    assert not torch.allclose(alone, both, atol=1e-2)
    pipe.unload_ip_adapter()
    assert {type(p) for p in pipe.unet.attn_processors.values()} == {type(p) for p in before.values()}


def test_callbacks_and_photos_together_and_people_for_prompts():
    pipe, method = sdxl()
    steps = []

    def note(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(i)
        return tensors

    with face_in(pipe, method, torch.stack([FACE, recipe.tensor("face_emb_b", 512)])):
        painted(pipe, callback_on_step_end=note)
    assert steps == [0, 1, 2, 3]
    pair = torch.stack([FACE, recipe.tensor("face_emb_b", 512)])[:, None]
    words = {k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in told().items()}
    settings: dict[str, Any] = {
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "controlnet_conditioning_scale": 0.8,
        "output_type": "latent",
        "image": [KPS, KPS],
    }
    latents = recipe.tensor("latents", 1, 4, 24, 16).repeat(2, 1, 1, 1)
    with face_in(pipe, method, pair):
        both = pipe(**words, **settings, latents=latents).images
    close(both[:1], recipe.golden("c01_txt2img_euler")["latents"], 1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_guess_mode_with_guidance_runs():
    """Officially it crashes: the pipeline sends the conditional rows alone."""
    pipe, method = sdxl()
    with face_in(pipe, method, FACE):
        assert torch.isfinite(painted(pipe, guess_mode=True)).all()


@pytest.mark.parametrize(
    ("embedding", "more", "says"),
    [(torch.zeros(128), {}, "128 wide"), (FACE, {"ip_scale": -1.0}, "0 or more")],
)
def test_what_cannot_work_is_refused(embedding: Tensor, more: dict[str, Any], says: str):
    pipe, method = sdxl()
    with pytest.raises(ValueError, match=says), face_in(pipe, method, embedding, **more):
        pass


def test_three_people_cannot_share_one_picture():
    pipe, method = sdxl()
    with pytest.raises(ValueError, match="3 people"), face_in(pipe, method, FACE.expand(3, 1, 512)):
        painted(pipe)


# ------------------------------------------------------------------------------------------ files


def base() -> UNet2DConditionModel:
    unet = recipe.fill(UNet2DConditionModel(**recipe.UNET), "unet")
    assert isinstance(unet, UNet2DConditionModel)
    return unet


@pytest.mark.parametrize("form", ["official", "safetensors"])
def test_official_folders_are_read_as_they_are_written(tmp_path: Path, form: Any):
    unet = base()
    method = filled(unet)
    path = instantid_to_official(method, tmp_path, form=form)
    halves = read_adapter(path)
    assert set(halves[1]) == set(adapter_to_official(method.adapter))
    again = instantid_from_official(tmp_path, unet)
    assert again.size == method.size
    for (name, a), (_, b) in zip(method.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert "_name_or_path" not in (tmp_path / "ControlNetModel/config.json").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_out(tmp_path: Path, dtype: torch.dtype):
    unet = base()
    instantid_to_official(filled(unet), tmp_path, dtype=dtype)
    assert {v.dtype for half in read_adapter(tmp_path / "ip-adapter.bin") for v in half.values()} == {dtype}
    assert instantid_from_official(tmp_path, unet, dtype=dtype).resampler.latents.dtype == dtype


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"image_proj": {"proj.weight": torch.zeros(2, 2), "norm.weight": torch.zeros(2)}, "ip_adapter": {"1.to_k_ip.weight": torch.zeros(2, 2)}},
            "plain IP-Adapter",
        ),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)}, "whole Stable Diffusion checkpoint"),
        ({"controlnet_cond_embedding.conv_in.weight": torch.zeros(2)}, "a ControlNet"),
        ({"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(2)}, "a LoRA"),
        ({"referencenet": {"conv_in.weight": torch.zeros(2)}, "unet": {}}, "MimicBrush"),
        (torch.zeros(3), "one Tensor"),
    ],
)
def test_another_file_is_named_for_what_it_looks_like(tmp_path: Path, values: Any, says: str):
    torch.save(values, tmp_path / "ip-adapter.bin")
    with pytest.raises(InputError, match=says):
        read_adapter(tmp_path / "ip-adapter.bin")
    assert says in looks_like(values)


def load_file_of(body: bytes, folder: Path) -> dict[str, Tensor]:
    (folder / "whole.safetensors").write_bytes(body)
    return load_file(folder / "whole.safetensors")


@pytest.mark.parametrize(("body", "says"), [(b"version https://git-lfs.github.com/spec/v1", "git-lfs"), (b"<html>gone</html>", "a web page")])
def test_what_came_instead_of_the_file_is_named(tmp_path: Path, body: bytes, says: str):
    (tmp_path / "ip-adapter.bin").write_bytes(body)
    with pytest.raises(InputError, match=says):
        read_adapter(tmp_path / "ip-adapter.bin")


def test_our_own_folder_is_read_too_and_two_adapters_are_ambiguous(tmp_path: Path):
    unet = base()
    method = filled(unet)
    method.save_pretrained(tmp_path)
    again = instantid_from_official(tmp_path, unet)
    assert torch.equal(again.resampler.latents, method.resampler.latents)
    other = instantid_to_official(method, tmp_path / "other", form="safetensors")
    other.rename(tmp_path / other.name)
    with pytest.raises(InputError, match=r"and adapter\.safetensors"):
        instantid_from_official(tmp_path, unet)


def test_a_pipeline_with_another_controlnet_is_not_taken_silently():
    pipe, method = sdxl()
    pipe.controlnet = ControlNetModel.from_unet(pipe.unet)
    with pytest.raises(ValueError, match=r"controlnet=method\.identity_net"), face_in(pipe, method, FACE):
        pass
    with face_in(pipe, method, FACE, adapter_only=True):
        assert torch.isfinite(painted(pipe)).all()


def test_regions_of_sides_that_are_no_multiple_of_32_fit_every_layer():
    region = torch.rand(1, 1, 1016, 1280)
    for k in range(3, 7):
        places = -(-1016 // 2**k) * -(-1280 // 2**k)
        assert region_weights(region, places).shape == (1, places, 1)
    with pytest.raises(ValueError, match="does not belong"):
        region_weights(region, 12345)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"image_proj": Evil()}, tmp_path / "ip-adapter.bin")
    with pytest.raises(InputError, match="perhaps code"):
        read_adapter(tmp_path / "ip-adapter.bin")
    assert not (tmp_path / "executed").exists()


def test_missing_damaged_and_foreign_files_are_said(tmp_path: Path):
    unet = base()
    with pytest.raises(InputError, match="it holds none of them"):
        instantid_from_official(tmp_path, unet)
    path = instantid_to_official(filled(unet), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        instantid_from_official(tmp_path, unet)
    path.write_bytes(whole)
    narrow = UNet2DConditionModel(**(recipe.UNET | {"cross_attention_dim": 48}))
    with pytest.raises(ValueError, match="64 wide, this one's is 48"):
        instantid_from_official(tmp_path, narrow)
    short = UNet2DConditionModel(**(recipe.UNET | {"transformer_layers_per_block": (1, 1, 1)}))
    with pytest.raises(ValueError, match="ip_adapter key 5"):
        instantid_from_official(tmp_path, short)
    weights = tmp_path / "ControlNetModel/diffusion_pytorch_model.safetensors"
    body = weights.read_bytes()
    weights.write_bytes(body[: len(body) // 2])
    with pytest.raises(InputError, match="IdentityNet cannot be loaded"):
        instantid_from_official(tmp_path, unet)
    values = load_file_of(body, tmp_path)
    save_file({k: v for k, v in values.items() if k != "conv_in.bias"} | {"extra": torch.zeros(1)}, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match="2 keys are missing, extra"):
        instantid_from_official(tmp_path, unet)
    (tmp_path / "ControlNetModel/config.json").unlink()
    with pytest.raises(InputError, match="must lie beside"):
        instantid_from_official(tmp_path, unet)


def test_masks_of_an_ip_adapter_beside_it_still_count(tmp_path: Path):
    pipe, method = sdxl()
    instantid_to_official(method, tmp_path)
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="ip-adapter.bin", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.7)
    mask = torch.zeros(1, 1, 192, 128)
    mask[..., :64] = 1
    asked: dict[str, Any] = {
        "ip_adapter_image_embeds": [torch.stack([torch.zeros(1, 512), FACE.flip(0).view(1, 512)])[:, None]],
        "cross_attention_kwargs": {"ip_adapter_masks": [mask]},
        "controlnet_conditioning_scale": 0.0,
    }
    stock = painted(pipe, **asked)
    with face_in(pipe, method, FACE, ip_scale=0.0):
        close(painted(pipe, **asked), stock.numpy(), 1e-4)


def test_one_form_of_the_weights_replaces_the_other_in_a_folder(tmp_path: Path):
    unet = base()
    method = filled(unet)
    method.save_pretrained(tmp_path)
    instantid_to_official(method, tmp_path)
    assert instantid_from_official(tmp_path, unet).size == method.size
    method.save_pretrained(tmp_path)
    assert instantid_from_official(tmp_path, unet).size == method.size


def test_our_own_folder_is_read_strictly_too(tmp_path: Path):
    unet = base()
    filled(unet).save_pretrained(tmp_path)
    narrow = UNet2DConditionModel(**(recipe.UNET | {"cross_attention_dim": 48}))
    with pytest.raises(ValueError, match="this one's is 48"):
        instantid_from_official(tmp_path, narrow)
    file = next((tmp_path / "ControlNetModel").glob("*.safetensors"))
    values = load_file(file)
    del values["conv_in.weight"]
    save_file(values, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"not a whole IdentityNet.*conv_in\.weight"):
        instantid_from_official(tmp_path, unet)


# ------------------------------------------------------------------------------------------ the released model's own size

SDXL_UNET: dict[str, Any] = {  # stable-diffusion-xl-base-1.0
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


def test_at_full_size_the_parts_have_exactly_the_released_keys_and_shapes():
    """Without a number being made: 140 projections, widths by the official numbers, 51 tensors of the Resampler, a ControlNet of 1251 million parameters."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL_UNET)
        shapes = {k: tuple(v.shape) for k, v in adapter_to_official(ImageAdapter.of(unet, from_base=False)).items()}
        resampler = {k: tuple(v.shape) for k, v in Resampler().state_dict().items()}
        net = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    assert set(shapes) == {f"{n}.{part}.weight" for n in range(1, 140, 2) for part in ("to_k_ip", "to_v_ip")}
    widths = {n: shapes[f"{n}.to_k_ip.weight"] for n in range(1, 140, 2)}
    assert all(shape[1] == 2048 for shape in widths.values())
    assert [widths[n][0] for n in (1, 7, 9, 47, 49, 107, 109, 119, 121, 139)] == [640] * 2 + [1280] * 4 + [640] * 2 + [1280] * 2
    assert len(resampler) == 51
    assert resampler["latents"] == (1, 16, 1280)
    assert resampler["proj_in.weight"] == (1280, 512)
    assert resampler["proj_out.weight"] == (2048, 1280)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == 1251


# ------------------------------------------------------------------------------------------ what users of other programs have


def test_identity_net_in_one_file_is_the_same_net(tmp_path: Path):
    """As ComfyUI and A1111 keep it: beside the adapter or in its folder, without a config; of another base or twice it is refused."""
    unet = recipe.fill(UNet2DConditionModel(**recipe.UNET), "unet")
    assert isinstance(unet, UNet2DConditionModel)
    method = filled(unet)
    instantid_to_official(method, tmp_path / "whole", form="safetensors")
    weights = next((tmp_path / "whole/ControlNetModel").glob("*.safetensors"))
    for place in ("flat", "flat/ControlNetModel"):
        folder = tmp_path / place.replace("/", "-")
        (folder / "ControlNetModel" if "/" in place else folder).mkdir(parents=True)
        shutil.copy(tmp_path / "whole/ip-adapter.safetensors", folder)
        shutil.copy(weights, folder / ("ControlNetModel/net.safetensors" if "/" in place else "control_instant_id_sdxl.safetensors"))
        again = instantid_from_official(folder, unet)
        assert all(torch.equal(v, again.identity_net.state_dict()[k]) for k, v in method.identity_net.state_dict().items())
    with pytest.raises(InputError, match="no ControlNet of this base"):
        identity_net_in(weights, recipe.fill(UNet2DConditionModel(**SD15), "unet15"), torch.float32)  # type: ignore[arg-type]
    shutil.copy(weights, tmp_path / "flat/second.safetensors")
    with pytest.raises(InputError, match=r"no config\.json there"):
        instantid_from_official(tmp_path / "flat", unet)


def test_an_ip_adapter_plus_in_instantids_clothes_is_said(tmp_path: Path):
    """Its keys are the same, what it reads is not: CLIP's 1280 numbers."""
    unet = recipe.fill(UNet2DConditionModel(**recipe.UNET), "unet")
    assert isinstance(unet, UNet2DConditionModel)
    method = InstantID.new(unet, ResamplerSize(**recipe.RESAMPLER | {"embedding_dim": 1280}))
    instantid_to_official(method, tmp_path)
    with pytest.raises(ValueError, match=r"reads 1280 numbers, a face embedding has 512.*IP-Adapter Plus"):
        instantid_from_official(tmp_path, unet).tokens(FACE.view(1, 1, -1))
    image_proj, _ = read_adapter(tmp_path / "ip-adapter.bin")
    key = "layers.0.0.norm1.weight"
    with pytest.raises(ValueError, match=f"image_proj key {key} has shape"):
        resampler_from_official(image_proj | {key: torch.zeros(3)}, method.resampler)
    with pytest.raises(ValueError, match="it looks like an adapter with a Resampler"):
        resampler_from_official({k: v for k, v in image_proj.items() if k != key}, method.resampler)


def test_a_net_that_reads_the_text_stays_one_and_never_leaves(tmp_path: Path):
    unet = recipe.fill(UNet2DConditionModel(**recipe.UNET), "unet")
    assert isinstance(unet, UNet2DConditionModel)
    method = filled(unet)
    method.net_reads = "text"
    method.save_pretrained(tmp_path)
    assert instantid_from_official(tmp_path, unet).net_reads == "text"
    with pytest.raises(ValueError, match="reads the text"):
        instantid_to_official(method, tmp_path / "official")


# ------------------------------------------------------------------------------------------ stock pipelines, further


def test_two_control_nets_together_are_their_sum():
    """IdentityNet beside another net gives what our own loop gives with both residuals added."""
    torch.manual_seed(0)
    other = ControlNetModel.from_unet(recipe.fill(UNet2DConditionModel(**recipe.UNET), "unet"))  # type: ignore[arg-type]
    recipe.fill(other, "controlnet2")
    pipe, method = sdxl(more=[other])
    with face_in(pipe, method, FACE):
        made = painted(pipe, image=[KPS, SECOND], controlnet_conditioning_scale=[0.8, 0.4])
    close(made, ours(pipe.unet, method, second=other, second_scale=0.4).numpy(), 1e-4)


def test_an_error_in_a_callback_leaves_no_trace_either():
    pipe, method = sdxl()
    before = painted(pipe)

    def stop(pipe: Any, index: int, t: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            raise KeyboardInterrupt
        return kwargs

    with pytest.raises(KeyboardInterrupt), face_in(pipe, method, FACE):
        painted(pipe, callback_on_step_end=stop)
    assert torch.equal(painted(pipe), before)
    seen: list[Tensor] = []

    def change(pipe: Any, index: int, t: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        seen.append(kwargs["latents"].clone())
        return {"latents": kwargs["latents"] * 0.9} if index == 0 else kwargs

    with face_in(pipe, method, FACE):
        plain, changed = painted(pipe), painted(pipe, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["latents"])
    assert len(seen) == 4
    assert not torch.allclose(plain, changed, atol=1e-3)


def test_parts_that_are_offloaded_give_the_same_numbers():
    """Layers that come to the device only when they are called (accelerate's hooks, as `enable_sequential_cpu_offload` sets them)."""
    pipe, method = sdxl()
    with face_in(pipe, method, FACE):
        expected = painted(pipe)
        for net in (pipe.unet, pipe.vae, method.identity_net):
            cpu_offload(net, execution_device=torch.device("cpu"))
        assert torch.equal(painted(pipe), expected)


def test_few_step_loras_paint_in_a_stock_pipeline(tmp_path: Path):
    """A LoRA loaded by the pipeline's own loader, with LCM's solver, acts beside the face."""
    pipe, method = sdxl()
    values = {}
    for k, path in enumerate(sorted({n.removesuffix(".to_q") for n, _ in pipe.unet.named_modules() if n.endswith("attn2.to_q")})):
        shape, g = pipe.unet.get_submodule(f"{path}.to_q").weight.shape, torch.Generator().manual_seed(k)
        values |= {f"unet.{path}.to_q.lora_{n}.weight": 0.3 * torch.randn(s, generator=g) for n, s in (("A", (2, shape[1])), ("B", (shape[0], 2)))}
    save_file(values, tmp_path / "pytorch_lora_weights.safetensors")
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    few: dict[str, Any] = {"guidance_scale": 1.0, "num_inference_steps": 2}

    def made() -> Tensor:
        return painted(pipe, **few, generator=torch.Generator().manual_seed(0))

    with face_in(pipe, method, FACE):
        plain = made()
    pipe.load_lora_weights(tmp_path)
    with face_in(pipe, method, FACE):
        fast = made()
    pipe.unload_lora_weights()
    with face_in(pipe, method, FACE):
        assert torch.allclose(made(), plain, atol=1e-4)
    assert not torch.allclose(fast, plain, atol=1e-2)


@pytest.mark.parametrize("kind", ["StableDiffusionControlNetImg2ImgPipeline", "StableDiffusionControlNetInpaintPipeline"])
def test_stable_diffusion_15_starts_from_pictures_and_inpaints(kind: str):
    unet = recipe.fill(UNet2DConditionModel(**SD15), "unet15")
    assert isinstance(unet, UNet2DConditionModel)
    method = filled(unet)
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    parts |= {"unet": unet, "vae": recipe.fill(AutoencoderKL(**recipe.VAE), "vae"), "scheduler": EulerDiscreteScheduler(**recipe.EULER)}
    pipe = quiet(getattr(diffusers, kind)(**parts, controlnet=method.identity_net, requires_safety_checker=False))
    words = {k: v for k, v in told().items() if "pooled" not in k}
    mask = np.zeros((192, 128), np.uint8)
    mask[64:128, 32:96] = 255
    settings: dict[str, Any] = {"image": START, "control_image": KPS, "strength": 0.99, "num_inference_steps": 3, "output_type": "latent"}
    settings |= {"mask_image": Image.fromarray(mask)} if "Inpaint" in kind else {}

    def made() -> Tensor:
        return pipe(**words, **settings, guidance_scale=5.0, generator=torch.Generator().manual_seed(1)).images

    plain = made()
    with face_in(pipe, method, FACE):
        faced = made()
    assert torch.equal(made(), plain)
    assert not torch.allclose(plain, faced, atol=1e-2)
    if "Inpaint" in kind:
        outside = torch.ones(24, 16, dtype=torch.bool)
        outside[8:16, 4:12] = False
        assert torch.allclose(plain[0, :, outside], faced[0, :, outside], atol=1e-5)
