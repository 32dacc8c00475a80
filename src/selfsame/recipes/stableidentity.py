"""Learning one person: a photo becomes two words of a text tower (StableIdentity), or Textual Inversion beside it."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from selfsame.diffusion.schedule import lognormal_timesteps, noised
from selfsame.images.files import InputError, read_image, read_json, write_image
from selfsame.methods.stableidentity.method import FreeWords, PersonTrainer, celebrity_space
from selfsame.methods.stableidentity.modules import LANDINGS, WordProjection
from selfsame.methods.stableidentity.objective import TwoPhaseLoss, two_phase_loss
from selfsame.methods.stableidentity.samples import Draws, PhotoSamples, augmented, jittered, masks_of
from selfsame.models.text import tokenize, tower_hash
from selfsame.recipes.bases import Layers, LearnBase
from selfsame.recipes.common import beside, generator_at, save_grid, to_pixels, torch_generator
from selfsame.recipes.naming import NOISE, NUM_WORDS
from selfsame.training.loop import train
from selfsame.training.run import AnotherRun, Batch, Loss, Progress, Result, Run
from selfsame.values.identity import Identity, LearnedWords

FIXED = 8  # batches whose loss is watched


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How a person is learned. Official (arXiv:2401.15975): 451 steps of one sample at 5e-5 times the batch."""

    steps: int = 450  # 0: the words that it starts with
    batch_size: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0
    method: Literal["stableidentity", "textual-inversion"] = "stableidentity"
    start: Literal["taught", "fresh"] = "taught"  # with the base's projection, where it has one of these layers, or with a random one, as published
    encoder: Literal["face", "clip"] = "face"  # what reads the photo; clip, a general image tower, is the paper's ablation
    landing: LANDINGS = "joint"
    depth: int = 2
    features: Literal["mean", "one"] = "mean"  # several photos: the mean of their features, or each sample its own photo's
    log_sigma: tuple[float, float] | None = None  # mean and deviation of the noise, log-normal; None: all timesteps alike, as published
    loss: TwoPhaseLoss = field(default_factory=TwoPhaseLoss)
    samples: PhotoSamples = field(default_factory=PhotoSamples)
    look_every: int = 150
    log_every: int = 10
    patience: int = 0  # looks without a lower loss on fixed samples after which learning ends

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1:
            raise ValueError(f"{self.steps} steps of {self.batch_size} samples: give 0 steps or more, of at least 1 sample")

    @property
    def layers(self) -> Layers:
        """Which projection this is, among those that a base may have been taught."""
        return self.encoder, self.landing, self.depth


# Steps upon a taught start, for those who want some: few and small, on the photo as it is, at the noise where words say who somebody is. On the miniature
# they neither gain nor cost anything that 36 held-out people would show, and the published ones cost the likeness (docs/training.md).
REFINING = Learning(
    steps=20, batch_size=8, learning_rate=1e-4, log_sigma=(NOISE["mean"], NOISE["std"]), look_every=10,
    loss=TwoPhaseLoss(switch=0.0, hair_weight=1.0, normalises_mask=True), samples=PhotoSamples(smallest=1.0, aspect=0.0, crop_margin=0.05),
)  # fmt: skip

AS_TAUGHT = replace(REFINING, steps=0)


def usual(base: LearnBase, how: Learning) -> Learning:
    """How a person is learned unless somebody says otherwise, with the method and start of `how`: a taught start is taken as it is, another as published."""
    return AS_TAUGHT if taught_start(base, how) is not None else Learning(method=how.method, start=how.start)


def taught_start(base: LearnBase, how: Learning) -> Callable[[], Sequence[WordProjection]] | None:
    """The projections that learning begins with, where the base has some of these layers and they are asked for."""
    return base.taught.get(how.layers) if (how.method, how.start) == ("stableidentity", "taught") else None


@dataclass(frozen=True)
class Photo:
    """One picture to learn from."""

    image: np.ndarray  # side side 3 uint8
    masks: Tensor  # 2 side side, face and hair
    features: Tensor  # 2 f: as it is, and mirrored


def photo_of(base: LearnBase, image: np.ndarray, how: Learning, name: str) -> Photo:
    """Frame the face, see its parts and read it.

    Raises:
        InputError: no face, a face cut by the border, or one too small to learn from.
        ValueError: the base has no such encoder.
    """
    if how.encoder not in base.readers:
        raise ValueError(f"encoder {how.encoder!r}: {base.name} has {', '.join(base.readers)}")
    small = base.frame(image, name)
    masks = masks_of(base.parse(small), base.face_labels, base.hair_labels, how.samples.hair_peak)
    if not masks[0].any():
        raise InputError(f"{name}: the parser sees no face in it; use a picture in which the face is upright and large")
    return Photo(small, masks, base.readers[how.encoder](small))


