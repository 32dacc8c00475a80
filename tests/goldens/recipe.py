"""Weights and inputs of the golden cases, rebuilt from their names (the rules are in tests/goldens/README.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "instantid"
HEIGHT, WIDTH = 192, 128
KPS = {
    "pipeline": ((WIDTH, HEIGHT), [[44.3, 70.7], [83.6, 68.2], [65.1, 92.9], [49.8, 116.4], [80.2, 114.5]]),
    "frontal": ((320, 256), [[118.25, 96.5], [201.75, 99.125], [160.5, 141.875], [126.0, 180.625], [195.375, 178.0]]),
    "profile": ((256, 256), [[151.6, 88.4], [163.9, 87.9], [196.2, 121.3], [153.1, 160.7], [161.4, 158.8]]),
    "outside": ((200, 160), [[-12.4, 30.2], [38.9, -6.7], [4.5, 61.3], [-25.8, 97.6], [41.2, 171.9]]),
}
UNET: dict[str, Any] = {
    "sample_size": 24,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64, 128),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (2, 4, 8),
    "cross_attention_dim": 64,
    "norm_num_groups": 8,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 224,
}
VAE: dict[str, Any] = {
    "latent_channels": 4,
    "sample_size": 128,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 16, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.13025,
}
EULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
RESAMPLER = {"dim": 64, "depth": 4, "dim_head": 64, "heads": 4, "num_queries": 16, "embedding_dim": 512, "output_dim": 64, "ff_mult": 4}


def raw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normals of a name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensor(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(raw("input." + name, shape))


def parameter(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of a parameter called `tag.key`."""
    z, last = raw(name, shape), name.rsplit(".", 1)[-1]
    if len(shape) == 1:
        value = np.float32(1) + np.float32(0.1) * z if last == "weight" else np.float32(0.02) * z
    elif last == "latents":
        value = z * np.float32(1 / np.sqrt(shape[-1]))
    else:
        gain = 1.7 if ".controlnet_cond_embedding." in name else 1.0
        value = z * np.float32(gain / np.sqrt(int(np.prod(shape[1:]))))
    return torch.from_numpy(value.astype(np.float32))


def fill(module: nn.Module, tag: str, rename: Callable[[str], str] = lambda k: k) -> nn.Module:
    """Overwrite all floating-point state by the recipe."""
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                value.copy_(parameter(f"{tag}.{rename(key)}", tuple(value.shape)))
    return module.eval()


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as f:
        return {k: f[k] for k in f.files}
