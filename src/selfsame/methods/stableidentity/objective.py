"""Batch to loss: the diffusion model and the text tower frozen, only the projection learns.

The masked two-phase diffusion loss of StableIdentity (arXiv:2401.15975), for one sample at timestep t of T:

    L = || M (e - target) ||^2                 t above alpha T: layout, where an estimate of z_0 would be poor
    L = || M (z0_hat - z_0) ||^2               below: the face itself

for the face mask, and with weight beta for the hair mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from selfsame.diffusion.schedule import denoised_of


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoPhaseLoss:
    """The loss's choices; the defaults are the official code's, the paper's stand beside them."""

    switch: float = 0.6  # alpha, a share of the schedule; 0: noise errors only, 1: clean-latent errors only
    boundary: Literal["gt", "ge"] = "gt"  # the noise phase is t > alpha T (code) or t >= alpha T (paper)
    hair_weight: float = 0.1  # beta; the official argument's default is 0, its published commands use 0.1
    is_unscaled: bool = True  # clean latents are compared without the VAE's scaling_factor (code): 1 / s^2 = 30 times the paper's term
    normalises_mask: bool = False  # divide by the mask's area, so that small faces weigh as much as large ones
    has_mask: bool = True  # False: the ablation "no mask"
    clean_from: Literal["prediction", "epsilon"] = "prediction"  # how z0_hat is read; the code reads every base as an epsilon model

    def __post_init__(self) -> None:
        if not 0 <= self.switch <= 1:
            raise ValueError(f"switch {self.switch}: give a share of the schedule in [0, 1]")
        if self.hair_weight < 0:
            raise ValueError(f"hair_weight {self.hair_weight}: give 0 or more")

    def is_noise_phase(self, timesteps: Tensor, num_timesteps: int) -> Tensor:
        """Which rows compare noise. b bool."""
        if self.switch in (0.0, 1.0):  # one phase alone, whatever the boundary rule says about the last timestep
            return torch.full_like(timesteps, self.switch == 0.0, dtype=torch.bool)
        border = round(self.switch * num_timesteps)
        return timesteps > border if self.boundary == "gt" else timesteps >= border


def two_phase_loss(
    prediction: Tensor, batch: Mapping[str, Tensor], how: TwoPhaseLoss, *, alphas_cumprod: Tensor, prediction_type: str, scaling_factor: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its parts, each averaged over all pixels of its phase's rows; a phase without rows counts 0.

    Args:
        prediction: b c h w, the U-Net's raw output.
        batch: `clean` (b c h w, scaled latents), `noisy` (VP), `target` (what the network should have said), `t` (b),
            `face_mask` and `hair_mask` (b 1 h w, 0 or 1).
        alphas_cumprod: the whole schedule.
        scaling_factor: the VAE's.
    """
    prediction = prediction.float()
    read_as = prediction_type if how.clean_from == "prediction" else "epsilon"
    abar = alphas_cumprod.to(prediction.device)[batch["t"]].view(-1, 1, 1, 1)
    denoised = denoised_of(read_as, prediction, batch["noisy"], abar)
    unit = scaling_factor if how.is_unscaled else 1.0
    errors = {"noise": (prediction - batch["target"]).square(), "clean": ((denoised - batch["clean"]) / unit).square()}
    in_noise = how.is_noise_phase(batch["t"], len(alphas_cumprod))
    phases = {"noise": in_noise, "clean": ~in_noise}
    one = torch.ones_like(batch["face_mask"])
    masks = {"face": batch["face_mask"] if how.has_mask else one}
    if how.hair_weight and how.has_mask:
        masks["hair"] = batch["hair_mask"]
    parts: dict[str, Tensor] = {}
    total = prediction.sum() * 0  # with a gradient, also when no row has a part
    for phase, rows in phases.items():
        for name, mask in masks.items():
            value = _mean((errors[phase] * mask)[rows], mask[rows], how.normalises_mask)
            parts[f"{phase}_{name}"] = value
            total = total + value * (how.hair_weight if name == "hair" else 1.0)
    return total, parts


def _mean(error: Tensor, mask: Tensor, by_area: bool) -> Tensor:
    if not error.numel():
        return error.new_zeros(())
    return error.sum() / (mask.sum() * error.shape[1]).clamp_min(1) if by_area else error.mean()
