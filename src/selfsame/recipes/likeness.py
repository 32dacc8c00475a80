"""A reader of faces in latents: it tells a training step whether the picture that is forming shows the person, where no picture is there yet.

The square error of InstantID's objective hardly knows faces: of 4,096 latents a few hundred belong to one, and what tells two people apart is small in them.
A loss on the face of the denoised estimate speaks of nothing else (as PhotoVerse has it, arXiv:2309.05793, with ArcFace on decoded pictures). Here it reads
latents, so that nothing is decoded. It says what the conditioning encoder says; the judge has no part in it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from selfsame.data.tables import Table
from selfsame.diffusion.schedule import denoised_of
from selfsame.images.files import written_whole
from selfsame.models.mannequin import SCHEDULE
from selfsame.recipes.caches import as_tensor
from selfsame.recipes.common import compute_device, fingerprint_of, torch_generator
from selfsame.recipes.faces import face_rows

STEPS, BATCH, RATE, SEED = 1500, 64, 2e-3, 51  # three minutes on two cores
RANK, SAMPLED = 600, 4000  # directions of the estimate, and the latents that they are measured on
NOISE_LOW, NOISE_HIGH = 0.05, 4.0  # sigma, log-uniform, behind the estimates that it learns from
READABLE = 3.0  # sigma at which a formed face counts half


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        parts = [(nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1)) for _ in range(2)]
        self.body = nn.Sequential(*(layer for part in parts for layer in part))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class LatentFace(nn.Module):
    """Latents b c 16 16 -> what the face encoder would say of the face in them, b 512, not normalised."""

    side = 16  # cells of a picture's latents

    def __init__(self, channels: int = 16, embedding_dim: int = 512) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 64, 3, 1, 1), nn.SiLU(), nn.Conv2d(64, 96, 3, 2, 1), _Block(96), _Block(96),
            nn.Conv2d(96, 128, 3, 2, 1), _Block(128), _Block(128), nn.GroupNorm(8, 128), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(128 * 16, embedding_dim)

    def forward(self, latents: Tensor) -> Tensor:
        return self.head(self.body(latents).flatten(1))


@dataclass(frozen=True)
class Blur:
    """The best linear estimate of clean latents from noisy ones: what a denoiser sees of them, roughly.

    x^ = m + U diag(l^2 / (l^2 + sigma^2)) U^T (x - m), and the rest of x shrunk alike by its mean deviation (Wiener's filter).
    """

    mean: Tensor  # d
    basis: Tensor  # d r
    deviation: Tensor  # r
    rest: float  # mean deviation beyond the basis

    @classmethod
    def of(cls, latents: np.ndarray, rng: np.random.Generator) -> Blur:
        rows = as_tensor(latents[np.sort(rng.choice(len(latents), min(SAMPLED, len(latents)), replace=False))]).flatten(1)
        mean = rows.mean(0)
        centred = rows - mean
        rank = min(RANK, len(rows) // 2)
        _, values, basis = torch.svd_lowrank(centred, rank, niter=2)
        deviation = values / len(rows) ** 0.5
        left = (centred.square().sum() / len(rows) - deviation.square().sum()).clamp_min(0) / max(1, rows.shape[1] - rank)
        return cls(mean, basis, deviation, float(left.sqrt()))

    def __call__(self, clean: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
        """Estimates from latents b c h w noised to sigma (b)."""
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        seen = (clean + sigma.view(-1, 1, 1, 1) * noise).flatten(1) - self.mean.to(clean)
        at = seen @ self.basis.to(clean)
        s2, l2 = sigma.square()[:, None], self.deviation.square().to(clean)
        tail = (seen - at @ self.basis.to(clean).T) * (self.rest**2 / (self.rest**2 + s2))
        return (self.mean.to(clean) + (at * (l2 / (l2 + s2))) @ self.basis.to(clean).T + tail).view_as(clean)


def read_latents(latents: np.ndarray, embeddings: np.ndarray, people: np.ndarray, rows: np.ndarray, seed: int, steps: int = STEPS) -> LatentFace:
    """Teach a reader on all rows: of every picture it shall say the mean of its person's embeddings, from estimates of all sharpness.

    Args:
        latents: n c 16 16; embeddings: n d; people: n, who is shown; rows: those with a face.
    """
    rng = np.random.default_rng([seed, 0x11CE])
    torch.manual_seed(seed)
    device = compute_device()
    net, blur = LatentFace(latents.shape[1], embeddings.shape[1]).to(device), Blur.of(latents, rng)
    unit = F.normalize(torch.from_numpy(np.array(embeddings, np.float32)), dim=1)
    who = torch.from_numpy(np.unique(people[rows], return_inverse=True)[1])
    means = F.normalize(torch.zeros(int(who.max()) + 1, unit.shape[1]).index_add_(0, who, unit[rows]), dim=1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        at, g = np.sort(rng.choice(len(rows), min(BATCH, len(rows)), replace=False)), torch_generator(rng)
        sigma = torch.exp(torch.rand(len(at), generator=g) * float(np.log(NOISE_HIGH / NOISE_LOW)) + float(np.log(NOISE_LOW)))
        seen = blur(as_tensor(latents[rows[at]]).to(device), sigma.to(device), g)
        loss = 1 - F.cosine_similarity(net(seen), means[who[at]].to(device)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return net.eval().requires_grad_(False)


def kept_reader(path: Path, latents: np.ndarray, embeddings: np.ndarray, people: np.ndarray, rows: np.ndarray, seed: int, steps: int = STEPS) -> LatentFace:
    """The reader at `path`, taught and written atomically when it is not there."""
    if not path.exists():
        print(f"teaching a reader of faces in latents, {steps} steps, once for all runs", file=sys.stderr, flush=True)
        taught = read_latents(latents, embeddings, people, rows, seed, steps).cpu().state_dict()
        with written_whole(path) as partial:
            torch.save(taught, partial)
    net = LatentFace(latents.shape[1], embeddings.shape[1])
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.to(compute_device()).eval().requires_grad_(False)


def shared_reader(
    cache: Path, table: Table, vae: AutoencoderKL, encoder: nn.Module, latents: np.ndarray, faces: np.ndarray, *, smoke: bool = False
) -> LatentFace:
    """The reader of a dataset's train pictures, taught once for all runs on it.

    Args:
        faces: the encoder's embeddings n d of all rows.
        smoke: two steps, to see that everything is in place.
    """
    steps = 2 if smoke else STEPS
    path = cache / f"latent_face.{fingerprint_of([encoder, vae.encoder], table.digest)}.{steps}.pt"
    return kept_reader(path, latents, faces, table.people, face_rows(table), SEED, steps)


def unlikeness(reader: LatentFace, prediction: Tensor, batch: Mapping[str, Tensor], embedding: Tensor, abar: Tensor) -> Tensor:
    """How unlike somebody the denoised estimates are, where a face can be read in them: one number, 0 when all say the embedding exactly.

    Args:
        prediction: b c h w, the U-Net's; of a size that the reader does not know it says 0.
        batch: `noisy` and `t`.
        embedding: b d of the face encoder; rows of zeros are nobody.
        abar: the whole schedule.
    """
    if prediction.shape[-1] != reader.side:
        return prediction.new_zeros(())
    at = abar.to(prediction.device)[batch["t"]].view(-1, 1, 1, 1)
    alike = F.cosine_similarity(reader(denoised_of(SCHEDULE["prediction_type"], prediction, batch["noisy"], at)), embedding)
    return (readable(at.flatten()) * (embedding.abs().sum(1) > 0) * (1 - alike)).mean()


def readable(abar: Tensor) -> Tensor:
    """How much a face counts in an estimate at a noise level: 1 / (1 + (sigma / 3)^2)."""
    return 1 / (1 + (1 - abar) / abar / READABLE**2)
