"""Recipe of MimicBrush on the miniature base: the imitative net whole, the reference net as the base with LoRA, both projectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from selfsame.data.pairs import read_pairs
from selfsame.diffusion.schedule import add_noise, lognormal_timesteps, scaled_linear_alphas_cumprod, target
from selfsame.methods.mimicbrush.method import MimicBrush
from selfsame.methods.mimicbrush.objective import MimicBrushTrainer, mimicbrush_loss
from selfsame.methods.mimicbrush.pictures import latent_mask
from selfsame.methods.mimicbrush.samples import Pair, PairSamples, training_sample
from selfsame.models.latents import encode
from selfsame.models.mannequin import SCHEDULE, image_states, load_image_encoder
from selfsame.recipes.caches import as_tensor, cached_many, fingerprint_of
from selfsame.recipes.common import Options, Trained, beside, compute_device, epoch_rows, finish, generator_at, save_grid, to_pixels, torch_generator
from selfsame.studio.edits import SIDE, Editor, Square
from selfsame.studio.request import EditRequest
from selfsame.studio.studio import Studio
from selfsame.training.loop import Batch, Loss, Run
from selfsame.weights.mannequin import checked_folder, load_unet, load_vae

LORA_RANK = 16
VARIATIONS = 2  # augmented samples that are made of each pair and kept
HELD_OUT = 256


@dataclass(frozen=True)
class Side:
    """Augmented samples of one split, encoded once."""

    source: np.ndarray  # n c h w float16, latents
    collage: np.ndarray  # likewise, the hidden part black
    reference: np.ndarray  # likewise
    states: np.ndarray  # n t k float16, CLIP's of the reference
    mask: np.ndarray  # n 1 h w uint8
    depth: np.ndarray  # n H W uint8, of the source
    pictures: np.ndarray  # n 2 H W 3 uint8: source, reference
    hidden: np.ndarray  # n H W bool
    still: np.ndarray  # n bool


def pairs_folder(data: Path) -> Path:
    """Where a dataset's pairs lie."""
    return data / "pairs"


def prepared(options: Options, split: str, how: PairSamples, variations: int) -> Side:
    """Samples of a split, augmented, masked and encoded.

    Raises:
        FileNotFoundError: the pairs have not been prepared; the message says how.
    """
    vae, tower = load_vae().to(compute_device()), load_image_encoder().to(compute_device())  # type: ignore[arg-type]
    folder = pairs_folder(options.data)
    records = list(read_pairs(folder, split))
    assert vae.quant_conv is not None

    def make() -> dict[str, np.ndarray]:
        columns: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(records) * variations, 32):
            made, stills = [], []
            for k in range(start, min(start + 32, len(records) * variations)):
                record = records[k % len(records)]
                pair = Pair(record["first"], record["second"], record["mask"], record["depth"])
                made.append(training_sample(pair, np.random.default_rng([0x3A3, k]), how))
                stills.append(record["kind"] == "still")
            sources, references = np.stack([m.source for m in made]), np.stack([m.reference for m in made])
            masks = np.stack([m.mask for m in made])
            seen = to_pixels(references)
            part = {
                "source": encode(vae, to_pixels(sources)),
                "collage": encode(vae, to_pixels(np.where(masks[..., None], np.uint8(0), sources))),
                "reference": encode(vae, seen),
                "states": image_states(tower, seen),
            }
            arrays = {k: v.half().cpu().numpy() for k, v in part.items()}
            arrays["mask"] = np.concatenate([latent_mask(m).numpy().astype(np.uint8) for m in masks])
            arrays["depth"] = np.stack([np.zeros(masks[0].shape, np.uint8) if m.depth is None else m.depth for m in made])
            arrays |= {"pictures": np.stack([sources, references], 1), "hidden": masks, "still": np.array(stills)}
            for name, value in arrays.items():
                columns.setdefault(name, []).append(value)
        return {name: np.concatenate(parts) for name, parts in columns.items()}

    key = fingerprint_of([vae.encoder, vae.quant_conv, tower], repr((how, variations, [(r["kind"], r["source"], r.get("frames")) for r in records])))
    return Side(**cached_many(options.runs / "cache" / f"pairs-{split}.{key}", make))


