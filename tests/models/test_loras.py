"""LoRAs: every common form of keys gives the same weights; what belongs elsewhere is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from selfsame.adapters.processors import cross_attention_paths
from selfsame.images.files import InputError
from selfsame.models.loras import Lora, fuse_text, fuse_unet
from tests.goldens import recipe
from tests.methods.test_instantid_interop import SD15

PROJ = "encoder.layers.0.self_attn.out_proj"  # in files under `text_model.`


def layer_of(unet: UNet2DConditionModel) -> str:
    return f"{cross_attention_paths(unet)[0]}.to_q"


def unet_of(config: dict) -> UNet2DConditionModel:
    unet = recipe.fill(UNet2DConditionModel(**config), "unet")
    assert isinstance(unet, UNet2DConditionModel)
    return unet


def tower() -> CLIPTextModel:
    torch.manual_seed(0)
    return CLIPTextModel(CLIPTextConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4))


def halves(weight: Tensor, rank: int = 2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(rank, weight.shape[1], generator=g) * 0.1, torch.randn(weight.shape[0], rank, generator=g) * 0.1


def keys_of(form: str, name: str, prefix: str, down: Tensor, up: Tensor, alpha: float) -> dict[str, Tensor]:
    if form == "kohya":
        start = f"lora_{ {'unet': 'unet', 'text_encoder': 'te'}[prefix] }_{name.replace('.', '_')}"
        return {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up, f"{start}.alpha": torch.tensor(alpha)}
    if form == "diffusers":  # its older keys
        inner, _, last = name.rpartition(".")
        start = f"unet.{inner}.processor.{last}_lora" if prefix == "unet" else f"{prefix}.{inner}.to_out_lora"
        return {f"{start}.down.weight": down, f"{start}.up.weight": up}
    return {f"{prefix}.{name}.lora_A.weight": down, f"{prefix}.{name}.lora_B.weight": up}


@pytest.mark.parametrize(("form", "alpha"), [("peft", 2.0), ("diffusers", 2.0), ("kohya", 1.0)])
@pytest.mark.parametrize("is_xl", [True, False])
def test_every_form_adds_the_same_numbers(form: str, alpha: float, is_xl: bool, tmp_path: Path):
    unet, text = unet_of(recipe.UNET if is_xl else SD15), tower()
    layer = layer_of(unet)
    weight, before = unet.get_submodule(layer).weight.detach().clone(), {k: v.clone() for k, v in unet.state_dict().items()}
    spoken = text.get_submodule(PROJ).weight.detach().clone()
    (down, up), (a, b) = halves(weight), halves(spoken)
    values = keys_of(form, layer, "unet", down, up, alpha)
    if not is_xl:  # SDXL's kohya names of text encoders are te1 and te2
        values |= keys_of(form, f"text_model.{PROJ}", "text_encoder", a, b, alpha)
    save_file(values, tmp_path / "style.safetensors")
    lora = Lora.read(f"{tmp_path / 'style.safetensors'}:0.5")
    fuse_unet([lora], unet, is_xl=is_xl)
    fuse_text([lora], [text], is_xl=is_xl)
    scale = 0.5 * alpha / 2
    assert torch.allclose(unet.get_submodule(layer).weight, weight + scale * up @ down, atol=1e-6)
    after = unet.state_dict()
    assert list(after) == list(before), "no layer of a LoRA stays"
    assert all(torch.equal(v, before[k]) for k, v in after.items() if not k.startswith(layer))
    assert torch.allclose(text.get_submodule(PROJ).weight, spoken if is_xl else spoken + scale * b @ a, atol=1e-6)
    fuse_unet([lora, lora], unet, is_xl=is_xl)
    assert torch.allclose(unet.get_submodule(layer).weight, weight + 3 * scale * up @ down, atol=1e-6), "several, one after the other"


def test_loras_of_another_base_and_other_files_are_refused(tmp_path: Path):
    unet = unet_of(SD15)
    layer = layer_of(unet)
    down, up = halves(unet.get_submodule(layer).weight)
    bad = {
        "shape": keys_of("peft", layer, "unet", down[:, :-4].contiguous(), up, 1),
        "layer": keys_of("peft", layer.replace("attn2", "attn7"), "unet", down, up, 1),
    }
    for name, values in bad.items():
        save_file(values, tmp_path / f"{name}.safetensors")
        with pytest.raises(InputError, match="a LoRA for another base"):
            fuse_unet([Lora.read(str(tmp_path / f"{name}.safetensors"))], unet_of(SD15), is_xl=False)
    save_file({f"transformer.x.lora_{k}.weight": v.contiguous() for k, v in (("A", down), ("B", up))}, tmp_path / "flux.safetensors")
    with pytest.raises(InputError, match="another kind of model"):
        fuse_unet([Lora.read(str(tmp_path / "flux.safetensors"))], unet, is_xl=False)
    save_file(keys_of("peft", layer, "unet", down, up, 1) | {"lora_unet_x.dora_scale": torch.ones(1)}, tmp_path / "dora.safetensors")
    with pytest.raises(InputError, match="a DoRA"):
        fuse_unet([Lora.read(str(tmp_path / "dora.safetensors"))], unet, is_xl=False)
    save_file({"unet.x.weight": down.contiguous()}, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"holds no LoRA|can be read"):
        fuse_unet([Lora.read(str(tmp_path / "none.safetensors"))], unet, is_xl=False)
    whole = (tmp_path / "layer.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) - 8])  # the header is there
    with pytest.raises(InputError, match="can be read"):
        fuse_unet([Lora.read(str(tmp_path / "half.safetensors"))], unet, is_xl=False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}/no.safetensors", "no such file"), ("{}/a.pt", "must be a .safetensors"), ("{}/a.safetensors", "damaged or no safetensors"),
        ("{}/a.safetensors:much", "is no number"), ("{}/a.safetensors:nan", "a weight from"), ("{}/a.safetensors:9", "a weight from"),
    ],
)  # fmt: skip
def test_files_that_are_no_lora(text: str, told: str, tmp_path: Path):
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(b"12345678 no header")
    with pytest.raises(InputError, match=told):
        Lora.read(text.format(tmp_path))


def test_a_lora_of_the_catalogue_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SELFSAME_HOME", str(tmp_path))
    with pytest.raises(InputError, match="selfsame models fetch lcm-lora-sdxl"):
        Lora.read("lcm-lora-sdxl:0.9")
