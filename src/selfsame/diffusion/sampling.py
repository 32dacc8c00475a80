"""The one sampling loop. It is a generator: progress, previews, cancelling and time limits are the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfsame.diffusion.schedule import add_noise, denoised_of

Predict = Callable[[Tensor, Tensor, int], Tensor]  # VP-scaled latents, timestep, index of the step -> raw prediction


@dataclass(frozen=True)
class Step:
    """The state after one step."""

    index: int
    num_steps: int
    sigma: float  # the noise level the step started from
    latents: Tensor  # b c h w, in the solver's own scaling
    denoised: Tensor  # b c h w, the clean estimate of this step


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """Take back a share of the spread that guidance adds, which burns colours (arXiv:2305.08891, Eqs. 15 and 16).

    Args:
        guided, conditional: b c h w, the prediction with guidance and the one under the condition alone.
    """
    if share == 0:
        return guided
    axes = list(range(1, guided.ndim))
    return guided * (share * conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True) + 1 - share)


def guided_together(both: Predict, guidance_scale: float, rescale: float = 0.0) -> Predict:
    """Classifier-free guidance: u + g (c - u) (arXiv:2207.12598, Eq. 6 in its usual form).

    Args:
        both: takes twice the rows, first without, then with.
        rescale: see `rescaled`.
    """

    def predict(latents: Tensor, t: Tensor, index: int) -> Tensor:
        u, c = both(torch.cat([latents, latents]), t, index).chunk(2)
        return rescaled(u + guidance_scale * (c - u), c, rescale)

    return predict


def holding(predict: Predict, known: Tensor, mask: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Predict:
    """Paint inside a mask only: outside it the network always sees the known latents, noised to its timestep (RePaint's condition, arXiv:2201.09865, Eq. 8a).

    Args:
        known: b c h w clean latents.
        mask: b 1 h w, 1 where to paint.
        noise: b c h w, what the known part is noised with.
    """

    def held(latents: Tensor, t: Tensor, index: int) -> Tensor:
        timesteps = torch.as_tensor(t).long().to(known.device).expand(len(known))
        return predict(torch.where(mask > 0, latents, add_noise(known, noise, timesteps, alphas_cumprod)), t, index)

    return held


def set_steps(scheduler: Any, num_steps: int, device: torch.device | None = None) -> None:
    """A scheduler's own timesteps, none of them below 0: trailing ones reach -1 for 61, 103, 121 and 122 steps, where diffusers rounds once too often."""
    scheduler.set_timesteps(num_steps, device=device)
    scheduler.timesteps = scheduler.timesteps.clamp(min=0)


@torch.no_grad()
def sample(
    predict: Predict,
    noise: Tensor,
    scheduler: Any,
    num_steps: int,
    *,
    generator: torch.Generator | list[torch.Generator] | None = None,
    timesteps: Tensor | None = None,
) -> Iterator[Step]:
    """Denoise with a fresh diffusers scheduler.

    Args:
        noise: b c h w standard normal; scaled by the scheduler's init_noise_sigma here. With `timesteps` given it is the
            already noised start.
        generator: for solvers that draw noise on the way; one for each row keeps rows independent.
        scheduler: an instance of this run alone; its config names the prediction type.
        timesteps: the last part of the schedule (image to image); the scheduler must have been set up by the caller.
    """
    if timesteps is None:
        set_steps(scheduler, num_steps, noise.device)
        timesteps = scheduler.timesteps
        latents = noise * scheduler.init_noise_sigma
    else:
        latents = noise
    assert timesteps is not None
    kind = scheduler.config.prediction_type
    first = len(scheduler.timesteps) - len(timesteps)
    if hasattr(scheduler, "set_begin_index"):  # else it looks for the first timestep, which with zero terminal SNR stands there twice
        scheduler.set_begin_index(first)
    sigmas = getattr(scheduler, "sigmas", None)
    extra = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    for i, t in enumerate(timesteps):
        vp = scheduler.scale_model_input(latents, t)
        if sigmas is not None and len(sigmas) == len(scheduler.timesteps) + 1:
            abar = 1 / (1 + sigmas[first + i].to(vp.device) ** 2)
        else:
            abar = scheduler.alphas_cumprod[t.long().cpu()].to(vp.device)
        sigma = float(((1 - abar) / abar).sqrt())
        raw = predict(vp, t, i)
        denoised = denoised_of(kind, raw, vp, abar.to(vp.dtype))
        latents = scheduler.step(raw, t, latents, return_dict=False, **extra)[0]
        yield Step(i, len(timesteps), sigma, latents, denoised)
