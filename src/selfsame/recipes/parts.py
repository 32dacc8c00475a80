"""Recipes of the small models that StableIdentity needs beside the face encoder: a parser of parts and a face transformer."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.data.tables import Table, open_table
from selfsame.perception.depth import DepthNet, depth_loss, depth_of
from selfsame.perception.embedders import FaceEncoder
from selfsame.perception.face_vit import FACE_VIT_CROP, FEATURE_DIM, FaceViT
from selfsame.perception.parser import FaceParser, overlap, parse, parser_loss, person_labels
from selfsame.recipes.caches import faces_of
from selfsame.recipes.common import Options, Trained, epoch_rows, finish, generator_at, save_grid, spread
from selfsame.recipes.faces import SLACK, augment, cached_crops, face_rows, held_out_rank1, person_of_row
from selfsame.recipes.resident import Resident
from selfsame.training.run import Batch, Loss, Run
from selfsame.weights.mannequin import load_into


def moved_together(pixels: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pictures b 3 h w and their labels b h w mirrored, shrunk onto a canvas and brightened alike."""
    if rng.random() < 0.5:
        pixels, labels = pixels.flip(3), labels.flip(2)
    if rng.random() < 0.3:
        h, w = labels.shape[1:]
        size = int(rng.integers(h // 2, h) // 2 * 2)
        y, x = (int(v) for v in (rng.integers(0, h - size + 1), rng.integers(0, w - size + 1)))
        small = nn.functional.interpolate(pixels, (size, size), mode="area")
        marks = nn.functional.interpolate(labels[:, None].float(), (size, size), mode="nearest-exact")[:, 0].to(labels.dtype)
        pixels, labels = torch.full_like(pixels, float(rng.uniform(-1, 1))), torch.zeros_like(labels)
        pixels[:, :, y : y + size, x : x + size], labels[:, y : y + size, x : x + size] = small, marks
    return (pixels * float(rng.uniform(0.8, 1.2)) + float(rng.uniform(-0.15, 0.15))).clamp(-1, 1), labels


def parser(options: Options) -> Trained:
    """Which part of a person covers which pixel, in every style."""
    run = options.run(
        Run(folder=options.folder("parser"), max_steps=2000, batch_size=24, learning_rate=2e-3, ema_decay=0.995, look_every=400, seed=14),
        batch_size=96,
        prefetch=0,
        look_every=4000,
    )
    table, held = open_table(options.data, "train"), open_table(options.data, "validation")
    images, marks = Resident(table.images), Resident(table.labels)

    def batch_at(step: int) -> Batch:
        at = np.sort(epoch_rows(len(table), run.batch_size, run.seed, step))
        pixels, labels = moved_together(images.pixels(at), marks.raw(at), generator_at(run.seed, step))
        return {"pixels": pixels.contiguous(memory_format=torch.channels_last), "labels": labels}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        return Loss(parser_loss(model, batch["pixels"], batch["labels"]))

    def look(model: nn.Module, step: int) -> dict[str, float]:
        seen = [parse(model, np.asarray(held.images[i])) for i in range(8)]
        colours = np.random.default_rng(3).integers(40, 256, (256, 3)).astype(np.uint8)
        save_grid(run, step, [list(held.images[:8]), [colours[s] for s in seen]])
        return parser_figures(model, held, 150)

    net = options.start(FaceParser, lambda: load_into(FaceParser(), "parser.safetensors"))
    return finish(run, net.to(memory_format=torch.channels_last), objective, batch_at, options, look)  # type: ignore[call-overload]


def parser_figures(net: nn.Module, table: Table, count: int) -> dict[str, float]:
    """Intersection over union on held-out pictures: mean over parts, and the two that StableIdentity's masks are made of."""
    rows = spread(np.arange(len(table)), count)
    seen = np.stack([parse(net, np.asarray(table.images[i])) for i in rows])
    truth = person_labels(torch.from_numpy(np.array(table.labels[rows]))).numpy()
    scores = overlap(seen, truth)
    return {"mean_iou": float(np.nanmean(list(scores.values()))), "skin_iou": scores["skin"], "hair_iou": scores["hair"]}


def depth(options: Options) -> Trained:
    """How near each pixel of a picture is, things and people, in every style."""
    run = options.run(
        Run(folder=options.folder("depth"), max_steps=2000, batch_size=24, learning_rate=2e-3, ema_decay=0.995, look_every=400, seed=16),
        batch_size=96,
        prefetch=0,
        look_every=4000,
    )
    table, held = open_table(options.data, "train"), open_table(options.data, "validation")
    images, depths = Resident(table.images), Resident(table.depth)

    def batch_at(step: int) -> Batch:
        at = np.sort(epoch_rows(len(table), run.batch_size, run.seed, step))
        pixels, near = moved_together(images.pixels(at), depths[at], generator_at(run.seed, step))
        return {"pixels": pixels.contiguous(memory_format=torch.channels_last), "depth": near / 255}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        return Loss(depth_loss(model, batch["pixels"], batch["depth"]))

    def look(model: nn.Module, step: int) -> dict[str, float]:
        rows = spread(np.arange(len(held)), 150)
        seen = np.stack([depth_of(model, np.asarray(held.images[i])) for i in rows])
        truth = held.depth[rows].astype(np.float32) / 255
        grey = (np.concatenate([seen[:8], truth[:8]]) * 255).astype(np.uint8)[..., None].repeat(3, 3)
        save_grid(run, step, [list(held.images[rows[:8]]), list(grey[:8]), list(grey[8:])])
        near = truth > 0
        return {"depth_error": float(np.abs(seen - truth).mean()), "subject_error": float(np.abs(seen - truth)[near].mean())}

    net = options.start(DepthNet, lambda: load_into(DepthNet(), "depth.safetensors"))
    return finish(run, net.to(memory_format=torch.channels_last), objective, batch_at, options, look)  # type: ignore[call-overload]


class Taught(nn.Module):
    """A face transformer with two heads: one repeats what the conditioning encoder says of the face, one reads the true traits.

    From scratch a transformer learns people very slowly (rank-1 of 100: 0.20 after 73,000 crops); an encoder that already knows them teaches it
    much more with every crop (distillation, arXiv:1503.02531).
    """

    def __init__(self, net: FaceViT, teacher_dim: int, num_traits: int) -> None:
        super().__init__()
        self.net = net
        self.repeat = nn.Linear(FEATURE_DIM, teacher_dim)
        self.traits = nn.Linear(FEATURE_DIM, num_traits)

    def forward(self, crops: Tensor, said: Tensor, traits: Tensor) -> tuple[Tensor, Tensor]:
        """1 - cosine with the teacher, and the error of the traits."""
        feature = self.net(crops)
        return (1 - F.cosine_similarity(self.repeat(feature).float(), said)).mean(), F.mse_loss(self.traits(feature).float(), traits)


def face_vit(options: Options) -> Trained:
    """The face transformer that StableIdentity reads a face with: the train people, a wider crop than the encoder's."""
    run = options.run(
        Run(folder=options.folder("face_vit"), max_steps=4000, batch_size=128, learning_rate=1e-3, ema_decay=0.995, look_every=400, seed=15, weight_decay=0.05),
        batch_size=256,
        prefetch=0,
        look_every=4000,
    )
    table = open_table(options.data, "train")
    rows = face_rows(table)
    crops = Resident(cached_crops(table, rows, FACE_VIT_CROP))
    said = torch.from_numpy(faces_of(load_into(FaceEncoder(), "encoder.safetensors"), table, rows, options.runs / "cache", "train")[rows])
    traits = torch.from_numpy(np.stack([person_of_row(int(who)).vector() for who in table.people[rows]])).float()
    traits = (traits - traits.mean(0)) / traits.std(0).clamp_min(0.05)
    figures = held_out_rank1(options, FACE_VIT_CROP)

    def batch_at(step: int) -> Batch:
        rng = generator_at(run.seed, step)
        at = epoch_rows(len(rows), run.batch_size, run.seed, step)
        dy, dx = rng.integers(0, FACE_VIT_CROP.size // SLACK + 1, 2)
        x = crops.pixels(at)[:, :, dy : dy + FACE_VIT_CROP.size, dx : dx + FACE_VIT_CROP.size]
        return {"crops": augment(x, rng), "said": said[at], "traits": traits[at]}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        repeated, read = model(batch["crops"], batch["said"], batch["traits"])
        return Loss(repeated + 0.3 * read, {"repeated": repeated, "traits": read})

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, Taught)
        return figures(model.net)

    net = options.start(FaceViT, lambda: load_into(FaceViT(), "face_vit.safetensors"))
    return finish(run, Taught(net, said.shape[1], traits.shape[1]), objective, batch_at, options, look)
