"""Learning one person: a photo becomes two words of the miniature's text tower (StableIdentity), or Textual Inversion beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from selfsame.diffusion.schedule import add_noise, scaled_linear_alphas_cumprod, target
from selfsame.images.files import InputError, read_image, write_image
from selfsame.mannequins import paint
from selfsame.mannequins.captions import STYLE_PHRASES
from selfsame.mannequins.people import celebrities
from selfsame.methods.stableidentity.method import FreeWords, PersonTrainer, celebrity_space
from selfsame.methods.stableidentity.modules import LANDINGS, WordProjection
from selfsame.methods.stableidentity.objective import TwoPhaseLoss, two_phase_loss
from selfsame.methods.stableidentity.samples import Draws, PhotoSamples, augmented, jittered, masks_of, square
from selfsame.models.mannequin import CONTEXT_DIM, SCHEDULE
from selfsame.models.text import tokenize, tower_hash
from selfsame.perception.detector import Found
from selfsame.perception.embedders import embed, to_crops
from selfsame.perception.face_vit import FACE_VIT_CROP, FEATURE_DIM
from selfsame.perception.parser import parse
from selfsame.recipes.common import generator_at, save_grid, to_pixels, torch_generator
from selfsame.studio.request import Request
from selfsame.studio.studio import Row, Studio
from selfsame.training.loop import Batch, Loss, Progress, Run, train
from selfsame.values.identity import Identity, LearnedWords

SIDE = 128
SMALLEST_FACE = 48  # pixels: less shows nobody
FACE_LABELS = (paint.SKIN, paint.EYES, paint.BROWS, paint.NOSE, paint.MOUTH, paint.EARS, paint.GLASSES)
HAIR_LABELS = (paint.HAIR,)
CAPTIONS = STYLE_PHRASES["photo"]
PREVIEWS = ("a photo of {}", "a watercolour of {} on a beach", "a photo of {} wearing a spacesuit", "a pencil sketch of {} laughing")


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How a person is learned. Official (arXiv:2401.15975): 451 steps of one sample at 5e-5 times the batch."""

    steps: int = 450
    batch_size: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0
    method: Literal["stableidentity", "textual-inversion"] = "stableidentity"
    landing: LANDINGS = "joint"
    depth: int = 2
    features: Literal["mean", "one"] = "mean"  # several photos: the mean of their features, or each sample its own photo's
    loss: TwoPhaseLoss = field(default_factory=TwoPhaseLoss)
    samples: PhotoSamples = field(default_factory=PhotoSamples)
    look_every: int = 150
    log_every: int = 10
    patience: int = 0  # looks without a lower loss on fixed samples after which learning ends

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"{self.steps} steps of {self.batch_size} samples: give at least 1 of each")


@dataclass(frozen=True)
class Photo:
    """One picture to learn from."""

    image: np.ndarray  # SIDE SIDE 3 uint8
    masks: Tensor  # 2 SIDE SIDE, face and hair
    features: Tensor  # 2 f: as it is, and mirrored


def framed(image: np.ndarray, found: Found) -> np.ndarray:
    """The face with its surroundings in a square of SIDE pixels, inside the picture. h w 3 uint8 -> SIDE SIDE 3 uint8."""
    h, w = image.shape[:2]
    x0, y0, x1, y1 = found.box
    side = int(min(h, w, max(x1 - x0, y1 - y0) / 0.62))
    x = int(np.clip(round((x0 + x1 - side) / 2), 0, w - side))
    y = int(np.clip(round((y0 + y1 - side) / 2), 0, h - side))
    return square(image[y : y + side, x : x + side], SIDE)


def photo_of(studio: Studio, image: np.ndarray, hair_peak: int, name: str) -> Photo:
    """Find the face, frame it, see its parts and read it.

    Raises:
        InputError: no face, a face cut by the border, or one too small to learn from.
    """
    found, _ = studio.face(image, name=name)
    width = float(min(found.box[2] - found.box[0], found.box[3] - found.box[1]))
    if width < SMALLEST_FACE:
        raise InputError(f"{name}: the face is {width:.0f} pixels wide, too small to learn from; use a picture in which it has at least {SMALLEST_FACE}")
    small = framed(image, found)
    again, _ = studio.face(small, name=name)
    crop = to_crops([small], [again.kps], FACE_VIT_CROP)
    features = embed(studio.face_vit, torch.cat([crop, crop.flip(3)]))
    return Photo(small, masks_of(parse(studio.parser, small), FACE_LABELS, HAIR_LABELS, hair_peak), features)


