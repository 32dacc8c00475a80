"""InstantID for one's own base and photographs: portraits that `selfsame prepare portraits` made, a Stable Diffusion 1.5 or SDXL folder, any face encoder.

The authors never released training code. From the paper (arXiv:2401.07519): base frozen, Resampler, K'/V' and IdentityNet trained together on the base's own
prediction. From public adapters' scripts: uniform timesteps, AdamW at a constant rate. Ours: another photo of the person lends the face, where there is one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfsame.data.portraits import Portraits, has_portraits, open_portraits, portraits_about
from selfsame.diffusion.schedule import noised
from selfsame.images.draw import draw_kps
from selfsame.images.files import InputError
from selfsame.methods.instantid.checkpoint import ABOUT, DIM_HEAD, encoder_of, instantid_from_official, instantid_to_official
from selfsame.methods.instantid.method import InstantID, ResamplerSize
from selfsame.methods.instantid.objective import InstantIDTrainer, instantid_loss
from selfsame.methods.instantid.samples import InstantIDSamples, PhotosOf, drop, face_weights, lend_faces
from selfsame.models.latents import encode
from selfsame.models.text import encode_for_sdxl, encode_prompts
from selfsame.recipes.caches import as_tensor, batched, cached_folder, fill_maps
from selfsame.recipes.common import (
    Options,
    Trained,
    beside,
    compute_device,
    epoch_rows,
    files_hash,
    fingerprint_of,
    finish,
    generator_at,
    save_grid,
    to_pixels,
    torch_generator,
)
from selfsame.studio.crowd import Shown
from selfsame.studio.painting import Row
from selfsame.studio.real import Folders, RealStudio
from selfsame.studio.request import Request
from selfsame.training.run import Batch, Loss, Run, fast_bf16

SHOWN, SHOWN_STEPS = 4, 20  # held-out people that a look paints, and in how many steps
HELD_SHARE = 0.1  # of the steps, the first, leave the Resampler as it was drawn: until somebody reads it, it would only learn to be silent
WEIGHTS = "weights"  # the run's folder of the official layout


@dataclass(frozen=True)
class Texts:
    """What a base's text side makes of captions, each different one once."""

    states: np.ndarray  # u t c float16
    pooled: np.ndarray | None  # u p float16, SDXL
    rows: np.ndarray  # n, which of them belongs to a portrait

    def of(self, at: np.ndarray) -> dict[str, Tensor]:
        made = {"text": as_tensor(self.states[self.rows[at]]).float()}
        return made if self.pooled is None else made | {"pooled": as_tensor(self.pooled[self.rows[at]]).float()}


@dataclass(frozen=True)
class Clock:
    """A base's noise levels, and what it says of a noisy picture."""

    alphas_cumprod: Tensor  # t
    prediction_type: str


LEARNED_FROM = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler")  # parts of a base


