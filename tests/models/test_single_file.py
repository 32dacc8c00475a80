"""A checkpoint in one file: written here under the original names, read back number for number."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from selfsame.images.files import InputError
from selfsame.models.single_file import header_of, kind_of, unpacked
from selfsame.studio.real import Folders
from selfsame.weights.catalogue import CATALOGUE

TOKENS = Path(__file__).parents[1] / "goldens/stableidentity/tiny_tokenizer"
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0",
    "conv_out": "out.2",
}  # fmt: skip
LAYERS = 2  # of a block


def original_unet(key: str) -> str:
    """The name that a U-Net's tensor has in a checkpoint in one file."""
    end = key.rsplit(".", 1)[1]
    if key.removesuffix(f".{end}") in ENDS:
        return f"{ENDS[key.removesuffix(f'.{end}')]}.{end}"
    side, rest = key.split(".", 1)
    if side == "mid_block":
        part, number, inner = rest.split(".", 2)
        place = f"middle_block.{1 if part == 'attentions' else 2 * int(number)}"
    else:
        block, part, number, inner = rest.split(".", 3)
        if part == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * (LAYERS + 1)}.0.op.{end}"
        if part == "upsamplers":
            last = int(block) * (LAYERS + 1) + LAYERS
            return f"output_blocks.{last}.{1 if block == '0' else 2}.conv.{end}"  # the first block has no attention before it
        down = side == "down_blocks"
        index = int(block) * (LAYERS + 1) + int(number) + (1 if down else 0)
        place = f"{'input' if down else 'output'}_blocks.{index}.{1 if part == 'attentions' else 0}"
    if part == "resnets":
        name = inner.split(".")[0]
        inner = inner.replace(name, RESNET[name], 1)
    return f"{place}.{inner}"


def original_vae(key: str, blocks: int) -> str:
    key = key.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2").replace("mid_block.attentions.0", "mid.attn_1")
    for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"), ("conv_norm_out", "norm_out")):
        key = key.replace(new, old)
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
    return key.replace("conv_shortcut", "nin_shortcut")


