"""MimicBrush for one's own base and pictures: pairs that `selfsame prepare pairs` made, a Stable Diffusion 1.5 folder, a CLIP image tower, a Depth Anything.

The authors never released training code. From the paper (arXiv:2406.07547, Sec. 3 and 4.1): both U-Nets and the projectors learn, videos and stills 70 to 30,
the reference dropped in 10 % and the depth in 50 %. Ours: whole things hidden in half of the clips whose things are segmented, uniform timesteps, a constant
rate.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection, DepthAnythingForDepthEstimation

from selfsame.data.pair_table import PairTable
from selfsame.data.pairs import shards_of
from selfsame.diffusion.schedule import noised
from selfsame.images.files import InputError, read_json
from selfsame.methods.mimicbrush.method import MimicBrush
from selfsame.methods.mimicbrush.objective import MimicBrushTrainer, mimicbrush_loss
from selfsame.methods.mimicbrush.pictures import clip_pixels, depth_pixels, latent_mask, vae_pixels
from selfsame.methods.mimicbrush.samples import Pair, PairSample, PairSamples, training_sample
from selfsame.models.latents import encode
from selfsame.perception.stock import read_stock
from selfsame.recipes.common import Options, Trained, beside, compute_device, files_hash, finish, generator_at, mixed_rows, save_grid, torch_generator
from selfsame.studio.brush import SCHEDULE, BrushEditor, BrushStudio, stock_part
from selfsame.studio.edits import Square
from selfsame.studio.painting import scheduler_of
from selfsame.studio.request import EditRequest
from selfsame.training.run import Batch, Loss, Run

HOW = PairSamples(object_share=0.5, rough=16, mask_weight=5, common=0.5)  # as the miniature's, with the paper's geometry
SHOWN, SHOWN_STEPS, HELD_OUT = 4, 20, 64
WEIGHTS = "weights"  # the run's folder that `selfsame edit --model mimicbrush --weights` reads


@dataclass
class Seeing:
    """What is frozen: VAE, CLIP's image tower and the depth network."""

    vae: Any
    tower: Any
    depth_net: Any
    size: int  # pixels of the squares

    @torch.no_grad()
    def states(self, squares: list[np.ndarray]) -> Tensor:
        """CLIP's second-to-last states of pictures, b t k."""
        pixels = torch.cat([clip_pixels(s, self.tower.config.image_size) for s in squares])
        return self._told(pixels)

    def _told(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels.to(self.tower.device), output_hidden_states=True).hidden_states[-2].float()

    @torch.no_grad()
    def no_states(self) -> Tensor:
        """Of zero pixels, t k."""
        side = self.tower.config.image_size
        return self._told(torch.zeros(1, 3, side, side))[0]

    @torch.no_grad()
    def depth(self, pixels: Tensor) -> Tensor:
        """b 1 h w of `depth_pixels`, as the editor reads depth."""
        return self.depth_net(pixels.to(self.depth_net.device)).predicted_depth[:, None].float()

    @torch.no_grad()
    def latents(self, squares: list[np.ndarray]) -> Tensor:
        return torch.cat([encode(self.vae, vae_pixels(s)) for s in squares]).float()


def checked_pairs(folder: Path, split: str, size: int) -> PairTable:
    """A split's pairs.

    Raises:
        FileNotFoundError: there are none; the message says how to make them.
        InputError: they are of another size, which one job's shards share, or the shards are empty.
    """
    table = PairTable(folder, split)
    if not len(table):
        raise InputError(f"{folder}: the shards of split {split!r} hold no pairs; prepare them with a wider --ssim-low and --ssim-high")
    for i in table.firsts:
        if (found := len(table[i]["first"])) != size:
            raise InputError(f"{folder}: squares of {found} pixels in split {split!r}, this base takes {size}: prepare the pairs with --size {size}")
    return table


