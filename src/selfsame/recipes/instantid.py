"""Recipe of InstantID on the miniature base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.data.tables import Table, open_table
from selfsame.diffusion.schedule import lognormal_timesteps, noised
from selfsame.images.files import InputError
from selfsame.mannequins.render import landmarks_of
from selfsame.mannequins.world import lent_kps, sample, with_another
from selfsame.methods.instantid.method import InstantID, ResamplerSize
from selfsame.methods.instantid.objective import InstantIDTrainer, instantid_loss
from selfsame.methods.instantid.samples import InstantIDSamples, PhotosOf, drop, face_weights, lend_faces
from selfsame.models.mannequin import CONTEXT_DIM, SCHEDULE, alphas_cumprod, load_image_encoder
from selfsame.models.text import encode_prompts
from selfsame.perception.embedders import FaceEncoder
from selfsame.recipes.base import FACE_WEIGHT, HELD_OUT_NOISE
from selfsame.recipes.caches import as_tensor, clip_faces_of, drawings_of, face_shares_of, faces_of, latents_of, text_of
from selfsame.recipes.common import ON_GPU, Options, Trained, beside, epoch_rows, finish, generator_at, save_grid, torch_generator
from selfsame.recipes.faces import face_rows
from selfsame.recipes.likeness import shared_reader, unlikeness
from selfsame.recipes.rehearsal import REHEARSED, Rehearsing, rehearsing_run
from selfsame.recipes.resident import Resident
from selfsame.recipes.stages import Groups, Stage, wanted_of
from selfsame.studio.crowd import Shown
from selfsame.studio.painting import Row
from selfsame.studio.request import Request, Strengths
from selfsame.studio.studio import Studio
from selfsame.training.run import Batch, Loss, Run
from selfsame.weights.mannequin import checked_folder, load_into, load_text, load_unet, load_vae

SIZE = ResamplerSize(dim=192, depth=2, dim_head=32, heads=6, num_queries=16, embedding_dim=512, output_dim=CONTEXT_DIM)
PROMPTS = (
    "a photo of a person in a garden", "a watercolour of a person laughing on a beach", "a pencil sketch of a person", "a photo of a person wearing a suit",
    "a comic of a person in space", "a photo of a smiling person in a library", "a pixel art picture of a person", "a photo of a person in the city",
)  # fmt: skip
# Half of the samples show somebody else's key points: how far apart eyes are is for the lent face to say (docs/training.md).
HOW = InstantIDSamples(face_weight=FACE_WEIGHT, lend_pose=0.5)
LIKENESS = 0.3  # weight of the loss on the forming face; 0 is the paper (docs/training.md)
SMALL_SHARE = 0.05  # of the steps, the first, see pictures of half the size, as the base's do
LANDING_STEPS, LANDING_RATE = 500, 2e-3  # 40 seconds on two cores
GATHERED = 0.4  # of the steps of a rehearsal paint several people in a picture
LOUDNESS = 0.5  # of landed tokens: whole ones beside the text's would be as much again as the layers know


@dataclass(frozen=True)
class Variant:
    """How InstantID is trained: as it ships, or with one choice changed."""

    how: InstantIDSamples = HOW
    likeness: float = LIKENESS  # weight of the loss on the forming face
    use_adapter: bool = True
    use_net: bool = True
    reads: Literal["face", "clip"] = "face"  # what the Resampler is given: the face encoder's embedding, or CLIP's image features of the same crop
    net_reads: Literal["face", "text"] = "face"  # what IdentityNet's cross-attention sees
    points: Literal["five", "dense"] = "five"  # what IdentityNet is shown: key points, or 68 that tell expression and shape of the face as well
    people: int = 0  # learn from only so many seeded people, beside the celebrities; 0: all of the data's

    def __post_init__(self) -> None:
        if self.likeness and self.reads != "face":
            raise ValueError("the loss on the forming face compares with the face encoder's embedding: set likeness to 0 with other features")

    @property
    def strengths(self) -> Strengths:
        """What it paints with: the parts that it was trained with."""
        return Strengths(adapter_scale=float(self.use_adapter), controlnet_scale=float(self.use_net))


WHOLE = Variant(likeness=0.0)  # the paper's loss, but drawn as `HOW` says; beside it the others stand
READ = ("base", "encoder.safetensors", "clip_image.safetensors")  # shipped files that ablations learn from
# One choice changed at a time: the paper's questions (arXiv:2401.07519, Sec. 4), and ours.
ABLATIONS: dict[str, Variant] = {
    "Image Adapter, trained alone": replace(WHOLE, use_net=False),
    "IdentityNet, trained alone": replace(WHOLE, use_adapter=False),
    "Image Adapter on CLIP's embedding, trained alone": replace(WHOLE, use_net=False, reads="clip"),
    "both on CLIP's embedding": replace(WHOLE, reads="clip"),
    "IdentityNet reads the text": replace(WHOLE, net_reads="text"),
    "with the forming face's loss": replace(WHOLE, likeness=LIKENESS),
    "own key points only": replace(WHOLE, how=replace(HOW, lend_pose=0.0)),
    "68 points": replace(WHOLE, points="dense"),
    **{f"{n} people": replace(WHOLE, people=n) for n in (500, 2000, 8000, 20000)},
}


def land(method: InstantID, table: Table, faces: np.ndarray, tokenizer: Any, text_encoder: Any, seed: int, steps: int = LANDING_STEPS) -> float:
    """Teach a fresh Resampler to say of celebrities' faces what the text tower says of their names, and "a person" of no face.

    The base has learned what those words look like; tokens that resemble them are read from the first step on. Faces without a name land between
    (StableIdentity's idea, arXiv:2401.15975, Sec. 3.2, as a start rather than as a method).

    Returns:
        The last steps' mean square error, over the spread of the words.
    """
    rows = table.rows(lambda r: r["kind"] == "celebrity")
    if not len(rows):  # a small dataset may show none
        return math.nan
    names, which = np.unique([table.records[i]["names"][0] for i in rows], return_inverse=True)
    skipped = len(tokenizer("a photo of", add_special_tokens=False)["input_ids"]) + 1
    prompts = [f"a photo of {name}" for name in names]
    said = encode_prompts(tokenizer, text_encoder, [*prompts, "a photo of a person"]).encoder_hidden_states[:, skipped : skipped + SIZE.num_queries]
    seen, rng = as_tensor(faces[rows]), np.random.default_rng([seed, 0x1A4D])
    optimizer = torch.optim.AdamW(method.resampler.parameters(), lr=LANDING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LANDING_RATE, total_steps=steps, pct_start=0.1)
    errors = []
    for _ in range(steps):
        at = rng.choice(len(rows), 64)
        nobody = torch.from_numpy(rng.random(len(at)) < 0.1)
        embedding = seen[at].masked_fill(nobody[:, None], 0.0)[:, None]
        wanted = torch.where(nobody[:, None, None], said[-1], said[which[at]])
        loss = F.mse_loss(method.tokens(embedding), wanted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        errors.append(loss.item())
    return float(np.mean(errors[-20:])) / float((said - said.mean(0)).square().mean())


def people_in(data: Path) -> int:
    """How many seeded people a dataset shows to learn from."""
    table = open_table(data, "train")
    return len(np.unique(table.people[table.rows(lambda r: r["kind"] == "person")]))


def first_people(people: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Rows of the first so many seeded people, and of celebrities, who have names, as many as make the same share of all as before; 0: all rows.

    Raises:
        InputError: there are fewer.
    """
    if not count:
        return rows
    seeded = np.unique(people[rows][people[rows] >= 0])
    if len(seeded) < count:
        raise InputError(f"the data shows {len(seeded)} people, {count} are asked for: selfsame render --split train with a larger --count")
    named, chosen = rows[people[rows] < 0], rows[np.isin(people[rows], seeded[:count])]
    kept = math.ceil(len(named) * len(chosen) / max(1, len(rows) - len(named)))
    return np.sort(np.concatenate([chosen, np.random.default_rng(0x9E0).permutation(named)[:kept]]))


def instantid(options: Options, variant: Variant = Variant(), name: str = "instantid") -> Trained:
    """Resampler, K'/V' and IdentityNet together, from another photo of the person than the one painted.

    Args:
        name: of the run's folder.

    Raises:
        InputError: the data shows fewer people than the variant shall learn from.
    """
    how = variant.how
    run = options.run(
        Run(
            folder=options.folder(name), max_steps=31250, batch_size=32, learning_rate=4e-4, ema_decay=0.999, weight_decay=0.01, look_every=1000, seed=51
        ),
        after=("base", "encoder.safetensors"),
        batch_size=256, learning_rate=1e-3, max_steps=16000, **ON_GPU,
    )  # fmt: skip
    if options.rehearse:
        run = options.run(rehearsing_run(options.folder(name), learning_rate=3e-4, seed=52), after=("base", "encoder.safetensors"), graphs=False)
    vae, (tokenizer, text_encoder), unet = load_vae(), load_text(), load_unet()
    encoder = load_into(FaceEncoder(), "encoder.safetensors")
    tower = load_image_encoder() if variant.reads == "clip" else None
    size = SIZE if tower is None else replace(SIZE, embedding_dim=CONTEXT_DIM)
    cache = options.runs / "cache"
    abar = alphas_cumprod()
    empty = encode_prompts(tokenizer, text_encoder, [""]).encoder_hidden_states[0]
    dense = "-dense" if variant.points == "dense" else ""

    class Side:
        """One split with everything that stays the same computed once."""

        def __init__(self, split: str, sizes: Sequence[int] = (1,), lends: bool = False) -> None:
            self.split, self.table = split, open_table(options.data, split)
            rows = face_rows(self.table)

            def resident(array: np.ndarray) -> Resident:
                return Resident(array, split)

            self.latents = {n: resident(latents_of(vae, self.table, cache, split if n == 1 else f"{split}-small", n)) for n in sizes}
            self.text = resident(text_of(tokenizer, text_encoder, self.table, cache, split))
            self.encoded = faces_of(encoder, self.table, rows, cache, split)  # what the loss on the forming face compares with
            self.faces = resident(self.encoded if tower is None else clip_faces_of(tower, self.table, rows, cache, split))
            self.shares = resident(face_shares_of(self.table, cache, split))
            self.drawings = resident(drawings_of(self.table, rows, self.points, cache, f"{split}{dense}"))
            if lends:
                self.lent = resident(drawings_of(self.table, rows, self.lent_points, cache, f"{split}{dense}-lent"))
            self.photos = PhotosOf(self.table.people, rows if split != "train" else first_people(self.table.people, rows, variant.people))
            self.styles = np.array([self.table.records[i]["attributes"]["style"] for i in self.photos.rows])

        def in_style(self, style: str) -> np.ndarray:
            """Rows of faces in a style: who is read in a sketch is to look as in a sketch. A small dataset may have none; then all."""
            mine = self.photos.rows[self.styles == style]
            return mine if len(mine) else self.photos.rows

        def points(self, i: int) -> np.ndarray:
            """Of the face in a row."""
            return landmarks_of(sample(self.split, self.table.records[i]["index"]).scene)[0] if dense else self.table.kps[i]

        def lent_points(self, i: int) -> np.ndarray:
            """Of somebody else's instead."""
            index = self.table.records[i]["index"]
            return landmarks_of(with_another(self.split, index))[0] if dense else lent_kps(self.split, index)

        def batch(self, at: np.ndarray, rng: np.random.Generator, how: InstantIDSamples, shrink: int = 1, *, stages: bool = False) -> Batch:
            clean = self.latents[shrink][at]
            g = torch_generator(rng, clean.device)
            drawn, lent = self.drawings[at], np.zeros(0, np.int64)
            if how.lend_pose:
                lent = np.flatnonzero(rng.random(len(at)) < how.lend_pose)
                drawn[torch.from_numpy(lent).to(drawn.device)] = self.lent[at[lent]]
            drawn = drawn.permute(0, 3, 1, 2) / 255
            made = {
                **noised(clean, lognormal_timesteps(len(at), abar, g, mean=how.log_sigma_mean, std=how.log_sigma_std), abar, SCHEDULE["prediction_type"], g),
                "text": self.text[at],
                "embedding": lend_faces(self.faces, self.photos, at, how, rng),
                "kps_image": F.avg_pool2d(drawn, shrink),
                "weight": face_weights(self.shares[at], (clean.shape[2], clean.shape[3]), how.face_weight),
            }
            made = drop(made, empty.to(clean), how, g)
            return made | {"stage": self.stage(made, at, set(lent.tolist()), rng)} if stages else made

        def stage(self, made: Batch, at: np.ndarray, strange: set[int], rng: np.random.Generator) -> Stage:
            """The same pictures to be painted from noise; those in `strange` have somebody else's key points."""
            points = np.stack([lent_kps(self.split, self.table.records[i]["index"]) if k in strange else self.table.kps[i] for k, i in enumerate(at)])
            lent, start = made["embedding"], torch.randn(made["noisy"].shape, generator=torch_generator(rng))
            return Stage(made["text"], start, lent, wanted_of(as_tensor(self.encoded[at]).to(lent), lent), points.astype(np.float64), made["kps_image"])

    small_steps = 0 if run.warm else math.ceil(SMALL_SHARE * run.max_steps)
    side, held = Side("train", (1, 2) if small_steps else (1,), how.lend_pose > 0), Side("validation")
    never = InstantIDSamples(drop_face=0, drop_text=0, drop_both=0, max_photos=1)

    def held_batches(mean: float, std: float) -> list[Batch]:
        how, starts = replace(never, log_sigma_mean=mean, log_sigma_std=std), range(0, min(256, len(held.photos.rows)), 64)
        return [held.batch(held.photos.rows[i : i + 64], generator_at(run.seed, 10**9 + i), how) for i in starts]

    fixed, early = held_batches(**HELD_OUT_NOISE), held_batches(how.log_sigma_mean, how.log_sigma_std)

    first = [held.photos.of[who] for who in list(held.photos.of)[: len(PROMPTS)]]
    shown = [(rows[0], rows[1]) for rows in first]  # whose face, whose key points: two photos of a person

    def batch_at(step: int) -> Batch:
        at = np.sort(side.photos.rows[epoch_rows(len(side.photos.rows), run.batch_size, run.seed, step)])
        rng = generator_at(run.seed, step)
        if groups is None:
            return side.batch(at, rng, how, 2 if step < small_steps else 1)
        gathered = bool(groups.tables) and rng.random() < GATHERED
        batch = side.batch(at, rng, how, stages=not gathered)
        if gathered:
            records, size = groups.places(run.batch_size, rng)
            who = np.concatenate([rng.choice(side.in_style(r["attributes"]["style"]), len(r["kps"])) for r in records])
            lent = lend_faces(side.faces, side.photos, who, how, rng)
            batch["stage"] = groups.stage(records, size, batch["noisy"].shape[1], as_tensor(side.encoded[who]).to(lent), lent, rng)
        return batch

    reader = None
    if variant.likeness:
        reader = shared_reader(cache, side.table, vae, encoder, side.latents[1].array, np.asarray(side.encoded), smoke=options.smoke)

    rehearsing = Rehearsing(vae, encoder) if options.rehearse else None
    groups = Groups(options.data, "train", tokenizer, text_encoder) if options.rehearse else None

    def likeness(out: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        assert reader is not None
        return variant.likeness * unlikeness(reader, out, batch, batch["embedding"].mean(1), abar)

    def objective(model: nn.Module, batch: Batch) -> Loss:
        also = {"likeness": likeness} if variant.likeness else {}
        if rehearsing is None:
            return Loss(*instantid_loss(model, batch, also))

        def painted(out: Tensor, batch: Mapping[str, Any]) -> Tensor:
            assert rehearsing is not None
            return REHEARSED * batch["stage"].unlikeness(rehearsing, model, empty)

        return Loss(*instantid_loss(model, batch, also | {"painted": painted}))

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, InstantIDTrainer)
        studio = Studio(str(model.unet.device)).with_parts(unet=model.unet, instantid=model.method)
        request = Request(num_steps=12)
        faces = [Shown(as_tensor(held.faces.array[i])[None, None], held.points(j).astype(np.float64), strengths=variant.strengths) for i, j in shown]
        rows = [Row(prompt, faces=(face,)) for prompt, face in zip(PROMPTS, faces, strict=False)]
        painted, _ = studio.paint(rows, request, list(range(len(rows))))
        save_grid(run, step, [[held.table.images[i] for i, _ in shown], painted])
        parts = [instantid_loss(model, beside(model, b))[1] for b in fixed]
        own = [instantid_loss(model, beside(model, b))[1]["face"] for b in early]
        strangers = [instantid_loss(model, beside(model, b | {"embedding": b["embedding"].roll(len(b["embedding"]) // 2, 0)}))[1]["face"] for b in early]
        figures = {f"held_out_{k}": float(np.mean([float(p[k]) for p in parts])) for k in parts[0]}
        # Long before pictures show a likeness: what a stranger's embedding costs (0: nobody's is painted), and whether tokens still differ from face to face.
        tokens = model.method.tokens(torch.cat([b["embedding"] for b in fixed]))
        figures["stranger_costs"] = float(np.mean([float(b - a) for a, b in zip(own, strangers, strict=True)]))
        return figures | {"faces_in_tokens": float(tokens.std(0).mean() / tokens.std())}

    torch.manual_seed(run.seed)

    def fresh() -> InstantID:
        method = InstantID.new(unet, size, conditioning_channels=(16, 32, 64, 96), loudness=LOUDNESS, net_loudness=1.0 if variant.net_reads == "text" else None)
        if not (run.folder / "state.pt").exists():  # else the checkpoint knows better
            land(method, side.table, side.faces.array, tokenizer, text_encoder, run.seed, 2 if options.smoke else LANDING_STEPS)
        return method

    method = options.start(
        fresh,
        lambda: InstantID.from_pretrained(checked_folder("instantid"), unet),
    )
    method.net_reads = variant.net_reads
    module = InstantIDTrainer(method, unet, use_adapter=variant.use_adapter, use_net=variant.use_net)
    return finish(run, module, objective, batch_at, options, look)