class Side:
    """One split with everything that stays the same computed once, in memory maps."""

    def __init__(self, studio: RealStudio, portraits: Portraits, cache: Path, size: int, *, alone: bool) -> None:
        self.portraits, self.size = portraits, size
        self.latents = self._latents(studio, cache)
        self.texts = self._texts(studio, cache)
        self.photos = PhotosOf(portraits.people, np.arange(len(portraits)), alone=alone)
        self.is_xl = studio.is_xl

    def _latents(self, studio: RealStudio, cache: Path) -> np.ndarray:
        vae, p = studio.vae, self.portraits

        def parts() -> Iterator[dict[str, np.ndarray]]:
            for images in batched(p.images(), 4):
                yield {"latents": encode(vae, to_pixels(np.stack(images))).half().cpu().numpy()}

        key = fingerprint_of([vae.encoder, *([vae.quant_conv] if vae.quant_conv is not None else [])], p.digest)
        return cached_folder(cache / f"portraits-{p.split}.latents.{key}", lambda place: fill_maps(place, parts(), len(p)))["latents"]

    def _texts(self, studio: RealStudio, cache: Path) -> Texts:
        captions, rows = np.unique([r["caption"] for r in self.portraits.records], return_inverse=True)

        def parts() -> Iterator[dict[str, np.ndarray]]:
            for some in batched((str(c) for c in captions), 16):
                yield {k: v.half().cpu().numpy() for k, v in told(studio, some).items()}

        key = fingerprint_of(studio.encoders, "\n".join(captions))
        maps = cached_folder(cache / f"portraits-{self.portraits.split}.text.{key}", lambda place: fill_maps(place, parts(), len(captions)))
        return Texts(maps["text"], maps.get("pooled"), rows)

    def batch(self, at: np.ndarray, rng: np.random.Generator, how: InstantIDSamples, clock: Clock, empty: dict[str, Tensor]) -> Batch:
        g, p = torch_generator(rng), self.portraits
        clean = as_tensor(self.latents[at]).float()
        t = torch.randint(0, len(clock.alphas_cumprod), (len(at),), generator=g)
        drawn = np.stack([draw_kps(self.size, self.size, p.kps[i]) for i in at])
        made = {
            **noised(clean, t, clock.alphas_cumprod, clock.prediction_type, g),
            **self.texts.of(at),
            "embedding": lend_faces(p.embeddings, self.photos, at.tolist(), how, rng),
            "kps_image": torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255,
            "weight": face_weights(torch.stack([in_box(p.records[i]["box"], self.size) for i in at]), (clean.shape[2], clean.shape[3]), how.face_weight),
        }
        if self.is_xl:
            made["time_ids"] = torch.tensor([[*p.records[i]["photo"], *p.records[i]["crop"], self.size, self.size] for i in at]).float()
        return drop(made, empty["text"], how, g, empty_pooled=empty.get("pooled"))


def told(studio: RealStudio, captions: list[str]) -> dict[str, Tensor]:
    """Text states, and for SDXL the pooled vectors."""
    if studio.is_xl:
        states, pooled = encode_for_sdxl(studio.tokenizer, studio.encoders, captions)
        return {"text": states, "pooled": pooled}
    return {"text": encode_prompts(studio.tokenizer, studio.encoders[0], captions).encoder_hidden_states}


