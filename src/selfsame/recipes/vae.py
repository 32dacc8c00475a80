"""Recipe of the VAE: 64 px crops, most of them on faces, the features of the face weighing more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from selfsame.data.tables import Table, open_table
from selfsame.mannequins import paint
from selfsame.models.latents import decode, encode
from selfsame.models.mannequin import new_vae
from selfsame.recipes.caches import latents_of
from selfsame.recipes.common import Options, Trained, epoch_rows, finish, generator_at, save_grid, spread, to_images, to_pixels, torch_generator
from selfsame.recipes.resident import Resident
from selfsame.training.run import Batch, Loss, Run
from selfsame.weights.mannequin import load_vae

CROP = 64
SHRUNK_WEIGHT = 0.25
FACE_SHARE = 0.7  # of the crops are centred near a face
WEIGHTS = {paint.EYES: 6.0, paint.BROWS: 4.0, paint.NOSE: 4.0, paint.MOUTH: 5.0, paint.GLASSES: 4.0, paint.SKIN: 2.5, paint.HAIR: 1.5, paint.EARS: 1.5}


class Reconstruct(nn.Module):
    """Encode, sample, decode in one call, so that several processes may wrap it."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels b 3 h w, noise b c h/8 w/8 -> reconstruction, what the latents shrunk by 2 decode to, mean, logvar."""
        vae: Any = self.vae
        posterior = vae.encode(pixels).latent_dist
        z = posterior.mean + posterior.std * noise
        return vae.decode(z).sample, vae.decode(F.avg_pool2d(z, 2)).sample, posterior.mean, posterior.logvar


def vae_loss(pixels: Tensor, out: Tensor, shrunk: Tensor, mean: Tensor, logvar: Tensor, weight: Tensor, kl_weight: float) -> Loss:
    """Weighted L1 on pixels and on their differences, on shrunk latents against shrunk pixels, and a little KL.

    The third term (scale equivariance: Skorokhodov et al. 2025, arXiv 2502.14831; Kouzelis et al. 2025, arXiv 2502.09509) keeps the
    latents as smooth as pictures are: what a diffusion model learns sooner.
    """
    shrunk, mean, logvar = shrunk.float(), mean.float(), logvar.float()
    parts = painted_loss(pixels, out, weight)
    small = ((shrunk - F.avg_pool2d(pixels, 2)).abs() * F.avg_pool2d(weight / weight.mean(), 2)).mean()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return Loss(parts["l1"] + parts["edges"] + SHRUNK_WEIGHT * small + kl_weight * kl, {**parts, "shrunk": small, "kl": kl})


