"""Pixels to latents and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Posterior means, scaled: b 3 H W in [-1, 1] -> b c h w, on the VAE's device."""
    return vae.encode(pixels.to(vae.device)).latent_dist.mean * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """b c h w, scaled -> b 3 H W in [-1, 1]."""
    return vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)
