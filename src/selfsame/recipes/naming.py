"""Recipe of StableIdentity's taught start: a face becomes the two words that a base model would have known it by, had it been famous.

The paper's projection starts at a random place among the names and hears of one face (arXiv:2401.15975, Sec. 3.2). This one has heard of a world of them: first
of the celebrities, whose faces and names are known together; then of everybody, by how well the frozen base paints them when told those words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.data.tables import Table, open_table
from selfsame.diffusion.schedule import lognormal_timesteps, noised
from selfsame.mannequins.people import celebrities
from selfsame.methods.instantid.samples import PhotosOf, face_weights
from selfsame.methods.stableidentity.method import PersonTrainer, celebrity_space, name_ids
from selfsame.methods.stableidentity.modules import LANDINGS, WordProjection
from selfsame.methods.stableidentity.samples import framed
from selfsame.models.mannequin import SCHEDULE, alphas_cumprod, load_image_encoder
from selfsame.models.text import tokenize, tower_hash
from selfsame.perception.embedders import FaceEncoder
from selfsame.perception.face_vit import FACE_VIT_CROP, FEATURE_DIM, FaceViT
from selfsame.recipes.base import FACE_WEIGHT
from selfsame.recipes.caches import as_tensor, batched, cached, face_shares_of, faces_of, fingerprint, latents_of
from selfsame.recipes.common import ON_GPU, Options, Trained, beside, epoch_rows, finish, generator_at, save_grid, to_pixels, torch_generator
from selfsame.recipes.faces import face_rows
from selfsame.recipes.instantid import LIKENESS
from selfsame.recipes.likeness import shared_reader, unlikeness
from selfsame.recipes.resident import Resident
from selfsame.studio.painting import Row
from selfsame.studio.request import Request
from selfsame.studio.studio import Studio
from selfsame.training.run import Batch, Loss, Run
from selfsame.values.identity import LearnedWords
from selfsame.weights.mannequin import load_into, load_text, load_unet, load_vae

FILE = "words.safetensors"
UNRECORDED: dict[str, Any] = ON_GPU | {"graphs": False}  # the words are hooked into the text tower
NUM_WORDS = 2
SOMEBODY, PLACEHOLDER = "a person", "<p>"
LANDING_STEPS, LANDING_RATE = 1500, 3e-3  # five seconds
NOISE = {"mean": 1.8, "std": 1.3}  # of log sigma: words say who it is while little is to be seen
PROMPTS = (
    "a photo of {} facing the camera", "a photo of {} smiling in a garden", "a photo of {} wearing a red hoodie in the city", "a watercolour of {} on a beach",
    "a photo of {}", "a pencil sketch of {} laughing", "a photo of {} in a library", "a comic of {} in space",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """How a projection is taught: as it ships, or with one choice changed."""

    reads: Literal["face", "clip"] = "face"  # the face transformer's feature, or CLIP's of the framed picture
    landing: LANDINGS = "joint"
    paints: bool = True  # False: it hears of the celebrities' names alone
    likeness: float = LIKENESS  # weight of the loss on the forming face


READ = ("base", "encoder.safetensors", "face_vit.safetensors", "clip_image.safetensors")  # shipped files that variants learn from


def new_projection(tokenizer: Any, text_encoder: Any, landing: LANDINGS = "joint") -> WordProjection:
    """The official layers at the miniature's widths, in the space of its celebrities."""
    space, _ = celebrity_space(tokenizer, text_encoder, [" ".join(n) for n in celebrities()], NUM_WORDS)
    return WordProjection(space, FEATURE_DIM, space.mean.shape[1], num_words=NUM_WORDS, landing=landing)


def taught_projection(tokenizer: Any, text_encoder: Any) -> WordProjection:
    """The one that ships.

    Raises:
        WeightsError: it is missing or damaged.
    """
    module = load_into(new_projection(tokenizer, text_encoder), FILE)
    assert isinstance(module, WordProjection)
    return module


