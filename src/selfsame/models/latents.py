"""Pixels to latents and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def pixels_of(image: np.ndarray) -> Tensor:
    """h w 3 uint8 -> 1 3 h w in [-1, 1]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Posterior means, scaled: b 3 H W in [-1, 1] -> b c h w, on the VAE's device."""
    latents = vae.encode(pixels.to(vae.device)).latent_dist.mean
    mean, deviation = _statistics(vae, latents)
    return (latents - mean) / deviation * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """b c h w, scaled -> b 3 H W in [-1, 1]."""
    mean, deviation = _statistics(vae, latents)
    return vae.decode(latents / vae.config.scaling_factor * deviation + mean).sample.clamp(-1, 1)


def _statistics(vae: Any, latents: Tensor) -> tuple[Any, Any]:
    """Mean and deviation of the latents a channel, where a VAE's config has them."""
    mean, deviation = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
    if mean is None or deviation is None:
        return 0.0, 1.0
    shaped = (torch.tensor(values).view(1, -1, 1, 1).to(latents) for values in (mean, deviation))
    return next(shaped), next(shaped)


def pictures_of(vae: Any, latents: Tensor) -> list[np.ndarray]:
    """Latents b c h w, scaled, to pictures h w 3 uint8."""
    pixels = decode(vae, latents.to(vae.device, vae.dtype))
    return [((p.permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().astype(np.uint8) for p in pixels.float()]
