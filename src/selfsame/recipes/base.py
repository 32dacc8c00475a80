"""Recipe of the base U-Net: text to latents, v-prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from selfsame.data.tables import has_table, open_table
from selfsame.diffusion.schedule import lognormal_timesteps, noised
from selfsame.methods.instantid.samples import face_weights
from selfsame.models.mannequin import SCHEDULE, alphas_cumprod, new_unet
from selfsame.models.text import encode_prompts
from selfsame.recipes.caches import face_shares_of, latents_of, text_of
from selfsame.recipes.common import ON_GPU, Options, Trained, beside, epoch_rows, finish, generator_at, save_grid, torch_generator
from selfsame.recipes.resident import Resident
from selfsame.studio.painting import Row
from selfsame.studio.request import Request
from selfsame.studio.studio import Studio
from selfsame.training.run import Batch, Loss, Run
from selfsame.weights.mannequin import load_text, load_unet, load_vae

TEXT_DROP = 0.10
FACE_WEIGHT = 5.0  # loss weight on faces and hair, mean 1 over each picture: eyes are few cells, and what people look at
NOISE = {"mean": 1.1, "std": 1.5}  # of log sigma in training: what words decide is decided above sigma 3 here (docs/training.md)
HELD_OUT_NOISE = {"mean": -0.5, "std": 1.2}  # of held-out losses: EDM's, at which all runs so far were measured
SMALL_SHARE = 0.20  # of the steps, the first, see pictures of half the size: words and colours are learned there at a third of the cost
TIMES = {"person": 2, "celebrity": 4, "thing": 1}  # how often an epoch shows them: only names tell the text whose face it is
WIDE = (192, 256)  # widths of the groups' canvases
PROMPTS = (
    "a photo of a person smiling in a garden", "a photo of ada fox facing the camera", "a watercolour of a person laughing on a beach",
    "a photo of a person wearing a red hoodie in the city", "a pencil sketch of ben stone", "a photo of a striped mug in a kitchen",
    "a pixel art picture of a person wearing a crown", "a comic of a sad person in space",
)  # fmt: skip


class Denoiser(nn.Module):
    """The U-Net behind a plain call."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, encoder_hidden_states).sample


@dataclass(frozen=True)
class Rows:
    """Pictures of one size, ready to learn from."""

    latents: Resident  # n c h w float16
    text: Resident  # n t d float16
    shares: Resident  # n h w float16, how much of each cell is face
    epoch: np.ndarray  # rows of one epoch, some of them several times

    def __len__(self) -> int:
        return len(self.latents)


def base(options: Options) -> Trained:
    """UNet2DConditionModel 96/96/128 from cached latents and text states."""
    after = ("base/vae", "base/text_encoder", "base/tokenizer")
    run = options.run(
        Run(folder=options.folder("base"), max_steps=62500, batch_size=32, learning_rate=8e-4, ema_decay=0.9995, weight_decay=0.01, look_every=1000, seed=41),
        after=after, batch_size=512, learning_rate=1.5e-3, max_steps=16000, **ON_GPU,
    )  # fmt: skip
    vae, (tokenizer, text_encoder) = load_vae(), load_text()
    cache = options.runs / "cache"

    def rows_of(split: str, width: int = 128, shrink: int = 1) -> Rows:
        """A split's pictures of one width."""
        table, name = open_table(options.data, split, 128, width), split if width == 128 else f"{split}-{width}"
        latents = latents_of(vae, table, cache, name if shrink == 1 else f"{name}-small", shrink)
        epoch = np.repeat(np.arange(len(table)), [TIMES.get(r["kind"], 1) for r in table.records])
        text, shares = text_of(tokenizer, text_encoder, table, cache, name), face_shares_of(table, cache, name, 8 * shrink)
        return Rows(Resident(latents, split), Resident(text, split), Resident(shares, split), epoch)

    small_steps = 0 if run.warm else math.ceil(SMALL_SHARE * run.max_steps)  # installed weights know what small pictures teach
    whole = rows_of("train")
    small = rows_of("train", shrink=2) if small_steps else whole
    wide = [rows_of("train", width) for width in WIDE if has_table(options.data, "train", 128, width)]
    wide_share = sum(map(len, wide)) / (len(whole) + sum(map(len, wide)))
    empty = encode_prompts(tokenizer, text_encoder, [""]).encoder_hidden_states[0]
    abar = alphas_cumprod()

    def batch_of(rows: Rows, at: np.ndarray, rng: np.random.Generator, noise: Mapping[str, float] = NOISE) -> Batch:
        clean, text = rows.latents[at], rows.text[at]
        g = torch_generator(rng, clean.device)
        made = noised(clean, lognormal_timesteps(len(clean), abar, g, **noise), abar, SCHEDULE["prediction_type"], g)
        drop = torch.rand(len(clean), generator=g, device=g.device) < TEXT_DROP
        text = torch.where(drop[:, None, None], empty.to(text), text)
        weight = face_weights(rows.shares[at], (clean.shape[2], clean.shape[3]), FACE_WEIGHT)
        return {**made, "text": text, "weight": weight}

    def batch_at(step: int) -> Batch:
        rng = generator_at(run.seed, step)
        if step >= small_steps and wide and rng.random() < wide_share:  # groups on wider canvases, a whole batch of one size
            rows = wide[int(rng.integers(len(wide)))]
            return batch_of(rows, np.sort(rng.integers(len(rows), size=run.batch_size)), rng)
        rows = small if step < small_steps else whole
        return batch_of(rows, np.sort(rows.epoch[epoch_rows(len(rows.epoch), run.batch_size, run.seed, step)]), rng)

    def objective(model: nn.Module, batch: Batch) -> Loss:
        square = (model(batch["noisy"], batch["t"], batch["text"]).float() - batch["target"]).square().mean(1, keepdim=True)
        face = batch["weight"] > 1
        parts = {"plain": square.mean(), "face": (square * face).sum() / face.sum().clamp_min(1)}
        return Loss((square * batch["weight"]).mean(), parts)

    def held_batches(shrink: int, noise: Mapping[str, float] = HELD_OUT_NOISE) -> list[Batch]:
        rows = rows_of("validation", shrink=shrink)
        starts = range(0, min(256, len(rows)), 64)
        return [batch_of(rows, np.arange(i, min(i + 64, len(rows))), generator_at(run.seed, 10**9 + i), noise) for i in starts]

    fixed, early = {"": held_batches(1)} | ({"_small": held_batches(2)} if small_steps else {}), held_batches(1, NOISE)

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, Denoiser)
        studio = Studio(str(model.unet.device)).with_parts(unet=model.unet)
        side = 64 if step <= small_steps else 128
        painted, _ = studio.paint([Row(p) for p in PROMPTS], Request(height=side, width=side), list(range(len(PROMPTS))))
        save_grid(run, step, [painted])
        figures: dict[str, float] = {}
        for size, batches in fixed.items():
            losses = [objective(model, beside(model, b)).parts for b in batches]
            figures |= {f"held_out_{part}{size}": float(np.mean([float(x[part]) for x in losses])) for part in losses[0]}
        knows = [objective(model, beside(model, b)).parts["plain"] for b in early]
        untold = [objective(model, beside(model, b | {"text": b["text"].roll(1, 0)})).parts["plain"] for b in early]
        # What another picture's caption costs: how much the words say.
        return figures | {"wrong_words_cost": float(np.mean([float(b - a) for a, b in zip(knows, untold, strict=True)]))}

    denoiser = Denoiser(options.start(new_unet, load_unet))
    return finish(run, denoiser, objective, batch_at, options, look)
