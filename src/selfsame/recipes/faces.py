"""Recipes of the face models: the conditioning encoder, the judge, the detector. First in order; all else is gated by them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.data.tables import Table, open_table
from selfsame.images.align import crop_face
from selfsame.mannequins.people import SPLITS, Person, celebrities, person_named, person_of, split_person
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import neutral_scene
from selfsame.perception.detector import FaceDetector, detect, detector_loss
from selfsame.perception.embedders import ENCODER_CROP, JUDGE_CROP, CropSpec, FaceEncoder, JudgeNet, MarginLoss, embed, rank1, to_crops
from selfsame.recipes.common import Options, Trained, epoch_rows, finish, generator_at, spread, to_pixels, torch_generator
from selfsame.recipes.resident import Resident
from selfsame.training.run import Batch, Loss, Run
from selfsame.weights.mannequin import load_into

SLACK = 8  # crops are cached larger by this part of their size, and cut at random places
SOFT_SHARE = 0.3  # of batches are blurred: pictures that are made are softer than renders


class Classified(nn.Module):
    """An encoder with the two heads that train it: a classifier of people and a reader of their true numbers.

    In this world identity is known exactly, so the embedding is also asked to say it (`Person.vector`); people never seen
    are then told apart after a tenth of the samples that the classifier alone needs.
    """

    def __init__(self, net: nn.Module, num_people: int, embedding_dim: int, num_traits: int) -> None:
        super().__init__()
        self.net = net
        self.margin = MarginLoss(num_people, embedding_dim)
        self.traits = nn.Linear(embedding_dim, num_traits)

    def forward(self, crops: Tensor, people: Tensor, traits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Margin loss, trait loss, share of people classified right."""
        embeddings = self.net(crops)
        loss, right = self.margin(embeddings, people)
        return loss, F.mse_loss(self.traits(F.normalize(embeddings.float()) * 8.0), traits), right


def person_of_row(who: int) -> Person:
    """The person behind a table's identity number."""
    return person_of(who) if who >= 0 else person_named(*celebrities()[-1 - who])


def face_rows(table: Table) -> np.ndarray:
    return table.rows(lambda r: r["kind"] in ("person", "celebrity"))


def cached_crops(table: Table, rows: np.ndarray, spec: CropSpec) -> np.ndarray:
    """Loose crops of rows, n s s 3 uint8 with s = size + SLACK."""
    size = spec.size + spec.size // SLACK
    loose = CropSpec(size, spec.share * spec.size / size, spec.shift_y * spec.size / size)
    kps = table.kps
    return np.stack([crop_face(np.asarray(table.images[i]), kps[i], loose.size, share=loose.share, shift_y=loose.shift_y) for i in rows])


def augment(crops: Tensor, rng: np.random.Generator) -> Tensor:
    """Light, colour, greyness, softness, a covered patch: what a face may undergo and stay itself. b 3 s s in [-1, 1]."""
    g = torch_generator(rng, crops.device)
    b, _, s, _ = crops.shape

    def u(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=g, device=g.device) * (high - low) + low

    x = crops * u(0.8, 1.2, 1, 1, 1) + u(-0.15, 0.15, 1, 1, 1) + u(-0.08, 0.08, 3, 1, 1)
    grey = x.mean(1, keepdim=True)
    x = torch.lerp(grey.expand_as(x), x, torch.where(u(0, 1, 1, 1, 1) < 0.25, 0.0, u(0.7, 1.2, 1, 1, 1)))
    if rng.random() < SOFT_SHARE:
        x = F.interpolate(F.avg_pool2d(x, 2 if rng.random() < 0.7 else 4), (s, s), mode="bilinear")
    x = x + 0.04 * torch.randn(x.shape, generator=g, device=g.device)
    side = s // 4
    at = torch.randint(0, s - side, (b, 2), generator=g, device=g.device)
    grid = torch.arange(s, device=g.device)
    inside = [(grid >= at[:, i, None]) & (grid < at[:, i, None] + side) for i in (0, 1)]
    hole = (inside[0][:, :, None] & inside[1][:, None, :])[:, None] & (u(0, 1, 1, 1, 1) < 0.3)
    return x.masked_fill(hole, 0.0).clamp(-1, 1)


