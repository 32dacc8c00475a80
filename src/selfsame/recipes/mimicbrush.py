"""Recipe of MimicBrush on the miniature base: the imitative net whole, the reference net as the base with LoRA, both projectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from selfsame.data.pairs import pair_shards, read_pairs, shard_digest
from selfsame.diffusion.schedule import lognormal_timesteps, noised
from selfsame.images.files import InputError
from selfsame.methods.mimicbrush import samples
from selfsame.methods.mimicbrush.method import MimicBrush
from selfsame.methods.mimicbrush.modules import FUSIONS
from selfsame.methods.mimicbrush.objective import MimicBrushTrainer, mimicbrush_loss
from selfsame.methods.mimicbrush.pictures import latent_mask
from selfsame.methods.mimicbrush.samples import Pair, PairSample, PairSamples, gentle, training_sample
from selfsame.models.latents import encode
from selfsame.models.mannequin import SCHEDULE, alphas_cumprod, image_states, load_image_encoder
from selfsame.perception.depth import DepthNet, depth_of
from selfsame.recipes.base import NOISE
from selfsame.recipes.caches import batched, cached_folder, fill_maps
from selfsame.recipes.common import (
    ON_GPU,
    Options,
    Trained,
    beside,
    compute_device,
    fingerprint_of,
    finish,
    generator_at,
    mixed_rows,
    save_grid,
    to_pixels,
    torch_generator,
)
from selfsame.recipes.resident import Resident
from selfsame.studio.edits import SIDE, Editor, Square
from selfsame.studio.request import EditRequest
from selfsame.studio.studio import Studio
from selfsame.training.records import read_figures
from selfsame.training.run import Batch, Loss, Run
from selfsame.weights.mannequin import checked_folder, load_into, load_unet, load_vae

LORA_RANK = 8  # of the reference net: all shipped weights together stay under 50 MB
VARIATIONS = 2  # augmented samples that are made of each pair and kept
# Half of the clips hide a thing or part whole, as edits do, of which nothing can be seen beside the hole; what the reference shows of it has to be of use, so
# looks differ less in colour and shape than published, and the depth is told more often (docs/training.md).
HOW = PairSamples(object_share=0.5, rough=8, mask_weight=5, common=0.75, rotate_deg=15, resize_low=0.8, resize_high=1.25, warp=0.25, drop_depth=0.35)
DRAWN = 62  # the lot that says which pairs a short run sees
HELD_OUT = 256
SHOWN = 8  # samples to look at


@dataclass(frozen=True)
class Side:
    """Augmented samples of one split, encoded once."""

    source: Resident  # n c h w float16, latents
    collage: Resident  # likewise, the hidden part black
    reference: Resident  # likewise
    states: Resident  # n t k float16, CLIP's of the reference
    mask: Resident  # n 1 h w uint8
    depth: Resident  # n H W uint8, of the source
    still: np.ndarray  # n bool
    hides_thing: np.ndarray  # n bool
    shown: np.ndarray  # 8 3 H W 3 uint8, source, reference and collage of the first, to look at


@dataclass(frozen=True)
class Variant:
    """How MimicBrush is trained: whole, or with one choice changed."""

    how: PairSamples = HOW
    use_net: bool = True  # whether the reference net is heard
    use_tokens: bool = True  # whether image tokens speak of the reference
    reference_timestep: int | None = None  # at which the reference net looks; None: the picture's own, as published
    pooled: bool = False  # of CLIP's tokens the first alone, which stands for the whole picture
    fusion: FUSIONS = "concat"  # how its keys and values are heard: beside the picture's own (paper), or the mean of both attentions (official code)


# One choice changed at a time, as in the paper's Tables 3 and 4 (arXiv:2406.07547); masks are compared where they alone hide, with `GRIDS`.
GRIDS, ALONE = "grid 0.75 and 0.5 by matches", replace(HOW, object_share=0.0)
MASKS = {
    "one box": Variant(replace(ALONE, mask="box")),
    **{f"grid {rate}": Variant(replace(ALONE, match_rate=rate, other_rate=rate)) for rate in (0.25, 0.5, 0.75)},
}
ABLATIONS: dict[str, Variant] = {
    "image tokens alone": Variant(use_net=False),
    "CLIP's pooled token alone": Variant(use_net=False, pooled=True),
    "reference net alone": Variant(use_tokens=False),
    "mean of both attentions": Variant(fusion="mean"),
    "the reference seen at timestep 0": Variant(reference_timestep=0),
    "stills alone": Variant(replace(HOW, still_share=1.0)),
    "gentle augmentation": Variant(gentle(HOW)),
    "the paper's samples": Variant(PairSamples()),
    GRIDS: Variant(ALONE),
    **MASKS,
}


READ = ("base", "clip_image.safetensors")  # shipped files that it learns from


def has_stills(data: Path) -> bool:
    """Whether a dataset's pairs hold stills."""
    return any(record["kind"] == "still" for record in read_pairs(pairs_folder(data), "train", pictures=False))


