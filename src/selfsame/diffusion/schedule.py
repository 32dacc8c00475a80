"""The training clock: noise levels, noising, targets. Scalings are VP unless said otherwise."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_linear_alphas_cumprod(num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """Stable Diffusion's schedule: betas linear in their square root. t float32."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def _at(values: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    if timesteps.device.type == "cpu" and timesteps.numel() and not (int(timesteps.min()) >= 0 and int(timesteps.max()) < len(values)):
        raise ValueError(f"timesteps {int(timesteps.min())}..{int(timesteps.max())} leave the range 0..{len(values) - 1}")
    return values.to(like.device)[timesteps].to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noise clean latents to the given timesteps.

        x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps         DDPM (arXiv:2006.11239), Eq. 4

    Args:
        latents: b c h w, already scaled by the VAE's scaling_factor.
        noise: b c h w, standard normal.
        timesteps: b, int64 in [0, len(alphas_cumprod)).
        alphas_cumprod: t, float32.

    Raises:
        ValueError: a timestep is out of range; the message names it and the range.
    """
    abar = _at(alphas_cumprod, timesteps, latents)
    return abar.sqrt() * latents + (1 - abar).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The target of v-prediction.

    v_t = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0         Progressive Distillation (arXiv:2202.00512), Appendix D
    """
    abar = _at(alphas_cumprod, timesteps, latents)
    return abar.sqrt() * noise - (1 - abar).sqrt() * latents


def target(prediction_type: str, latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """What a network of this prediction type should say. b c h w.

    Raises:
        ValueError: the prediction type is none of epsilon, v_prediction, sample.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return velocity(latents, noise, timesteps, alphas_cumprod)
    if prediction_type == "sample":
        return latents
    raise ValueError(f"prediction_type {prediction_type!r}: choose epsilon, v_prediction or sample")


def noised(latents: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction_type: str, generator: torch.Generator) -> dict[str, Tensor]:
    """What a network is shown of clean latents b c h w and should say: `noisy`, `t` and `target`."""
    noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    return {
        "noisy": add_noise(latents, noise, timesteps, alphas_cumprod),
        "t": timesteps,
        "target": target(prediction_type, latents, noise, timesteps, alphas_cumprod),
    }


def denoised_of(prediction_type: str, noise_pred: Tensor, noisy: Tensor, abar: Tensor) -> Tensor:
    """The clean latents that a raw prediction stands for.

    Args:
        noise_pred, noisy: b c h w, VP scaling.
        abar: alphas_cumprod at these rows, broadcastable.
    """
    if prediction_type == "epsilon":
        return (noisy - (1 - abar).sqrt() * noise_pred) / abar.sqrt()
    if prediction_type == "v_prediction":
        return abar.sqrt() * noisy - (1 - abar).sqrt() * noise_pred
    if prediction_type == "sample":
        return noise_pred
    raise ValueError(f"prediction_type {prediction_type!r}: choose epsilon, v_prediction or sample")


def lognormal_timesteps(
    count: int, alphas_cumprod: Tensor, generator: torch.Generator, *, mean: float = -0.5, std: float = 1.2, uniform_share: float = 0.05
) -> Tensor:
    """Training timesteps whose log sigma is normal, as EDM (arXiv:2206.00364, Table 1) draws them; a share is uniform.

    sigma_t = sqrt((1 - abar_t) / abar_t). Returns count int64.
    """
    device = generator.device
    log_sigmas = (0.5 * ((1 - alphas_cumprod) / alphas_cumprod).log()).to(device)
    drawn = torch.randn(count, generator=generator, device=device) * std + mean
    nearest = torch.searchsorted(log_sigmas.contiguous(), drawn).clamp(0, len(log_sigmas) - 1)
    uniform = torch.randint(0, len(log_sigmas), (count,), generator=generator, device=device)
    return torch.where(torch.rand(count, generator=generator, device=device) < uniform_share, uniform, nearest)