def gallery_crops(split: str, count: int, spec: CropSpec) -> Tensor:
    """One neutral render of each of the first `count` people of a split."""
    pictures = [draw([neutral_scene(split_person(split, i))])[0] for i in range(count)]
    return to_crops([p.image for p in pictures], [p.kps[0] for p in pictures], spec)


def held_out_rank1(options: Options, spec: CropSpec) -> Callable[[nn.Module], dict[str, float]]:
    """How often an encoder finds the right one of 100 people of split `validation`, gallery of one neutral render each."""
    held = open_table(options.data, "validation")
    rows = face_rows(held)
    rows = rows[held.people[rows] < SPLITS["validation"][0] + 100]
    probes = to_crops([np.asarray(held.images[i]) for i in rows], [held.kps[i] for i in rows], spec)
    truth = torch.from_numpy(held.people[rows] - SPLITS["validation"][0])
    is_photo = torch.tensor([held.records[i]["attributes"]["style"] == "photo" for i in rows])
    gallery = gallery_crops("validation", 100, spec)

    def figures(net: nn.Module) -> dict[str, float]:
        p, g = embed(net, probes), embed(net, gallery)
        return {"rank1_of_100": rank1(p, g, truth), "rank1_photo": rank1(p[is_photo], g, truth[is_photo])}

    return figures


def _train_embedder(name: str, split: str, kind: type[nn.Module], dim: int, spec: CropSpec, run: Run, options: Options) -> Trained:
    run = options.run(run, prefetch=0, batch_size=256, look_every=4000)
    net = options.start(kind, lambda: load_into(kind(), f"{name}.safetensors"))
    table = open_table(options.data, split)
    rows = face_rows(table)
    crops = Resident(cached_crops(table, rows, spec))
    people, truth = np.unique(table.people[rows], return_inverse=True)
    traits = torch.from_numpy(np.stack([person_of_row(int(who)).vector() for who in people])).float()
    traits = (traits - traits.mean(0)) / traits.std(0).clamp_min(0.05)
    module = Classified(net, len(people), dim, traits.shape[1])

    figures = held_out_rank1(options, spec)

    def batch_at(step: int) -> Batch:
        rng = generator_at(run.seed, step)
        at = epoch_rows(len(rows), run.batch_size, run.seed, step)
        x = crops.pixels(at)
        dy, dx = rng.integers(0, spec.size // SLACK + 1, 2)
        x = x[:, :, dy : dy + spec.size, dx : dx + spec.size]
        return {"crops": augment(x, rng).contiguous(memory_format=torch.channels_last), "people": torch.from_numpy(truth[at]), "traits": traits[truth[at]]}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        margin, traits_loss, right = model(batch["crops"], batch["people"], batch["traits"])
        return Loss(0.25 * margin + 4.0 * traits_loss, {"margin": margin, "traits": traits_loss, "train_right": right})

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, Classified)
        return figures(model.net)

    return finish(run, module.to(memory_format=torch.channels_last), objective, batch_at, options, look)  # type: ignore[call-overload]


def encoder(options: Options) -> Trained:
    """The conditioning face encoder, 512 numbers."""
    run = Run(folder=options.folder("encoder"), max_steps=2400, batch_size=128, learning_rate=2e-3, ema_decay=0.995, look_every=300, seed=11)
    return _train_embedder("encoder", "train", FaceEncoder, 512, ENCODER_CROP, run, options)


def judge(options: Options) -> Trained:
    """The judge: another architecture, crop, seed and other people."""
    run = Run(folder=options.folder("judge"), max_steps=2400, batch_size=128, learning_rate=1e-3, ema_decay=0.995, look_every=300, seed=12)
    return _train_embedder("judge", "judge", JudgeNet, 256, JUDGE_CROP, run, options)