class Samples:
    """Training batches from photos of one person, a function of the step."""

    def __init__(self, studio: Studio, photos: Sequence[Photo], how: Learning, placeholder: str, num_words: int) -> None:
        self.vae, self.photos, self.how = studio.vae, photos, how
        tokens = tokenize(studio.text[0], [c.format(placeholder) for c in CAPTIONS], {placeholder: num_words})
        self.ids, self.first = tokens.ids, torch.tensor([at for _, at, _, i in tokens.places if i == 0])
        self.mean = torch.stack([p.features for p in photos]).mean(0)  # 2 f
        self.abar = scaled_linear_alphas_cumprod()

    def one(self, rng: np.random.Generator) -> dict[str, Any]:
        """One augmented picture, its masks, feature and caption. The masks are of the picture's size over 8."""
        photo, how = self.photos[int(rng.integers(len(self.photos)))], self.how.samples
        draws = Draws.of(rng, SIDE, how)
        pixels, masks = augmented(to_pixels(jittered(photo.image, how, rng)[None])[0], photo.masks, draws, how)
        features = self.mean if self.how.features == "mean" else photo.features
        return {"pixels": pixels, "masks": masks, "feature": features[int(draws.is_flipped)], "caption": int(rng.integers(len(CAPTIONS)))}

    @torch.no_grad()
    def batch(self, step: int) -> Batch:
        rng = generator_at(self.how.seed, step)
        items = [self.one(rng) for _ in range(self.how.batch_size)]
        g = torch_generator(rng)
        pixels, masks = torch.stack([i["pixels"] for i in items]), torch.stack([i["masks"] for i in items])
        posterior = self.vae.encode(pixels).latent_dist
        clean = (posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)) * self.vae.config.scaling_factor
        t = torch.randint(0, len(self.abar), (len(items),), generator=g)
        noise = torch.randn(clean.shape, generator=g)
        captions = [i["caption"] for i in items]
        return {
            "clean": clean,
            "noisy": add_noise(clean, noise, t, self.abar),
            "target": target(SCHEDULE["prediction_type"], clean, noise, t, self.abar),
            "t": t,
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


def words_module(studio: Studio, how: Learning) -> WordProjection | FreeWords:
    """The only part that learns, fresh."""
    names = [" ".join(n) for n in celebrities()]
    space, skipped = celebrity_space(*studio.text, names)
    assert not skipped, "every name of the world is two tokens"
    torch.manual_seed(how.seed)
    if how.method == "textual-inversion":
        return FreeWords(space)
    return WordProjection(space, FEATURE_DIM, CONTEXT_DIM, depth=how.depth, landing=how.landing)


def learn(
    studio: Studio,
    photos: Sequence[str | Path | np.ndarray],
    placeholder: str,
    folder: Path,
    how: Learning = Learning(),
    *,
    on_progress: Callable[[Progress], None] | None = None,
    show_batch: Path | None = None,
) -> Identity:
    """One person as words, with the photos' face embeddings beside them.

    Args:
        placeholder: what stands for the person in prompts, such as `<ada>`.
        folder: checkpoints, the curve and previews; learning that was stopped goes on from here.
        show_batch: a PNG of training pictures and masks to write first.

    Raises:
        InputError: a photo cannot be read or shows no usable face.
        KeyboardInterrupt: it was stopped; the same call goes on where it was.
    """
    images = [p if isinstance(p, np.ndarray) else read_image(p) for p in photos]
    names = ["the picture" if isinstance(p, np.ndarray) else str(p) for p in photos]
    who = studio.identity(*photos)
    seen = [photo_of(studio, image, how.samples.hair_peak, name) for image, name in zip(images, names, strict=True)]
    words = words_module(studio, how)
    samples = Samples(studio, seen, how, placeholder, num_words=2)
    if show_batch is not None:
        write_image(show_batch, samples.shown())
    run = Run(
        folder=folder, max_steps=how.steps, batch_size=how.batch_size, learning_rate=how.learning_rate, warmup_steps=1, decay="constant",
        weight_decay=how.weight_decay, betas=(0.9, 0.999), ema_decay=0.0, precision="no", seed=how.seed, log_every=how.log_every, save_every=50,
        look_every=how.look_every, watch="fixed_loss", patience=how.patience, data=f"{placeholder} {' '.join(s[:12] for s in who.sources)}",
    )  # fmt: skip
    scale = float(studio.vae.config.scaling_factor)

    def objective(model: nn.Module, batch: Batch) -> Loss:
        said = model(batch["noisy"], batch["t"], batch["features"], batch["ids"], batch["first"])
        return Loss(*two_phase_loss(said, batch, how.loss, alphas_cumprod=samples.abar, prediction_type=SCHEDULE["prediction_type"], scaling_factor=scale))

    fixed = [samples.batch(10**9 + i) for i in range(8)]

    def vectors(model: nn.Module) -> Tensor:
        """The words for the photos as they are, not mirrored. n d."""
        assert isinstance(model, PersonTrainer)
        with torch.no_grad():
            return model.words(samples.mean[:1])[0]

    def look(model: nn.Module, step: int) -> dict[str, float]:
        rows = [Row(p.format(placeholder)) for p in PREVIEWS]
        made, _ = studio.paint(rows, Request(num_steps=12), list(range(len(rows))), words={placeholder: vectors(model)})
        save_grid(run, step, [[photo.image for photo in seen[:1]] + made])
        losses = [float(objective(model, batch).total) for batch in fixed]
        return {"fixed_loss": float(np.mean(losses)), "largest": float(vectors(model).abs().max())}

    module = PersonTrainer(words, studio.text[1], studio.unet)
    done = train(run, module, objective, samples.batch, on_progress=on_progress, look=look)
    about: dict[str, str | int | float] = {"base": "mannequin", "method": how.method, "steps": done.step, "seed": how.seed}
    learned = LearnedWords((vectors(done.module).numpy(),), placeholder, tower_hash(studio.text[1]), about)
    return replace(who, words=learned)