class Samples:
    """Training batches from photos of one person, a function of the step."""

    def __init__(self, base: LearnBase, photos: Sequence[Photo], how: Learning, placeholder: str) -> None:
        self.base, self.photos, self.how = base, photos, how
        captions = [c.format(placeholder) for c in base.captions]
        tokens = [tokenize(tokenizer, captions, {placeholder: NUM_WORDS}) for tokenizer, _ in base.towers]
        self.ids = torch.stack([t.ids for t in tokens], 1)  # captions towers t
        self.first = torch.tensor([at for _, at, _, i in tokens[0].places if i == 0])  # towers read the same words
        self.mean = torch.stack([p.features for p in photos]).mean(0)  # 2 f

    def one(self, rng: np.random.Generator) -> dict[str, Any]:
        """One augmented picture, its masks, feature and caption. The masks are of the picture's size over 8."""
        photo, how = self.photos[int(rng.integers(len(self.photos)))], self.how.samples
        draws = Draws.of(rng, self.base.side, how)
        pixels, masks = augmented(to_pixels(jittered(photo.image, how, rng)[None])[0], photo.masks, draws, how)
        features = self.mean if self.how.features == "mean" else photo.features
        return {"pixels": pixels, "masks": masks, "feature": features[int(draws.is_flipped)], "caption": int(rng.integers(len(self.ids)))}

    @torch.no_grad()
    def batch(self, step: int) -> Batch:
        rng = generator_at(self.how.seed, step)
        items = [self.one(rng) for _ in range(self.how.batch_size)]
        g = torch_generator(rng)
        pixels, masks = torch.stack([i["pixels"] for i in items]), torch.stack([i["masks"] for i in items])
        vae, abar = self.base.vae, self.base.alphas_cumprod
        posterior = vae.encode(pixels.to(vae.device)).latent_dist
        mean, std = posterior.mean.cpu(), posterior.std.cpu()
        clean = (mean + std * torch.randn(mean.shape, generator=g)) * vae.config.scaling_factor
        if self.how.log_sigma is None:
            t = torch.randint(0, len(abar), (len(items),), generator=g)
        else:
            t = lognormal_timesteps(len(items), abar, g, mean=self.how.log_sigma[0], std=self.how.log_sigma[1])
        made = noised(clean, t, abar, self.base.prediction_type, g)
        captions = [i["caption"] for i in items]
        return {
            **made,
            "clean": clean,
            "features": torch.stack([i["feature"] for i in items]),
            "ids": self.ids[captions],
            "first": self.first[captions],
            "face_mask": masks[:, :1],
            "hair_mask": masks[:, 1:],
        }

    def shown(self, count: int = 16) -> np.ndarray:
        """A sheet of training pictures, below each its masks (face red, hair green)."""
        rng = generator_at(self.how.seed, 0)
        rows: list[list[np.ndarray]] = [[], []]
        for _ in range(count):
            item = self.one(rng)
            rows[0].append(((item["pixels"].permute(1, 2, 0).clamp(-1, 1).numpy() + 1) * 127.5).astype(np.uint8))
            marks = np.stack([*item["masks"].numpy(), np.zeros_like(item["masks"][0])], -1)
            rows[1].append(np.repeat(np.repeat(marks * 255, 8, 0), 8, 1).astype(np.uint8))
        half = count // 2
        return np.concatenate([np.concatenate(row[part], 1) for part in (slice(half), slice(half, count)) for row in rows])


def words_modules(base: LearnBase, feature_dim: int, how: Learning) -> tuple[list[WordProjection | FreeWords], tuple[str, ...]]:
    """The only parts that learn, one a text tower; and the celebrities whose names are not two tokens."""
    if (taught := taught_start(base, how)) is not None:
        return [copy.deepcopy(module).train().requires_grad_(True) for module in taught()], ()
    made: list[WordProjection | FreeWords] = []
    skipped: tuple[str, ...] = ()
    torch.manual_seed(how.seed)
    for tokenizer, encoder in base.towers:
        space, skipped = celebrity_space(tokenizer, encoder, base.names, NUM_WORDS)
        if how.method == "textual-inversion":
            made.append(FreeWords(space))
        else:
            made.append(WordProjection(space, feature_dim, space.mean.shape[1], num_words=NUM_WORDS, depth=how.depth, landing=how.landing))
    return made, skipped