def tiny() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    text = {"vocab_size": 646, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vae: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, "norm_num_groups": 4}
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8, 8, 16, 16), **vae),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text, bos_token_id=644, eos_token_id=645, pad_token_id=0)),
        tokenizer=CLIPTokenizer(str(TOKENS / "vocab.json"), str(TOKENS / "merges.txt"), model_max_length=77, pad_token="!"),
        unet=UNet2DConditionModel(sample_size=8, block_out_channels=(32, 32, 64, 64), layers_per_block=LAYERS, cross_attention_dim=32, norm_num_groups=8),
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def original(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    values = {f"model.diffusion_model.{original_unet(k)}": v for k, v in pipe.unet.state_dict().items()}
    for k, v in pipe.vae.state_dict().items():
        is_linear = "attentions" in k and k.endswith("weight") and v.ndim == 2
        values[f"first_stage_model.{original_vae(k, 4)}"] = v[:, :, None, None] if is_linear else v
    text = pipe.text_encoder.state_dict()
    prefix = "" if any(k.startswith("text_model.") for k in text) else "text_model."
    return {k: v.contiguous() for k, v in values.items()} | {f"cond_stage_model.transformer.{prefix}{k}": v.contiguous() for k, v in text.items()}


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return tiny()


def load_unet(folder: Path) -> torch.Tensor:
    """All weights of a folder's U-Net in a row."""
    return torch.cat([v.flatten() for v in UNet2DConditionModel.from_pretrained(folder / "unet").state_dict().values()])


@pytest.fixture
def file(pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    save_file(original(pipe), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def test_every_number_comes_back_and_the_second_time_nothing_is_done(pipe: StableDiffusionPipeline, file: Path, tmp_path: Path):
    pipe.save_pretrained(tmp_path / "config")
    folder = unpacked(file, tmp_path / "config", tmp_path / "cache")
    again: Any = StableDiffusionPipeline.from_pretrained(folder)
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(pipe, name).state_dict(), getattr(again, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours), name
    when = (folder / "model_index.json").stat().st_mtime_ns
    file.touch()
    assert unpacked(file, tmp_path / "config", tmp_path / "cache") == folder
    assert (folder / "model_index.json").stat().st_mtime_ns == when
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [folder.name]
    size, values = file.stat().st_size, original(pipe)
    middle = next(k for k in values if "diffusion_model" in k and k.endswith("to_q.weight"))
    save_file(values | {middle: values[middle] + 1}, file)  # exported anew under its name
    assert file.stat().st_size == size
    other = unpacked(file, tmp_path / "config", tmp_path / "cache")
    assert other != folder
    assert not torch.equal(load_unet(other), load_unet(folder))


def test_any_name_and_a_damaged_note_are_no_trouble(pipe: StableDiffusionPipeline, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pipe.save_pretrained(tmp_path / "config")
    odd = file.rename(tmp_path / "mine [v8].safetensors")
    folder = unpacked(odd, tmp_path / "config", tmp_path / "cache")
    with monkeypatch.context() as m:
        m.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert unpacked(odd, tmp_path / "config", tmp_path / "cache") == folder
    (folder / "selfsame-source.json").write_text('{"file')
    assert unpacked(odd, tmp_path / "config", tmp_path / "cache") == folder


def test_a_checkpoint_that_predicts_v_says_so(pipe: StableDiffusionPipeline, tmp_path: Path):
    path = tmp_path / "v.safetensors"
    save_file(original(pipe) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    base = tiny()
    base.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)  # the released base's, which knows nothing of zero SNR
    base.save_pretrained(tmp_path / "config")
    said = json.loads((unpacked(path, tmp_path / "config", tmp_path / "into") / "scheduler/scheduler_config.json").read_text())
    assert (said["prediction_type"], said["rescale_betas_zero_snr"]) == ("v_prediction", True)


def test_half_precision_stays_half(pipe: StableDiffusionPipeline, tmp_path: Path):
    save_file({k: v.half() if v.is_floating_point() else v for k, v in original(pipe).items()}, tmp_path / "half.safetensors")
    pipe.save_pretrained(tmp_path / "config")
    folder = unpacked(tmp_path / "half.safetensors", tmp_path / "config", tmp_path / "cache")
    assert {v["dtype"] for v in header_of(folder / "unet/diffusion_pytorch_model.safetensors").values()} == {"F16"}


def test_files_are_told_apart_and_others_refused(pipe: StableDiffusionPipeline, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert kind_of(file) == "sd15"
    unet = {"model.diffusion_model.x": torch.zeros(1), "first_stage_model.x": torch.zeros(1)}
    for name, key in (("sdxl", "conditioner.embedders.1.model.y"), ("sd21-base", "cond_stage_model.model.y")):
        save_file(unet | {key: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
        assert kind_of(tmp_path / f"{name}.safetensors") == name
    save_file({k: v for k, v in original(pipe).items() if not k.startswith("first_stage_model.")}, tmp_path / "novae.safetensors")
    with pytest.raises(InputError, match="checkpoint without a VAE"):
        kind_of(tmp_path / "novae.safetensors")
    for name, values in (("unet", unet), ("lora", {"lora_unet_x.alpha": torch.zeros(1)})):
        save_file(values, tmp_path / f"{name}.safetensors")
        with pytest.raises(InputError, match="no whole Stable Diffusion checkpoint"):
            kind_of(tmp_path / f"{name}.safetensors")
    (tmp_path / "old.ckpt").write_bytes(b"x")
    with pytest.raises(InputError, match="may hold code"):
        kind_of(tmp_path / "old.ckpt")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=r"cut.safetensors: damaged"):
        kind_of(tmp_path / "cut.safetensors")
    monkeypatch.setenv("SELFSAME_HOME", str(tmp_path))
    with pytest.raises(InputError, match="a fine-tune of sd15, this model needs one of sdxl"):
        Folders.of("instantid-sdxl", file, tmp_path, tmp_path)
    with pytest.raises(InputError, match="models fetch sd15-config"):
        Folders.of("instantid-sd15", file, tmp_path, tmp_path)
    with pytest.raises(InputError, match="models fetch sd21-base-config"):
        Folders.of("instantid-sd15", tmp_path / "sd21-base.safetensors", tmp_path, tmp_path)
    pipe.save_pretrained(tmp_path / "config")
    (tmp_path / "config/unet/config.json").write_text((tmp_path / "config/unet/config.json").read_text().replace("64", "96"))
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        unpacked(file, tmp_path / "config", tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_configs_alone_can_be_fetched():
    for name in ("sdxl-config", "sd15-config", "sd21-base-config"):
        files = CATALOGUE[name].parts[0].files
        assert "model_index.json" in files
        assert not any(f.endswith(".safetensors") for f in files)
