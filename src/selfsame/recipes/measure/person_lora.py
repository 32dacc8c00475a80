"""A LoRA of one person as a baseline: the base itself learns the photo under a rare word (DreamBooth, arXiv:2208.12242, with LoRA, arXiv:2106.09685)."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from torch import nn

from selfsame.diffusion.schedule import lognormal_timesteps, noised
from selfsame.mannequins.captions import STYLE_PHRASES
from selfsame.methods.stableidentity.samples import Draws, PhotoSamples, augmented, jittered
from selfsame.models.latents import encode
from selfsame.models.mannequin import SCHEDULE, alphas_cumprod
from selfsame.recipes.base import NOISE, Denoiser
from selfsame.recipes.common import generator_at, to_pixels, torch_generator
from selfsame.studio.studio import Studio
from selfsame.training.loop import train
from selfsame.training.run import Batch, Loss, Run

CALLED = "a sks person"  # a rare word before the class, as DreamBooth has it
LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
SAMPLES = PhotoSamples(smallest=1.0, aspect=0.0, crop_margin=0.1)  # never shrunk: here nothing masks the frame that would be learned with the face


@dataclass(frozen=True)
class PersonLora:
    """How a person is learned."""

    rank: int = 8
    steps: int = 120
    batch_size: int = 8
    learning_rate: float = 1e-3
    seed: int = 71


def with_lora(studio: Studio, photos: list[np.ndarray], how: PersonLora = PersonLora()) -> nn.Module:
    """A copy of the studio's U-Net that has learned photos (128 128 3 uint8) of one person as `CALLED`; the studio's own stays as it is."""
    unet = copy.deepcopy(studio.unet).requires_grad_(False)
    torch.manual_seed(how.seed)
    unet.add_adapter(LoraConfig(r=how.rank, lora_alpha=how.rank, init_lora_weights=True, target_modules=LAYERS))
    text, abar = studio.text_states([phrase.format(CALLED) for phrase in STYLE_PHRASES["photo"]])[0], alphas_cumprod()
    nothing = torch.zeros(2, 1, 1)

    @torch.no_grad()
    def batch_at(step: int) -> Batch:
        rng = generator_at(how.seed, step)
        pictures = []
        for _ in range(how.batch_size):
            photo = photos[int(rng.integers(len(photos)))]
            pixels = to_pixels(jittered(photo, SAMPLES, rng)[None])[0]
            pictures.append(augmented(pixels, nothing.expand(-1, *photo.shape[:2]), Draws.of(rng, len(photo), SAMPLES), SAMPLES)[0])
        g = torch_generator(rng)
        clean = encode(studio.vae, torch.stack(pictures).to(studio.device)).cpu()
        made = noised(clean, lognormal_timesteps(len(clean), abar, g, **NOISE), abar, SCHEDULE["prediction_type"], g)
        return {**made, "text": text[torch.randint(len(text), (len(clean),), generator=g)].cpu()}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        return Loss((model(batch["noisy"], batch["t"], batch["text"]).float() - batch["target"]).square().mean())

    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            folder=Path(folder), max_steps=how.steps, batch_size=how.batch_size, learning_rate=how.learning_rate, warmup_steps=5, ema_decay=0.0, seed=how.seed
        )  # fmt: skip
        train(run, Denoiser(unet), objective, batch_at, device=studio.device)
    return unet.eval()