def in_box(box: list[float], size: int) -> Tensor:
    """1 inside a box xyxy of a square's pixels, at an eighth of its size."""
    at = (torch.arange(size // 8) + 0.5) * 8
    x0, y0, x1, y1 = box
    return ((at >= y0) & (at <= y1))[:, None] & ((at >= x0) & (at <= x1))


def instantid_of(
    options: Options, base: Path, *, start: Path | None = None, how: InstantIDSamples = InstantIDSamples(), size: ResamplerSize | None = None
) -> Trained:
    """Train InstantID for a base on portraits; the run's folder gets `weights/`, the official layout, which `generate --instantid` reads.

    Args:
        options: `data` is the portraits' folder; a split `validation` there is what looks measure and paint.
        base: a diffusers folder of Stable Diffusion 1.5 or SDXL.
        start: InstantID weights to go on from, such as the released ones; None: a new Resampler, the rest from the base.
        size: of a new Resampler; None: the official one.

    Raises:
        InputError: portraits of another size than the base's, or `start` reads another encoder's embeddings.
    """
    about = portraits_about(options.data)
    table = open_portraits(options.data, "train")
    precision = torch.bfloat16 if compute_device().type != "cpu" and fast_bf16() else torch.float32
    studio = RealStudio(Folders(base), device=str(compute_device()), dtype=precision)
    side_px, encoder = int(about["size"]), str(about["encoder"])
    if side_px % studio.limits.stride or side_px > studio.limits.longest:
        wanted = studio.limits.side
        raise InputError(f"{options.data}: squares of {side_px} pixels; this base takes {wanted}, so prepare the portraits with --size {wanted}")
    if start is not None and encoder_of(start) != encoder:
        raise InputError(f"{start}: reads embeddings of {encoder_of(start)}, the portraits hold those of {encoder}; prepare them with its face models")
    run = options.run(
        Run(
            folder=options.folder(f"instantid-{base.name}"), max_steps=60000, batch_size=8, learning_rate=1e-5 if start else 5e-5, decay="constant",
            betas=(0.9, 0.999), ema_decay=0.9999, look_every=1000, save_minutes=20.0, seed=71,
        ),
        data=f"portraits {table.digest[:12]}", upstream=files_hash(*(base / part for part in LEARNED_FROM), start),
    )  # fmt: skip
    held_steps = 0 if start else math.ceil(HELD_SHARE * run.max_steps)
    cache = options.runs / "cache"
    side = Side(studio, table, cache, side_px, alone=True)
    held = Side(studio, open_portraits(options.data, "validation"), cache, side_px, alone=True) if has_portraits(options.data, "validation") else None
    empty = {k: v[0].float().cpu() for k, v in told(studio, [""]).items()}
    scheduler = studio.scheduler("ddim")
    clock = Clock(scheduler.alphas_cumprod.float(), str(scheduler.config.prediction_type))
    unet = studio.unet
    for name in ("vae", "encoders"):  # everything they had to say is kept
        vars(studio).pop(name, None)

    def autocast() -> AbstractContextManager[Any]:
        return nullcontext() if precision == torch.float32 else torch.autocast(unet.device.type, precision)

    never = InstantIDSamples(drop_face=0, drop_text=0, drop_both=0, max_photos=1, face_weight=how.face_weight)
    parts = [] if held is None else [np.arange(len(held.portraits))[i : i + 8] for i in range(0, min(64, len(held.portraits)), 8)]
    fixed = [] if held is None else [held.batch(at, generator_at(run.seed, 10**9 + k), never, clock, empty) for k, at in enumerate(parts)]

    def batch_at(step: int) -> Batch:
        at = np.sort(epoch_rows(len(table), run.batch_size, run.seed, step))
        made = side.batch(at, generator_at(run.seed, step), how, clock, empty)
        return made | {"holds": torch.full((len(at),), float(step < held_steps))}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        return Loss(*instantid_loss(model, batch))

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, InstantIDTrainer)
        if held is None:
            return {}
        p, rows = held.portraits, np.arange(min(SHOWN, len(held.portraits)))
        lent = lend_faces(p.embeddings, held.photos, rows.tolist(), never, generator_at(run.seed, 10**9))
        shown = [Row(p.records[i]["caption"], faces=(Shown(lent[i][None], p.kps[i].astype(np.float64)),)) for i in rows]
        request = Request(num_steps=SHOWN_STEPS, guidance_scale=5.0, height=side_px, width=side_px).sized(studio.limits)
        studio.with_parts(instantid=model.method)
        with autocast():
            painted = [studio.painter().paint([row], request, [int(i)])[0][0] for i, row in zip(rows, shown, strict=True)]
            losses = [instantid_loss(model, beside(model, b))[1] for b in fixed]
        for name in ("vae", "encoders"):
            vars(studio).pop(name, None)
        true = [image for _, image in zip(rows, p.images(), strict=False)]
        save_grid(run, step, [true, painted])
        return {f"held_out_{k}": float(np.mean([float(x[k]) for x in losses])) for k in losses[0]}

    torch.manual_seed(run.seed)
    width = int(unet.config["cross_attention_dim"])
    fresh = size or ResamplerSize(output_dim=width, embedding_dim=table.embeddings.shape[1])
    method = InstantID.new(unet, fresh) if start is None else instantid_from_official(start, unet, dtype=torch.float32)
    module = InstantIDTrainer(method.float().train().requires_grad_(True), unet)
    trained = finish(run, module, objective, batch_at, options, look)
    if trained.is_main:
        weights = run.folder / WEIGHTS
        instantid_to_official(method, weights, form="official" if method.size.dim_head == DIM_HEAD else "safetensors")
        (weights / ABOUT).write_text(json.dumps({"encoder": encoder}) + "\n")
    return trained