def mimicbrush(options: Options, how: PairSamples = PairSamples()) -> Trained:
    """Frame pairs and stills of the world's clips: hidden parts are painted after another look at the same thing."""
    run = options.run(
        Run(folder=options.folder("mimicbrush"), max_steps=37500, batch_size=16, learning_rate=4e-4, ema_decay=0.999, look_every=1000, seed=61),
        batch_size=256, learning_rate=1e-3, max_steps=5000,
    )  # fmt: skip
    unet = load_unet()
    side, held = prepared(options, "train", how, VARIATIONS), prepared(options, "validation", how, 1)
    empty = image_states(load_image_encoder(), torch.zeros(1, 3, SIDE, SIDE))[0]
    abar = scaled_linear_alphas_cumprod()
    kinds = [np.flatnonzero(side.still), np.flatnonzero(~side.still)]

    def batch_of(rows: Side, at: np.ndarray, rng: np.random.Generator, how: PairSamples) -> Batch:
        g = torch_generator(rng)
        clean = as_tensor(rows.source[at])
        t = lognormal_timesteps(len(at), abar, g)
        noise = torch.randn(clean.shape, generator=g)
        shaped = torch.rand(len(at), generator=g) >= how.drop_depth
        return {
            "noisy": add_noise(clean, noise, t, abar),
            "t": t,
            "target": target(SCHEDULE["prediction_type"], clean, noise, t, abar),
            "mask": as_tensor(rows.mask[at]),
            "collage": as_tensor(rows.collage[at]),
            "depth": as_tensor(rows.depth[at])[:, None] / 255 * shaped[:, None, None, None],
            "reference": as_tensor(rows.reference[at]),
            "image_states": as_tensor(rows.states[at]),
            "with_reference": torch.rand(len(at), generator=g) >= how.drop_reference,
        }

    def batch_at(step: int) -> Batch:
        rng = generator_at(run.seed, step)
        stills = int(rng.binomial(run.batch_size, how.still_share)) if all(map(len, kinds)) else run.batch_size * bool(len(kinds[0]))
        parts = [rows[epoch_rows(len(rows), run.batch_size, run.seed, step)[:n]] for rows, n in zip(kinds, (stills, run.batch_size - stills), strict=True) if n]
        return batch_of(side, np.concatenate(parts), rng, how)

    never = PairSamples(drop_reference=0, drop_depth=1)
    count = min(HELD_OUT, len(held.still))
    fixed = [batch_of(held, np.arange(i, min(i + 64, count)), generator_at(run.seed, 10**9 + i), never) for i in range(0, count, 64)]

    def objective(model: nn.Module, batch: Batch) -> Loss:
        return Loss(*mimicbrush_loss(model, batch, how.mask_weight))

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, MimicBrushTrainer)
        editor = Editor(Studio(str(model.empty_states.device)).with_parts(unet=unet), model.method)
        shown = range(min(8, count))
        squares = [Square(held.pictures[i, 0], held.hidden[i], held.pictures[i, 1]) for i in shown]
        painted = editor.paint(squares, list(shown), EditRequest(num_steps=12))
        collages = [np.where(s.mask[..., None], np.uint8(0), s.source) for s in squares]
        save_grid(run, step, [collages, [held.pictures[i, 1] for i in shown], painted, [s.source for s in squares]])
        figures: dict[str, float] = {}
        for name, reference in (("", True), ("_alone", False)):  # what a reference is worth: the same without one
            parts = [mimicbrush_loss(model, beside(model, b | {"with_reference": torch.full_like(b["with_reference"], reference)}))[1] for b in fixed]
            figures |= {f"held_out_{k}{name}": float(np.mean([float(p[k]) for p in parts])) for k in parts[0]}
        return figures

    torch.manual_seed(run.seed)
    width = empty.shape[-1]
    method = options.start(
        lambda: MimicBrush.from_base(unet, width, lora_rank=LORA_RANK),
        lambda: MimicBrush.from_pretrained(checked_folder("mimicbrush"), unet),
    )
    return finish(run, MimicBrushTrainer(method.trainable(), empty), objective, batch_at, options, look)