def moved(images: np.ndarray, boxes: np.ndarray, kps: np.ndarray, dy: int, dx: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures n h w 3 moved within their frame, edges repeated; boxes n 4 and key points n 5 2 go along, beyond the border too.

    A face of which little is left in the picture becomes none (NaN).
    """
    _, h, w, _ = images.shape
    ys, xs = (np.clip(np.arange(size) - by, 0, size - 1) for size, by in ((h, dy), (w, dx)))
    box, points = boxes + np.array([dx, dy, dx, dy], boxes.dtype), kps + np.array([dx, dy], kps.dtype)
    middle = points.mean(1)
    gone = ((middle < 4) | (middle > np.array([w, h]) - 5)).any(1)
    box[gone], points[gone] = np.nan, np.nan
    return images[:, ys][:, :, xs], box, points


def detector(options: Options) -> Trained:
    """Faces and key points, people and things alike, with flips and shifts."""
    run = options.run(Run(folder=options.folder("detector"), max_steps=2000, batch_size=32, learning_rate=2e-3, ema_decay=0.995, look_every=400, seed=13))
    table, held = open_table(options.data, "train"), open_table(options.data, "validation")

    def batch_at(step: int) -> Batch:
        rng = generator_at(run.seed, step)
        at = np.sort(epoch_rows(len(table), run.batch_size, run.seed, step))
        reach = 12 if rng.random() < 0.7 else 56  # far moves cut faces at the border
        dy, dx = (int(v) for v in rng.integers(-reach, reach + 1, 2))
        shown, around, marks = moved(table.images[at], table.boxes[at], table.kps[at], dy, dx)
        x, box, points = to_pixels(shown), torch.from_numpy(around), torch.from_numpy(marks)
        if rng.random() < 0.5:  # zoom: shrink onto a canvas, so that small faces are known too
            zoom = float(rng.uniform(0.45, 0.95))
            size = int(128 * zoom) // 2 * 2
            small = F.interpolate(x, (size, size), mode="area")
            oy, ox = (int(v) for v in rng.integers(0, 129 - size, 2))
            x = small.mean((2, 3), keepdim=True).repeat(1, 1, 128, 128).contiguous()
            x[:, :, oy : oy + size, ox : ox + size] = small
            shift = torch.tensor([ox, oy], dtype=torch.float32)
            points = (points + 0.5) * (size / 128) - 0.5 + shift
            box = ((box.view(-1, 2, 2) + 0.5) * (size / 128) - 0.5 + shift).view(-1, 4)
        if rng.random() < 0.5:
            x = x.flip(3)
            points = points[:, [1, 0, 2, 4, 3]] * torch.tensor([-1.0, 1.0]) + torch.tensor([127.0, 0.0])
            box = torch.stack([127 - box[:, 2], box[:, 1], 127 - box[:, 0], box[:, 3]], 1)
        x = (x * float(rng.uniform(0.8, 1.2)) + float(rng.uniform(-0.15, 0.15))).clamp(-1, 1)
        return {"pixels": x.contiguous(memory_format=torch.channels_last), "boxes": box, "kps": points}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        score, point = detector_loss(model, batch["pixels"], batch["boxes"], batch["kps"])
        return Loss(score + 2 * point, {"score": score, "points": point})

    def look(model: nn.Module, step: int) -> dict[str, float]:
        model.eval()
        return detector_figures(model, held, 300)

    net = options.start(FaceDetector, lambda: load_into(FaceDetector(), "detector.safetensors"))
    return finish(run, net.to(memory_format=torch.channels_last), objective, batch_at, options, look)  # type: ignore[call-overload]


def detector_figures(net: nn.Module, table: Table, count: int) -> dict[str, float]:
    """On held-out pictures: share found, extra finds per picture, mean key-point error over face width."""
    found, extra, errors = 0, 0, []
    rows = spread(np.arange(len(table)), count)
    faces = 0
    for i in rows:
        faces_here = detect(net, np.asarray(table.images[i]))
        has = not np.isnan(table.kps[i]).any()
        faces += has
        extra += max(0, len(faces_here) - int(has))
        if has and faces_here:
            width = float(table.boxes[i][2] - table.boxes[i][0])
            error = float(np.linalg.norm(faces_here[0].kps - table.kps[i], axis=1).mean()) / width
            found += error < 0.2
            errors.append(error)
    return {"found": found / max(1, faces), "extra_per_picture": extra / len(rows), "kps_error": float(np.mean(errors)) if errors else 1.0}
