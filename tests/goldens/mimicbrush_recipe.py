"""Weights, inputs and pictures of the MimicBrush goldens, rebuilt from their names (the rules are in tests/goldens/README.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from selfsame.methods.mimicbrush.method import MimicBrush
from selfsame.methods.mimicbrush.modules import DepthProjector, ImageProjector, ReferenceNet
from tests.goldens.recipe import raw

FOLDER = Path(__file__).parent / "mimicbrush"
META: dict[str, Any] = json.loads((FOLDER / "meta.json").read_text())
UNET: dict[str, Any] = {
    "sample_size": 32, "out_channels": 4, "block_out_channels": (32, 64, 64, 64), "layers_per_block": 2, "cross_attention_dim": 32, "attention_head_dim": 8,
    "norm_num_groups": 8, "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip


def parameter(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of a parameter with its whole name."""
    z = raw(name, shape)
    if len(shape) >= 2:
        z = z * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    elif name.endswith(".weight") or (name.startswith("depth_anything.") and name.endswith(".gamma")):
        z = 1 + z * np.float32(0.1)
    else:
        z = z * np.float32(0.1)
        if name == "depth_anything.depth_head.scratch.output_conv2.2.bias":
            z = z + np.float32(2)
    return torch.from_numpy(z.astype(np.float32))


def fill(module: nn.Module, prefix: str, rename: Callable[[str], str] = lambda k: k) -> nn.Module:
    """Overwrite all parameters by the recipe."""
    with torch.no_grad():
        for key, value in module.named_parameters():
            value.copy_(parameter(f"{prefix}.{rename(key)}", tuple(value.shape)))
    return module.eval().requires_grad_(False)


def inp(name: str, shape: tuple[int, ...], s: float = 1.0) -> Tensor:
    return torch.from_numpy(raw(name, shape) * np.float32(s))


def method() -> MimicBrush:
    """The tiny MimicBrush."""
    unet = fill(UNet2DConditionModel(**UNET, in_channels=13), "unet")
    reference = ReferenceNet(UNet2DConditionModel(**UNET, in_channels=4))
    fill(reference.unet, "referencenet")
    assert isinstance(unet, UNet2DConditionModel)
    projector, depth = ImageProjector(32, 32), DepthProjector()
    fill(projector, "image_proj")
    fill(depth, "depth_guider")
    return MimicBrush(unet, reference, projector, depth).eval()


def image_encoder() -> CLIPVisionModelWithProjection:
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**META["configs"]["image_encoder"]))
    fill(model, "image_encoder")
    return model


def vae() -> AutoencoderKL:
    model = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1, norm_num_groups=4, latent_channels=4, scaling_factor=0.18215,
    )  # fmt: skip
    fill(model, "vae")
    return model


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(**META["configs"]["ddim"], timestep_spacing="leading")


def _tri(n: np.ndarray, p: int) -> np.ndarray:
    return np.abs(n % (2 * p) - p) * 255 // p


def image(h: int, w: int, k: int) -> np.ndarray:
    y, x = np.mgrid[0:h, 0:w]
    channels = [(_tri((1 + c + k) * x + (3 - c) * y + 17 * k, 157 + 10 * c) + _tri((2 + k) * x - (1 + c) * y + 31 * c, 113 + 6 * k)) // 2 for c in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


def mask(h: int, w: int) -> np.ndarray:
    y, x = np.mgrid[0:h, 0:w]
    box = (y >= 3 * h // 8) & (y < 5 * h // 8) & (x >= w // 4) & (x < w // 2)
    cy, cx, ry, rx = 5 * h // 8, 5 * w // 8, h // 5, w // 6
    return np.where(box | ((y - cy) ** 2 * rx**2 + (x - cx) ** 2 * ry**2 <= rx**2 * ry**2), 255, 0).astype(np.uint8)


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as f:
        return {k: f[k] for k in f.files}
