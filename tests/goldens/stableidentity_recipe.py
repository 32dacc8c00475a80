"""Weights and inputs of the StableIdentity goldens, rebuilt from their names (the rules are in tests/goldens/README.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, ViTConfig, ViTModel

from tests.goldens.recipe import raw

FOLDER = Path(__file__).parent / "stableidentity"
MANIFEST: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())
VIT_NAMES = {  # transformers 5 -> 4
    "layers.": "encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
TABLES = ("token_embedding.weight", "position_embedding.weight", "cls_token", "position_embeddings")


def parameter(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of a parameter with its whole name."""
    offset, s = 0.0, 1 / np.sqrt(np.prod(shape[1:]))
    if len(shape) == 1:
        offset, s = (1.0, 0.1) if name.endswith("weight") else (0.0, 0.05)
    elif name.endswith(TABLES):
        s = 0.05
    elif name.startswith("mlp."):
        s = 0.02
    return torch.from_numpy((np.float32(offset) + np.float32(s) * raw(name, shape)).astype(np.float32))


def fill(module: nn.Module, tag: str, rename: Callable[[str], str] = lambda k: k) -> float:
    """Overwrite all parameters by the recipe; returns the sum of their sizes, to check against the manifest."""
    total = 0.0
    with torch.no_grad():
        for key, value in module.named_parameters():
            value.copy_(parameter(f"{tag}.{rename(key)}", tuple(value.shape)))
            total += float(value.double().abs().sum())
    module.eval()
    return total


def _old_vit_name(key: str) -> str:
    for new, old in VIT_NAMES.items():
        key = key.replace(new, old)
    return key.replace("encoder.encoder.", "encoder.")


def text_encoder() -> CLIPTextModel:
    model = CLIPTextModel(CLIPTextConfig(**MANIFEST["text_cfg"], bos_token_id=644, eos_token_id=645, pad_token_id=0))
    total = fill(model, "text_encoder", lambda k: k if k.startswith("text_model.") else f"text_model.{k}")
    assert np.isclose(total, MANIFEST["weight_checks"]["text_encoder"]["abs_sum"])
    return model


def vit() -> ViTModel:
    model = ViTModel(ViTConfig(**MANIFEST["vit_cfg"]))
    assert np.isclose(fill(model, "vit", _old_vit_name), MANIFEST["weight_checks"]["vit"]["abs_sum"])
    return model


def unet() -> UNet2DConditionModel:
    model = UNet2DConditionModel(**MANIFEST["unet_cfg"])
    assert np.isclose(fill(model, "unet"), MANIFEST["weight_checks"]["unet"]["abs_sum"])
    return model


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as f:
        return {k: f[k] for k in f.files}