def pairs_folder(data: Path) -> Path:
    """Where a dataset's pairs lie."""
    return data / "pairs"


def pairs_digest(data: Path) -> str:
    """Of all that a dataset's pairs teach.

    Raises:
        FileNotFoundError: there are none; the message says how to make them.
    """
    return fingerprint_of([], repr(_digests(pairs_folder(data), "train")))


def _key(folder: Path, split: str, how: PairSamples, variations: int, rows: np.ndarray | None, modules: list[nn.Module]) -> str:
    """What encoded samples depend on: the shards, how samples are drawn (also its code), which of them, the networks."""
    own = PairSamples()  # for what acts on batches
    drawn = replace(how, **{name: getattr(own, name) for name in ("mask_weight", "still_share", "drop_reference", "drop_depth")})
    some = () if rows is None else (rows.tolist(),)
    return fingerprint_of(modules, repr((drawn, variations, _digests(folder, split), Path(samples.__file__).read_text(), *some)))


def drawn_rows(still: np.ndarray, share: float, most: int, seed: int) -> np.ndarray | None:
    """Pairs that a run sees, in order, where those are not all: of a short run so many by lot; None: all.

    Args:
        still: n bool, which of the pairs are stills.
        share: of stills in what is drawn; at 0 and 1 the others are not wanted at all.
        most: pictures that the run sees.
    """
    wanted = np.flatnonzero(still if share == 1 else ~still) if share in (0, 1) else np.arange(len(still))
    if most >= len(wanted):
        return None if len(wanted) in (0, len(still)) else wanted
    rng = np.random.default_rng([seed, 0xD4A])
    if share in (0, 1) or still.all() or not still.any():
        return np.sort(rng.permutation(wanted)[:most])
    counts = (still, round(most * share)), (~still, most - round(most * share))  # each kind as often as it is drawn
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(kind))[:count] for kind, count in counts]))


def _digests(folder: Path, split: str) -> list[str]:
    """Of a split's shards.

    Raises:
        FileNotFoundError: there are none; the message says how to make them.
    """
    return [shard_digest(path) for path in pair_shards(folder, split)]


