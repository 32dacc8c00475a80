"""Recipe of the base U-Net: text to latents, v-prediction."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from selfsame.data.tables import open_table
from selfsame.diffusion.schedule import add_noise, lognormal_timesteps, scaled_linear_alphas_cumprod, velocity
from selfsame.models.mannequin import new_unet
from selfsame.models.text import encode_prompts
from selfsame.recipes.caches import as_tensor, latents_of, text_of
from selfsame.recipes.common import Options, Trained, epoch_rows, finish, generator_at, torch_generator
from selfsame.training.loop import Batch, Loss, Run
from selfsame.weights.mannequin import load_text, load_vae

TEXT_DROP = 0.10


class Denoiser(nn.Module):
    """The U-Net behind a plain call."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, encoder_hidden_states).sample


def base(options: Options) -> Trained:
    """UNet2DConditionModel 96/96/128 from cached latents and text states."""
    run = options.run(
        Run(folder=options.folder("base"), max_steps=125000, batch_size=16, learning_rate=4e-4, ema_decay=0.9995, weight_decay=0.01, look_every=1000, seed=41)
    )
    vae, (tokenizer, text_encoder) = load_vae(), load_text()
    table, held = open_table(options.data, "train"), open_table(options.data, "validation")
    cache = options.runs / "cache"
    latents = latents_of(vae, table, cache, "train")
    held_latents = latents_of(vae, held, cache, "validation")
    captions = [r["caption"] for r in table.records]
    states = text_of(tokenizer, text_encoder, captions, cache, "train")
    held_states = text_of(tokenizer, text_encoder, [r["caption"] for r in held.records], cache, "validation")
    empty = encode_prompts(tokenizer, text_encoder, [""]).encoder_hidden_states[0]
    abar = scaled_linear_alphas_cumprod()

    def noised(clean: Tensor, text: Tensor, rng: np.random.Generator) -> Batch:
        g = torch_generator(rng)
        t = lognormal_timesteps(len(clean), abar, g)
        noise = torch.randn(clean.shape, generator=g)
        drop = torch.rand(len(clean), generator=g) < TEXT_DROP
        text = torch.where(drop[:, None, None], empty, text)
        return {"noisy": add_noise(clean, noise, t, abar), "t": t, "text": text, "v": velocity(clean, noise, t, abar)}

    def batch_at(step: int) -> Batch:
        at = np.sort(epoch_rows(len(table), run.batch_size, run.seed, step))
        return noised(as_tensor(latents[at]), as_tensor(states[at]), generator_at(run.seed, step))

    def objective(model: nn.Module, batch: Batch) -> Loss:
        return Loss(F.mse_loss(model(batch["noisy"], batch["t"], batch["text"]).float(), batch["v"]))

    fixed = [noised(as_tensor(held_latents[i : i + 64]), as_tensor(held_states[i : i + 64]), generator_at(run.seed, 10**9 + i)) for i in (0, 64, 128, 192)]

    def look(model: nn.Module, step: int) -> dict[str, float]:
        return {"held_out_loss": float(np.mean([float(objective(model, b).total) for b in fixed]))}

    return finish(run, Denoiser(new_unet()), objective, batch_at, options, look)