def land(projection: WordProjection, table: Table, features: np.ndarray, tokenizer: Any, text_encoder: Any, seed: int, steps: int = LANDING_STEPS) -> float:
    """Teach a projection to say a celebrity's name of the celebrity's face.

    Args:
        features: n f, of the face transformer, for all rows of the table.

    Returns:
        The last steps' mean square error, over the spread of the names; nan when the data shows no celebrity.
    """
    rows = table.rows(lambda r: r["kind"] == "celebrity")
    if not len(rows):
        return math.nan
    called, which = np.unique([table.records[i]["names"][0] for i in rows], return_inverse=True)
    ids, _ = name_ids(tokenizer, called.tolist(), NUM_WORDS)
    names = (text_encoder.get_input_embeddings().weight.detach()[ids] - projection.mean) / projection.std
    seen, rng = as_tensor(features[rows]), np.random.default_rng([seed, 0x1A4D])
    optimizer = torch.optim.AdamW(projection.parameters(), lr=LANDING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    errors = []
    for _ in range(steps):
        at = rng.choice(len(rows), 128)
        loss = F.mse_loss((projection(seen[at]) - projection.mean) / projection.std, names[which[at]])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        errors.append(loss.item())
    return float(np.mean(errors[-20:])) / float((names - names.mean(0)).square().mean())


def spoken(record: dict[str, Any]) -> str:
    """A record's caption with the placeholder where it speaks of the person."""
    return record["caption"].replace(record["names"][0] if record["kind"] == "celebrity" else SOMEBODY, PLACEHOLDER, 1)


def framed_clip_of(table: Table, rows: np.ndarray, folder: Path, name: str) -> np.ndarray:
    """CLIP's image features of framed pictures of rows, n d float32; other rows are zero."""
    tower = load_image_encoder()

    @torch.no_grad()
    def make() -> np.ndarray:
        out = np.zeros((len(table), FEATURE_DIM), np.float32)
        for part in batched(rows.tolist(), 256):
            pixels = to_pixels(np.stack([framed(np.asarray(table.images[i]), table.boxes[i]) for i in part]))
            out[part] = tower(pixels).image_embeds.numpy()
        return out

    return cached(folder / f"{name}.framed-clip.{fingerprint(tower, table)}.npy", make)


def naming(options: Options, variant: Variant = Variant(), name: str = "words") -> Trained:
    """The projection through the frozen text tower and base: told by a photo, it has to make the base paint another of the person.

    Args:
        name: of the run's folder.
    """
    run = options.run(
        Run(folder=options.folder(name), max_steps=4000, batch_size=32, learning_rate=2e-3, ema_decay=0.995, warmup_steps=30, look_every=400, seed=91),
        after=("base", "face_vit.safetensors"), batch_size=256, **UNRECORDED,
    )  # fmt: skip
    vae, (tokenizer, text_encoder), unet = load_vae(), load_text(), load_unet()
    encoder, vit = load_into(FaceEncoder(), "encoder.safetensors"), load_into(FaceViT(), "face_vit.safetensors")
    cache, abar = options.runs / "cache", alphas_cumprod()

    class Side:
        """One split with everything that stays the same computed once."""

        def __init__(self, split: str) -> None:
            self.table = open_table(options.data, split)
            rows = face_rows(self.table)
            self.latents = Resident(latents_of(vae, self.table, cache, split), split)
            self.shares = Resident(face_shares_of(self.table, cache, split), split)
            self.encoded = Resident(faces_of(encoder, self.table, rows, cache, split), split)
            read = faces_of(vit, self.table, rows, cache, split, FACE_VIT_CROP) if variant.reads == "face" else framed_clip_of(self.table, rows, cache, split)
            self.features = Resident(read, split)
            self.photos = PhotosOf(self.table.people, rows)
            told = tokenize(tokenizer, [spoken(self.table.records[i]) for i in self.photos.rows], {PLACEHOLDER: NUM_WORDS})
            self.place = np.zeros(len(self.table), np.int64)  # of a row's caption among `ids`
            self.place[self.photos.rows] = np.arange(len(self.photos.rows))
            self.ids, first = told.ids[:, None], np.zeros(len(told.ids), np.int64)
            for row, at, _, word in told.places:
                first[row] = at if word == 0 else first[row]
            self.first = torch.from_numpy(first)

        def batch(self, at: np.ndarray, rng: np.random.Generator) -> Batch:
            clean, g = self.latents[at], torch_generator(rng, self.latents.device)
            place, lent = self.place[at], self.photos.others(at, 1, rng)[:, 0]
            return {
                **noised(clean, lognormal_timesteps(len(at), abar, g, **NOISE), abar, SCHEDULE["prediction_type"], g),
                "features": self.features[lent],
                "ids": self.ids[place].to(clean.device),
                "first": self.first[place].to(clean.device),
                "embedding": self.encoded[at],
                "weight": face_weights(self.shares[at], (clean.shape[2], clean.shape[3]), FACE_WEIGHT),
            }

    side, held = Side("train"), Side("validation")
    reader = None
    if variant.likeness:
        reader = shared_reader(cache, side.table, vae, encoder, side.latents.array, np.asarray(side.encoded.array), smoke=options.smoke)
    fixed = [held.batch(held.photos.rows[i : i + 64], generator_at(run.seed, 10**9 + i)) for i in range(0, min(256, len(held.photos.rows)), 64)]
    shown = [held.photos.of[who][0] for who in list(held.photos.of)[: len(PROMPTS)]]

    def batch_at(step: int) -> Batch:
        at = np.sort(side.photos.rows[epoch_rows(len(side.photos.rows), run.batch_size, run.seed, step)])
        return side.batch(at, generator_at(run.seed, step))

    def errors(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The prediction, the weighted error, and the face's."""
        out = model(batch["noisy"], batch["t"], batch["features"], batch["ids"], batch["first"]).float()
        square = (out - batch["target"]).square().mean(1, keepdim=True)
        face = batch["weight"] > 1
        return out, (square * batch["weight"]).mean(), (square * face).sum() / face.sum().clamp_min(1)

    def objective(model: nn.Module, batch: Batch) -> Loss:
        out, weighted, face = errors(model, batch)
        unlike = out.new_zeros(()) if reader is None else variant.likeness * unlikeness(reader, out, batch, batch["embedding"], abar)
        return Loss(weighted + unlike, {"face": face, "likeness": unlike})

    def pictures(words: Sequence[Tensor], studio: Studio) -> list[np.ndarray]:
        people = [LearnedWords((v.cpu().numpy(),), f"<p{i}>", tower_hash(text_encoder), {"base": "mannequin"}) for i, v in enumerate(words)]
        rows = [Row(prompt.format(p.placeholder)) for prompt, p in zip(PROMPTS, people, strict=False)]
        return studio.paint(rows, Request(num_steps=12), list(range(len(rows))), words=tuple(people))[0]

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, PersonTrainer)
        words = model.words[0](as_tensor(held.features.array[shown]).to(next(model.words.parameters()).device))
        save_grid(run, step, [[held.table.images[i] for i in shown], pictures(list(words.float()), Studio(str(model.unet.device)))])
        own = [float(errors(model, beside(model, b))[2]) for b in fixed]
        strangers = [float(errors(model, beside(model, b | {"features": b["features"].roll(len(b["features"]) // 2, 0)}))[2]) for b in fixed]
        return {"held_out_face": float(np.mean(own)), "stranger_costs": float(np.mean(strangers) - np.mean(own))}

    torch.manual_seed(run.seed)

    def fresh() -> WordProjection:
        projection = new_projection(tokenizer, text_encoder, variant.landing)
        if not (run.folder / "state.pt").exists():  # else the checkpoint knows better
            land(projection, side.table, np.asarray(side.features.array), tokenizer, text_encoder, run.seed, 2 if options.smoke else LANDING_STEPS)
        return projection

    projection = options.start(fresh, lambda: taught_projection(tokenizer, text_encoder))
    trainer = PersonTrainer([projection], [text_encoder], unet)
    if not variant.paints:
        with torch.no_grad():
            return Trained(trainer.eval(), look(trainer, 0), run.folder, 0)
    return finish(run, trainer, objective, batch_at, options, look)