def mimicbrush_of(options: Options, base: Path, *, image_encoder: Path, depth: Path, start: Path | None = None, how: PairSamples = HOW) -> Trained:
    """Train MimicBrush for a base on pairs; the run's folder gets `weights/`, stock folders that `edit --model mimicbrush --weights` and diffusers read.

    Args:
        options: `data` is the pairs' folder; a split `validation` there is what looks measure and paint.
        base: a diffusers folder of Stable Diffusion 1.5, or of a fine-tune of it.
        image_encoder: a CLIP vision tower, as transformers saves it.
        depth: a Depth Anything, likewise.
        start: weights to go on from, of the official layout or what an earlier run wrote.

    Raises:
        InputError: pairs of another size than the base's, a base with another noise schedule, or a folder that is something else.
    """
    device, config = compute_device(), read_json(base / "unet" / "config.json")
    schedule = read_json(base / "scheduler" / "scheduler_config.json")
    said = schedule.get("prediction_type", "epsilon")
    if said != SCHEDULE["prediction_type"] or int(config.get("in_channels", 4)) != 4 or config.get("addition_embed_type"):
        raise InputError(
            f"{base}: predicts {said} with {config.get('in_channels', 4)} channels{', as SDXL' if config.get('addition_embed_type') else ''}; "
            "MimicBrush stands on Stable Diffusion 1.5 (epsilon, 4 channels)"
        )
    other = [name for name in ("beta_start", "beta_end", "beta_schedule") if name in schedule and schedule[name] != SCHEDULE[name]]
    if other:
        raise InputError(f"{base}: another noise schedule than Stable Diffusion's ({other[0]} {schedule[other[0]]}); MimicBrush's is {SCHEDULE[other[0]]}")
    size = 8 * int(config["sample_size"])
    table = checked_pairs(options.data, "train", size)
    run = options.run(
        Run(folder=options.folder(f"mimicbrush-{base.name}"), max_steps=60000, batch_size=8, learning_rate=1e-5, decay="constant", ema_decay=0.9999,
            look_every=1000, seed=81),
        data=f"pairs {table.digest[:12]}", upstream=files_hash(base / "unet", base / "vae", image_encoder, depth, start), graphs=False,
    )  # fmt: skip
    seeing = Seeing(
        stock_part(AutoencoderKL, base / "vae").to(device),
        read_stock(CLIPVisionModelWithProjection, image_encoder, "the image tower", ("clip_vision_model",)).to(device),
        read_stock(DepthAnythingForDepthEstimation, depth, "the depth network", ("depth_anything",)).to(device),
        size,
    )
    no_states = seeing.no_states()
    no_depth = seeing.depth(torch.zeros_like(depth_pixels(np.zeros((size, size, 3), np.uint8))))
    clock = scheduler_of(SCHEDULE, "ddim").alphas_cumprod.float()
    kinds = np.flatnonzero(table.is_still), np.flatnonzero(~table.is_still)

    def sample_of(source: PairTable, i: int, rng: np.random.Generator) -> PairSample:
        r = source[i]
        return training_sample(Pair(r["first"], r["second"], r["mask"]), rng, how)

    def batch_of(made: list[PairSample], rng: np.random.Generator, how: PairSamples) -> Batch:
        g = torch_generator(rng)
        sources, references = [m.source for m in made], [m.reference for m in made]
        collages = [np.where(m.mask[..., None], np.uint8(0), m.source) for m in made]
        clean, shaped = seeing.latents(sources).cpu(), torch.rand(len(made), generator=g) >= how.drop_depth
        seen = seeing.depth(torch.cat([depth_pixels(s) for s in sources]))
        return {
            **noised(clean, torch.randint(0, len(clock), (len(made),), generator=g), clock, SCHEDULE["prediction_type"], g),
            "mask": torch.cat([latent_mask(m.mask) for m in made]),
            "collage": seeing.latents(collages).cpu(),
            "depth": torch.where(shaped[:, None, None, None], seen.cpu(), no_depth.cpu()),
            "reference": seeing.latents(references).cpu(),
            "image_states": seeing.states(references).cpu(),
            "with_reference": torch.rand(len(made), generator=g) >= how.drop_reference,
        }

    def batch_at(step: int) -> Batch:
        rng = generator_at(run.seed, step)
        at = mixed_rows(kinds, how.still_share, run.batch_size, run.seed, step, rng)
        return batch_of([sample_of(table, int(i), rng) for i in at], rng, how)

    held = checked_pairs(options.data, "validation", size) if shards_of(options.data, "validation") else None
    never, few = PairSamples(drop_reference=0, drop_depth=1), min(HELD_OUT, 0 if held is None else len(held))
    shown = [] if held is None else [sample_of(held, i, generator_at(run.seed, 10**9 + i)) for i in range(few)]
    fixed = [batch_of(shown[i : i + 8], generator_at(run.seed, 2 * 10**9 + i), never) for i in range(0, few, 8)]

    def objective(model: nn.Module, batch: Batch) -> Loss:
        return Loss(*mimicbrush_loss(model, batch, how.mask_weight))

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, MimicBrushTrainer)
        if not shown:
            return {}
        editor = BrushEditor.of_parts(BrushStudio(base / "vae", device, torch.float32), model.method, seeing.tower, seeing.depth_net, size)
        squares = [Square(m.source, m.mask, m.reference) for m in shown[:SHOWN]]
        request = EditRequest(num_steps=SHOWN_STEPS, solver="ddim")
        painted = [editor.paint([square], [k], request)[0] for k, square in enumerate(squares)]
        save_grid(run, step, [[np.where(s.mask[..., None], np.uint8(0), s.source) for s in squares], [m.reference for m in shown[:SHOWN]], painted])
        figures = {}
        for name, change in (("", {}), ("_alone", {"with_reference": False})):
            parts = [mimicbrush_loss(model, beside(model, b | {k: torch.full_like(b[k], v) for k, v in change.items()}))[1] for b in fixed]
            figures |= {f"held_out_{k}{name}": float(np.mean([float(p[k]) for p in parts])) for k in parts[0]}
        return figures

    torch.manual_seed(run.seed)
    if start is None:
        unet = stock_part(UNet2DConditionModel, base / "unet")
        method = MimicBrush.from_base(unet, int(seeing.tower.config.hidden_size), fusion="concat")
    else:
        method = BrushEditor(start, dtype=torch.float32).method
        reads, sees = method.image_projector.projector.in_features, int(seeing.tower.config.hidden_size)
        if reads != sees:
            raise InputError(f"{image_encoder}: {sees} numbers a token, the weights in {start} read {reads}: give the image tower that they were trained with")
    method.train().trainable()
    trainer = MimicBrushTrainer(method, no_states.cpu())
    trained = finish(run, trainer, objective, batch_at, options, look)
    if trained.is_main:
        trainer.detach()
        weights = run.folder / WEIGHTS
        shutil.rmtree(weights, ignore_errors=True)
        BrushEditor.of_parts(BrushStudio(base / "vae", torch.device("cpu"), torch.float32), method.eval(), seeing.tower, seeing.depth_net, size).save(weights)
    return trained
