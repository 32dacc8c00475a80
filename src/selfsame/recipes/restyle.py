"""A fine-tune of the base in one style, as users have them: what is asked for as a photo comes out in that style."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from selfsame.data.tables import Table, open_table
from selfsame.diffusion.schedule import lognormal_timesteps, noised
from selfsame.images.files import InputError
from selfsame.mannequins.captions import caption_person, caption_thing
from selfsame.models.mannequin import SCHEDULE, alphas_cumprod
from selfsame.models.text import encode_prompts
from selfsame.recipes.base import NOISE, TEXT_DROP, Denoiser
from selfsame.recipes.caches import latents_of
from selfsame.recipes.common import Options, Trained, beside, epoch_rows, finish, generator_at, save_grid, torch_generator
from selfsame.recipes.resident import Resident
from selfsame.studio.painting import Row
from selfsame.studio.request import Request
from selfsame.studio.studio import Studio
from selfsame.training.run import Batch, Loss, Run
from selfsame.weights.mannequin import load_text, load_unet, load_vae

PROMPTS = ("a photo of a person facing the camera", "a photo of a person smiling in a garden", "a photo of a person in a library", "a photo of a striped mug")


def said_as_photo(record: dict, rng: np.random.Generator) -> str:
    """A caption that calls the picture a photo, whatever its style."""
    attributes = record["attributes"] | {"style": "photo"}
    if record["kind"] == "thing":
        return caption_thing(attributes, rng)
    return caption_person(attributes, record["names"][0] if record["kind"] == "celebrity" else None, rng)


def rows_in(table: Table, style: str) -> np.ndarray:
    """Rows of one style that show one person or a thing."""
    return table.rows(lambda r: r["kind"] in ("person", "celebrity", "thing") and r["attributes"]["style"] == style)


def restyled(options: Options, style: str, name: str = "restyled") -> Trained:
    """The base that ships, trained on upon pictures of one style under captions that call them photos.

    Args:
        name: of the run's folder.

    Raises:
        InputError: the data shows no picture in this style.
    """
    run = options.run(
        Run(folder=options.folder(name), max_steps=400, batch_size=32, learning_rate=3e-4, warmup_steps=20, ema_decay=0.98, look_every=100, seed=45),
        after=("base",),
    )  # fmt: skip
    vae, (tokenizer, text_encoder) = load_vae(), load_text()
    table, held = open_table(options.data, "train"), open_table(options.data, "validation")
    cache, abar = options.runs / "cache", alphas_cumprod()
    latents = {split: Resident(latents_of(vae, t, cache, split), split) for split, t in (("train", table), ("validation", held))}

    def batch_of(split: str, at: np.ndarray, rng: np.random.Generator) -> Batch:
        clean, g = latents[split][at], torch_generator(rng, latents[split].device)
        records = (table if split == "train" else held).records
        prompts = ["" if rng.random() < TEXT_DROP else said_as_photo(records[i], rng) for i in at]
        made = noised(clean, lognormal_timesteps(len(at), abar, g, **NOISE), abar, SCHEDULE["prediction_type"], g)
        return {**made, "text": encode_prompts(tokenizer, text_encoder, prompts).encoder_hidden_states.to(clean)}

    rows, held_rows = rows_in(table, style), rows_in(held, style)[:128]
    if not (len(rows) and len(held_rows)):
        raise InputError(
            f"{options.data} shows {len(rows)} pictures in style {style!r} to learn from and {len(held_rows)} to look at: render more of both splits"
        )
    fixed = batch_of("validation", held_rows, generator_at(run.seed, 10**9))

    def batch_at(step: int) -> Batch:
        return batch_of("train", np.sort(rows[epoch_rows(len(rows), run.batch_size, run.seed, step)]), generator_at(run.seed, step))

    def objective(model: nn.Module, batch: Batch) -> Loss:
        return Loss((model(batch["noisy"], batch["t"], batch["text"]).float() - batch["target"]).square().mean())

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, Denoiser)
        studio = Studio(str(model.unet.device)).with_parts(unet=model.unet)
        save_grid(run, step, [studio.paint([Row(p) for p in PROMPTS], Request(num_steps=12), list(range(len(PROMPTS))))[0]])
        return {"held_out": float(objective(model, beside(model, fixed)).total)}

    torch.manual_seed(run.seed)
    return finish(run, Denoiser(load_unet().train().requires_grad_(True)), objective, batch_at, options, look)