def learn(
    base: LearnBase,
    photos: Sequence[str | Path | np.ndarray],
    placeholder: str,
    folder: Path,
    how: Learning | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] = lambda note: None,
    show_batch: Path | None = None,
) -> Identity:
    """One person as words; where the base has a face encoder, with the photos' embeddings beside them.

    Args:
        placeholder: what stands for the person in prompts, such as `<ada>`.
        folder: checkpoints, the curve and previews; learning that was stopped goes on from here, of another photo or with other settings it begins anew.
        how: by default what is `usual` for the base.
        on_note: hears what the user should know, such as names that were skipped.
        show_batch: a PNG of training pictures and masks to write first.

    Raises:
        InputError: a photo cannot be read or shows no usable face, or the folder holds the learning of somebody else.
        KeyboardInterrupt: it was stopped; the same call goes on where it was.
    """
    how = how or usual(base, Learning())
    images = [p if isinstance(p, np.ndarray) else read_image(p) for p in photos]
    names = ["the picture" if isinstance(p, np.ndarray) else str(p) for p in photos]
    if not images:
        raise InputError("no photo given: give at least one")
    for image, name in zip(images, names, strict=True):
        for note in base.notes(image, name):
            on_note(note)
    seen = [photo_of(base, image, how, name) for image, name in zip(images, names, strict=True)]
    sources = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    words, skipped = words_modules(base, seen[0].features.shape[1], how)
    if skipped:
        on_note(f"{len(skipped)} of {len(base.names)} celebrities' names are not {NUM_WORDS} tokens and were left out, such as {skipped[0]!r}")
    samples = Samples(base, seen, how, placeholder)
    if show_batch is not None:
        write_image(show_batch, samples.shown())
    tower = tower_hash(*(encoder for _, encoder in base.towers))
    how_long = {"steps", "look_every", "log_every", "patience"}  # what may change while the rest stays the same
    said = repr(({k: v for k, v in asdict(how).items() if k not in how_long}, base.name, tower, sources))
    run = Run(
        folder=folder, max_steps=max(1, how.steps), batch_size=how.batch_size, learning_rate=how.learning_rate, warmup_steps=1, decay="constant",
        weight_decay=how.weight_decay, betas=(0.9, 0.999), ema_decay=0.0, precision="no", seed=how.seed, log_every=how.log_every, save_every=50,
        look_every=how.look_every, watch="fixed_loss", patience=how.patience, data=f"{placeholder} {hashlib.sha256(said.encode()).hexdigest()[:12]}",
    )  # fmt: skip
    scale = float(base.vae.config.scaling_factor)

    def objective(model: nn.Module, batch: Batch) -> Loss:
        said = model(batch["noisy"], batch["t"], batch["features"], batch["ids"], batch["first"])
        return Loss(*two_phase_loss(said, batch, how.loss, alphas_cumprod=base.alphas_cumprod, prediction_type=base.prediction_type, scaling_factor=scale))

    fixed = [samples.batch(10**9 + i) for i in range(FIXED)] if how.steps else []

    def learned(model: nn.Module, step: int) -> LearnedWords:
        """The words for the photos as they are, not mirrored."""
        assert isinstance(model, PersonTrainer)
        with torch.no_grad():
            vectors = model.vectors(samples.mean[:1].to(next(model.words.parameters()).device))
        start = "fresh" if taught_start(base, how) is None else "taught"
        about: dict[str, str | int | float] = {
            "base": base.name, "method": how.method, "start": start, "steps": step, "seed": how.seed, "sources": " ".join(sources)
        }  # fmt: skip
        return LearnedWords(tuple(v.detach().float().cpu().numpy() for v in vectors), placeholder, tower, about)

    def shown(now: LearnedWords, step: int) -> None:
        save_grid(run, step, [[photo.image for photo in seen[:1]] + base.preview(now)])

    def look(model: nn.Module, step: int) -> dict[str, float]:
        now = learned(model, step)
        shown(now, step)
        losses = [float(objective(model, beside(model, batch)).total) for batch in fixed]
        return {"fixed_loss": float(np.mean(losses)), "largest": max(float(np.abs(v).max()) for v in now.vectors)}

    module = PersonTrainer(words, [encoder for _, encoder in base.towers], base.unet)

    def trained() -> Result:
        if not how.steps:
            module.to(next(base.unet.parameters()).device)
            shown(learned(module, 0), 0)
            return Result(module, 0, 0, {})
        return train(run, module, objective, samples.batch, on_progress=on_progress, look=look, device=next(base.unet.parameters()).device)

    try:
        done = trained()
    except AnotherRun:
        if str(read_json(folder / "run.json").get("data")).split()[0] != placeholder:
            raise  # somebody else's
        on_note(f"{placeholder}: what was begun before had another photo or other settings; it begins anew")
        shutil.rmtree(folder)
        done = trained()
    now = learned(done.module, done.step)
    if base.identity is not None:
        return replace(base.identity(images), words=now)
    return Identity.of_words(now)
