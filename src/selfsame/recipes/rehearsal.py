"""Painting during training, as users will: from noise alone, and at every step the face encoder is asked whom the picture is going to show.

An objective on noised photos never sees what its own mistakes lead to, and its square error hardly knows faces. Here the networks make the whole way
themselves, guidance included, and what they are told is corrected at each step by the likeness of the decoded estimate, in the manner of PuLID's loss on
few-step pictures (arXiv:2404.16022, Sec. 3.2), without backpropagation from step to step. The encoder is the one that conditions; the judge has no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.diffusion.sampling import sample, set_steps
from selfsame.diffusion.schedule import denoised_of
from selfsame.images.align import similarity, template
from selfsame.models.mannequin import SCHEDULE, alphas_cumprod
from selfsame.perception.embedders import ENCODER_CROP, CropSpec
from selfsame.studio.painting import scheduler_of
from selfsame.training.run import Run

REHEARSED = 1.0  # weight of what is painted beside the losses on noised photos; at 3 those rose by a sixth (docs/training.md)
Networks = Callable[[Tensor, Tensor], Tensor]  # noisy b c h w and timesteps b -> raw prediction


@dataclass(frozen=True)
class Rehearsal:
    """How a picture is painted to learn from it."""

    num_steps: int = 6
    guidance_scale: float = 3.0
    sigma_low: float = 0.2  # below, nothing is left to decide
    sigma_high: float = 15.0  # above, no face can be read in the estimate
    looks: int = 2  # steps in between, by lot, at which the encoder is asked: decoding costs more than painting


def aligned(pixels: Tensor, kps: Sequence[np.ndarray], spec: CropSpec = ENCODER_CROP) -> Tensor:
    """Faces upright in squares, with gradients: pixels b 3 h w and key points 5 2 of each -> b 3 s s.

    Outside the picture is grey; `images.align.crop_face`, which has no gradients, has black there.
    """
    h, w = pixels.shape[-2:]
    size, wanted = spec.size, template(spec.size, share=spec.share, shift_y=spec.shift_y)
    to_unit = np.array([[2 / w, 0, 1 / w - 1], [0, 2 / h, 1 / h - 1]])  # pixels of the picture to [-1, 1]
    from_unit = np.array([[size / 2, 0, size / 2 - 0.5], [0, size / 2, size / 2 - 0.5], [0, 0, 1]])
    back = [np.linalg.inv(np.vstack([similarity(points, wanted), [0, 0, 1]])) for points in kps]
    theta = torch.tensor(np.stack([to_unit @ b @ from_unit for b in back]), dtype=pixels.dtype, device=pixels.device)
    grid = F.affine_grid(theta, [len(kps), 3, size, size], align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


def rehearsing_run(folder: Path, learning_rate: float, seed: int) -> Run:
    """The numbers of a rehearsal: few slow steps, upon weights that can paint already."""
    return Run(
        folder=folder, max_steps=1000, batch_size=16, learning_rate=learning_rate, warmup_steps=10, ema_decay=0.97, log_every=5, look_every=100, seed=seed
    )  # fmt: skip


def between(a: Tensor, b: Tensor) -> Tensor:
    """The direction between two embeddings b d of somebody, whatever their lengths."""
    return F.normalize(a, dim=1) + F.normalize(b, dim=1)


class Rehearsing:
    """Rehearsals with one base's decoder and the encoder."""

    def __init__(self, vae: Any, encoder: nn.Module, how: Rehearsal = Rehearsal()) -> None:
        self.vae, self.encoder, self.how = vae.requires_grad_(False), encoder.eval().requires_grad_(False), how
        self.abar = alphas_cumprod()

    def unlikeness(
        self, told: Networks, against: Networks, noise: Tensor, wanted: Tensor, kps: Sequence[np.ndarray], rows: Sequence[int] | None = None
    ) -> Tensor:
        """1 - cosine between what the encoder reads in the estimates and the embeddings wanted, the mean over steps and faces.

        Args:
            told, against: the networks with the condition, which learn, and without, which do not.
            noise: b c h w standard normal.
            wanted: m d embeddings of the right people; rows of zeros are nobody and do not count.
            kps: 5 2 pixels of each face, as they were asked for.
            rows: the picture that each face is in; None: face i in picture i.
        """
        how, losses = self.how, []
        for part in (self.vae, self.encoder):
            part.to(noise.device)
        scheduler = scheduler_of(SCHEDULE, "dpmpp-2m", timestep_spacing="trailing")
        looked_at = self._steps(scheduler)
        faces = [(row, i) for i, row in enumerate(range(len(wanted)) if rows is None else rows) if bool(wanted[i].any())]

        def predict(latents: Tensor, t: Tensor, index: int) -> Tensor:
            at = t.long().to(latents.device).expand(len(latents))
            abar = self.abar[int(t)].to(latents)
            is_due = index in looked_at
            without = against(latents, at).float()
            with torch.set_grad_enabled(is_due):
                raw = without + how.guidance_scale * (told(latents, at).float() - without)
                if is_due:
                    losses.append(self._read(denoised_of(SCHEDULE["prediction_type"], raw, latents, abar), wanted, kps, faces))
            return raw.detach()

        for _ in sample(predict, noise, scheduler, how.num_steps):
            pass
        return torch.stack(losses).mean()

    def _steps(self, scheduler: Any) -> set[int]:
        """The steps at which the encoder is asked."""
        set_steps(scheduler, self.how.num_steps)
        abar = self.abar[scheduler.timesteps.long()]
        sigmas = ((1 - abar) / abar).sqrt()
        readable = ((sigmas > self.how.sigma_low) & (sigmas < self.how.sigma_high)).nonzero().flatten()
        return set(readable[torch.randperm(len(readable))[: self.how.looks]].tolist())

    def _read(self, denoised: Tensor, wanted: Tensor, kps: Sequence[np.ndarray], faces: Sequence[tuple[int, int]]) -> Tensor:
        """`faces` are the picture and the number of each that counts."""
        if not faces:
            return (0 * denoised).sum()
        rows, which = (list(numbers) for numbers in zip(*faces, strict=True))
        pixels = self.vae.decode(denoised / self.vae.config.scaling_factor).sample.float()
        with torch.autocast(denoised.device.type, enabled=False):
            said = self.encoder(aligned(pixels[rows], [kps[i] for i in which]))
        return (1 - F.cosine_similarity(said, wanted[which])).mean()