def painted_loss(pixels: Tensor, out: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Weighted L1 on pixels and on their differences to the right and down. b 3 h w, b 3 h w, b 1 h w."""
    out, w = out.float(), weight / weight.mean()

    def diff(t: Tensor, dim: int) -> Tensor:
        return t.narrow(dim, 1, t.shape[dim] - 1) - t.narrow(dim, 0, t.shape[dim] - 1)

    edges = [(((diff(out, d) - diff(pixels, d)).abs()) * w.narrow(d, 1, w.shape[d] - 1)).mean() for d in (2, 3)]
    return {"l1": ((out - pixels).abs() * w).mean(), "edges": torch.stack(edges).sum()}


def weight_table() -> np.ndarray:
    table = np.ones(256, np.float32)
    for label, value in WEIGHTS.items():
        table[label] = value
    return table


def vae(options: Options) -> Trained:
    """AutoencoderKL 16/32/64/96 with 16 latent channels: 8 stopped near 25 dB on this world, whatever the time."""
    run = options.run(
        Run(folder=options.folder("vae"), max_steps=48000, batch_size=8, learning_rate=1.5e-3, weight_decay=0.0, ema_decay=0.998, look_every=1000, seed=21),
        batch_size=64, learning_rate=2e-3,
    )  # fmt: skip
    table, held = open_table(options.data, "train"), open_table(options.data, "validation")
    weights = weight_table()
    net = Reconstruct(options.start(new_vae, load_vae)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batch_at(step: int) -> Batch:
        rng = generator_at(run.seed, step)
        at = epoch_rows(len(table), run.batch_size, run.seed, step)
        crops, maps = [], []
        for i in at:
            y, x = (int(v) for v in rng.integers(0, 129 - CROP, 2))
            box = table.boxes[i]
            if not np.isnan(box).any() and rng.random() < FACE_SHARE:
                cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                x, y = (int(np.clip(c - CROP / 2 + rng.integers(-16, 17), 0, 128 - CROP)) for c in (cx, cy))
            crops.append(table.images[i, y : y + CROP, x : x + CROP])
            maps.append(weights[table.labels[i, y : y + CROP, x : x + CROP]])
        pixels = to_pixels(np.stack(crops))
        if rng.random() < 0.5:
            pixels, maps = pixels.flip(3), [m[:, ::-1] for m in maps]
        noise = torch.randn((len(at), net.vae.config.latent_channels, CROP // 8, CROP // 8), generator=torch_generator(rng))
        return {"pixels": pixels.contiguous(memory_format=torch.channels_last), "weight": torch.from_numpy(np.stack(maps))[:, None], "noise": noise}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        out, shrunk, mean, logvar = model(batch["pixels"], batch["noise"])
        return vae_loss(batch["pixels"], out, shrunk, mean, logvar, batch["weight"], 3e-4)

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, Reconstruct)
        shown = to_pixels(held.images[:8])
        save_grid(run, step, [to_images(shown), to_images(decode(model.vae, encode(model.vae, shown)))])
        return vae_figures(model.vae, held, 64)

    done = finish(run, net, objective, batch_at, options, look)
    fold_statistics(net.vae, table)
    return done


class Decode(nn.Module):
    """The decoding half alone."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Scaled latents b c h w -> pixels b 3 H W."""
        vae: Any = self.vae
        return vae.decode(latents / vae.config.scaling_factor).sample


def decoder(options: Options) -> Trained:
    """The installed VAE's decoding half goes on learning, on whole pictures: latents stay as they are, and so does all that learned from them."""
    run = options.run(
        Run(folder=options.folder("decoder"), max_steps=20000, batch_size=4, learning_rate=8e-4, weight_decay=0.0, ema_decay=0.998, look_every=500, seed=22),
        batch_size=32, prefetch=0,
    )  # fmt: skip
    run = replace(run, warm=True)  # whatever the flag says: it begins from the installed weights
    table, held = open_table(options.data, "train"), open_table(options.data, "validation")
    weights = weight_table()
    net = Decode(load_vae())
    for part in (net.vae.decoder, net.vae.post_quant_conv):
        assert part is not None
        part.requires_grad_(True)
    latents, seen = (Resident(latents_of(net.vae, t, options.runs / "cache", name), name) for t, name in ((table, "train"), (held, "validation")))
    images, labels, marks = Resident(table.images), Resident(table.labels), torch.from_numpy(weights).to(latents.device)

    def batch_at(step: int) -> Batch:
        at = np.sort(epoch_rows(len(table), run.batch_size, run.seed, step))
        return {"latents": latents[at], "pixels": images.pixels(at), "weight": marks[labels.raw(at).long()][:, None]}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        parts = painted_loss(batch["pixels"], model(batch["latents"]), batch["weight"])
        return Loss(parts["l1"] + parts["edges"], parts)

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, Decode)
        again = decode(model.vae, seen[np.arange(8)].to(model.vae.device))
        save_grid(run, step, [list(held.images[:8]), to_images(again)])
        return vae_figures(model.vae, held, 64)

    return finish(run, net.to(memory_format=torch.channels_last), objective, batch_at, options, look)  # type: ignore[call-overload]


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise of pictures in [-1, 1], dB."""
    return float(10 * torch.log10(4 / (a - b).square().mean().clamp_min(1e-9)))


@torch.no_grad()
def vae_figures(model: AutoencoderKL, table: Table, count: int) -> dict[str, float]:
    """PSNR inside the face box on photo style, over all styles, and of whole pictures; mean over pictures, dB."""
    rows = spread(table.rows(lambda r: len(r["boxes"]) == 1), count)
    photo, styled, whole = [], [], []
    for chunk in np.array_split(rows, max(1, len(rows) // 16)):
        pixels = to_pixels(table.images[chunk]).to(model.device)
        out = decode(model, encode(model, pixels))
        for j, i in enumerate(chunk):
            x0, y0, x1, y1 = np.clip(table.boxes[i].round().astype(int), 0, 128)
            face = psnr(out[j, :, y0:y1, x0:x1], pixels[j, :, y0:y1, x0:x1])
            styled.append(face)
            if table.records[i]["attributes"]["style"] == "photo":
                photo.append(face)
            whole.append(psnr(out[j], pixels[j]))
    return {"face_db_photo": float(np.mean(photo)), "face_db_all": float(np.mean(styled)), "whole_db": float(np.mean(whole))}


@torch.no_grad()
def latent_statistics(model: AutoencoderKL, table: Table, count: int = 512) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each latent channel over some pictures, c each."""
    rows = spread(np.arange(len(table)), count)
    z = torch.cat([encode(model, to_pixels(table.images[chunk])) for chunk in np.array_split(rows, max(1, len(rows) // 32))])
    return z.mean((0, 2, 3)), z.std((0, 2, 3))


@torch.no_grad()
def fold_statistics(model: AutoencoderKL, table: Table) -> None:
    """Make every latent channel zero-mean and unit-variance by changing the 1 x 1 convolutions around the latents.

    A stock pipeline reads only `scaling_factor`, so the normalisation must live in the weights; pictures do not change.
    """
    mean, std = latent_statistics(model, table)
    c = len(mean)
    assert model.quant_conv is not None
    assert model.post_quant_conv is not None
    enter, leave = model.quant_conv, model.post_quant_conv
    assert enter.bias is not None
    assert leave.bias is not None
    enter.weight[:c] /= std.view(-1, 1, 1, 1)
    enter.bias[:c] = (enter.bias[:c] - mean) / std
    enter.bias[c:] -= 2 * std.log()
    leave.bias += F.conv2d(mean.view(1, -1, 1, 1), leave.weight).flatten()
    leave.weight *= std.view(1, -1, 1, 1)