def prepared(options: Options, split: str, how: PairSamples, variations: int, most: int = 0) -> Side:
    """Samples of a split, augmented, masked and encoded, chunk by chunk into memory maps.

    Args:
        variations: of each pair.
        most: pictures that the run sees: of a short one so many pairs, one sample each; 0: all pairs and variations.

    Raises:
        FileNotFoundError: the pairs have not been prepared; the message says how.
        InputError: they are of another size.
        WeightsError: they come from videos or stills, and no depth network is installed.
    """
    vae, tower = load_vae().to(compute_device()), load_image_encoder().to(compute_device())  # type: ignore[arg-type]
    folder = pairs_folder(options.data)
    about = list(read_pairs(folder, split, pictures=False))
    rows = drawn_rows(np.array([r["kind"] == "still" for r in about]), how.still_share, most, DRAWN) if most else None
    if rows is not None:
        variations = max(1, min(variations, most // len(rows)))
    count, own = len(about) if rows is None else len(rows), all("world" in record for record in about)  # the world knows its depth, videos and stills do not
    near = None if own else load_into(DepthNet(), "depth.safetensors").to(compute_device())
    assert vae.quant_conv is not None

    def depth_seen(made: PairSample) -> np.ndarray:
        if made.depth is not None:
            return made.depth
        assert near is not None
        return (depth_of(near, made.source) * 255).round().astype(np.uint8)

    def encoded(records: list[dict], first: int) -> dict[str, np.ndarray]:
        for r in records:
            if r["first"].shape[0] != SIDE:
                raise InputError(f"{folder}: pairs of {r['first'].shape[0]} pixels, the miniature learns from {SIDE}: selfsame prepare pairs --size {SIDE}")
        made = [
            training_sample(Pair(r["first"], r["second"], r["mask"], r["depth"]), np.random.default_rng([0x3A3, first + k]), how) for k, r in enumerate(records)
        ]
        sources, references = np.stack([m.source for m in made]), np.stack([m.reference for m in made])
        masks = np.stack([m.mask for m in made])
        collages, seen = np.where(masks[..., None], np.uint8(0), sources), to_pixels(references)
        part = {"source": encode(vae, to_pixels(sources)), "collage": encode(vae, to_pixels(collages)), "reference": encode(vae, seen)}
        arrays = {k: v.half().cpu().numpy() for k, v in (part | {"states": image_states(tower, seen)}).items()}
        arrays["mask"] = np.concatenate([latent_mask(m).numpy().astype(np.uint8) for m in masks])
        arrays["depth"] = np.stack([depth_seen(m) for m in made])
        arrays |= {"still": np.array([r["kind"] == "still" for r in records]), "hides_thing": np.array([m.hides_thing for m in made])}
        return arrays | {"shown": np.stack([sources, references, collages], 1)}

    def parts(place: Path) -> Iterator[dict[str, np.ndarray]]:
        at = 0
        for _ in range(variations):
            for records in batched(read_pairs(folder, split, rows=rows), 32):
                part = encoded(records, at)
                shown = part.pop("shown")
                if at == 0:
                    np.save(place / "shown.npy", shown[:SHOWN])
                at += len(records)
                yield part

    key = _key(folder, split, how, variations, rows, [vae.encoder, vae.quant_conv, tower, *([near] if near else [])])
    made = cached_folder(options.runs / "cache" / f"pairs-{split}.{key}", lambda place: fill_maps(place, parts(place), count * variations))
    still, hides_thing, shown = (made.pop(name) for name in ("still", "hides_thing", "shown"))
    return Side(**{name: Resident(values, split) for name, values in made.items()}, still=still, hides_thing=hides_thing, shown=shown)


def mimicbrush(options: Options, variant: Variant = Variant(), name: str = "mimicbrush") -> Trained:
    """Frame pairs and stills of the world's clips: hidden parts are painted after another look at the same thing.

    Args:
        name: of the run's folder.
    """
    how = variant.how
    run = options.run(
        Run(folder=options.folder(name), max_steps=37500, batch_size=16, learning_rate=4e-4, ema_decay=0.999, look_every=1000, seed=61),
        data=f"pairs {pairs_digest(options.data)}", after=READ, batch_size=256, learning_rate=1e-3, max_steps=8000, **ON_GPU,
    )  # fmt: skip
    unet = load_unet()
    held = prepared(options, "validation", HOW, 1)  # of every variant the same
    has_ended = read_figures(run.folder, run.max_steps) is not None  # then nobody sees what it learned from any more
    side = held if has_ended else prepared(options, "train", how, VARIATIONS, run.max_steps * run.batch_size)
    empty = image_states(load_image_encoder(), torch.zeros(1, 3, SIDE, SIDE))[0]
    abar = alphas_cumprod()
    kinds = np.flatnonzero(side.still), np.flatnonzero(~side.still)
    if how.still_share == 1 and not len(kinds[0]):
        raise InputError(f"{pairs_folder(options.data)}: holds no stills, from which alone this run shall learn: selfsame prepare pairs --world N")

    def batch_of(rows: Side, at: np.ndarray, rng: np.random.Generator, how: PairSamples) -> Batch:
        clean = rows.source[at]
        g = torch_generator(rng, clean.device)
        made = noised(clean, lognormal_timesteps(len(at), abar, g, **NOISE), abar, SCHEDULE["prediction_type"], g)
        shaped = torch.rand(len(at), generator=g, device=g.device) >= how.drop_depth
        return {
            **made,
            "mask": rows.mask[at],
            "collage": rows.collage[at],
            "depth": rows.depth[at][:, None] / 255 * shaped[:, None, None, None],
            "reference": rows.reference[at],
            "image_states": rows.states[at],
            "with_reference": torch.rand(len(at), generator=g, device=g.device) >= how.drop_reference,
        }

    def batch_at(step: int) -> Batch:
        rng = generator_at(run.seed, step)
        return batch_of(side, mixed_rows(kinds, how.still_share, run.batch_size, run.seed, step, rng), rng, how)

    never = PairSamples(drop_reference=0, drop_depth=1)

    def fixed_of(rows: np.ndarray) -> list[Batch]:
        rows = rows[:HELD_OUT]
        return [batch_of(held, rows[i : i + 64], generator_at(run.seed, 10**9 + i), never) for i in range(0, len(rows), 64)]

    fixed = {"": fixed_of(np.arange(len(held.still))), "thing_": fixed_of(np.flatnonzero(held.hides_thing))}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        return Loss(*mimicbrush_loss(model, batch, how.mask_weight))

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, MimicBrushTrainer)
        editor = Editor(Studio(str(model.empty_states.device)).with_parts(unet=unet), model.method)
        sources, references, collages = (list(held.shown[:, k]) for k in range(3))
        hidden = [np.kron(m[0], np.ones((8, 8), np.uint8)) > 0 for m in held.mask.array[: len(sources)]]
        squares = [Square(*parts) for parts in zip(sources, hidden, references, strict=True)]
        painted = editor.paint(squares, list(range(len(squares))), EditRequest(num_steps=12))
        save_grid(run, step, [collages, references, painted, sources])
        figures: dict[str, float] = {}
        for rows, batches in ((rows, batches) for rows, batches in fixed.items() if batches):
            for told, change in (("", _same), ("_alone", _alone), ("_stranger", _stranger)):  # what a reference is worth: without one, with another's
                parts = [mimicbrush_loss(model, beside(model, b | change(b)))[1] for b in batches]
                figures |= {f"held_out_{rows}{k}{told}": float(np.mean([float(p[k]) for p in parts])) for k in ("inside", *(("plain",) * (not rows)))}
        return figures

    torch.manual_seed(run.seed)
    width = empty.shape[-1]
    method = options.start(
        lambda: MimicBrush.from_base(unet, width, lora_rank=LORA_RANK, fusion=variant.fusion),
        lambda: MimicBrush.from_pretrained(checked_folder("mimicbrush"), unet, to_train=True),
    )
    method.reference_timestep = variant.reference_timestep
    trainer = MimicBrushTrainer(method, empty, use_net=variant.use_net, use_tokens=variant.use_tokens, pooled=variant.pooled)
    method.trainable()  # once it is known what is used
    return finish(run, trainer, objective, batch_at, options, look)


def _same(batch: Batch) -> Batch:
    return {}


def _alone(batch: Batch) -> Batch:
    return {"with_reference": torch.zeros_like(batch["with_reference"])}


def _stranger(batch: Batch) -> Batch:
    return {name: batch[name].roll(len(batch[name]) // 2, 0) for name in ("reference", "image_states")}
