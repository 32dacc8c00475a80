"""Recipes of the models that join words and pictures: CLIP's two towers and the attribute reader."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from selfsame.data.tables import Table, open_table
from selfsame.mannequins.captions import caption_person
from selfsame.mannequins.people import FIRST_NAMES, LAST_NAMES
from selfsame.models.mannequin import CONTEXT_DIM, new_image_encoder, new_text_encoder
from selfsame.models.text import tokenize
from selfsame.models.tokens import BOS, EOS, train_tokenizer
from selfsame.perception.reader import ATTRIBUTES, AttributeReader, agreement, read, readable, reader_loss
from selfsame.recipes.common import Options, Trained, beside, epoch_rows, finish, generator_at, spread, to_pixels, torch_generator
from selfsame.training.run import Batch, Loss, Run
from selfsame.weights.mannequin import checked, load_into, load_text

VOCABULARY = 1500


class TwoTowers(nn.Module):
    """CLIP: text and image features in one space (arXiv:2103.00020).

    Both features are also asked to say the picture's attributes, which are known here, by the same heads: words and pictures then
    find common directions that mean something long before contrast alone would have made them.
    """

    def __init__(self, vocab_size: int, bos: int, eos: int) -> None:
        super().__init__()
        self.text = new_text_encoder(vocab_size, bos, eos)
        self.text_projection = nn.Linear(CONTEXT_DIM, CONTEXT_DIM, bias=False)
        self.image = new_image_encoder()
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))  # ln(1 / 0.07)
        self.heads = nn.ModuleDict({name: nn.Linear(CONTEXT_DIM, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Token ids b t, pixels b 3 128 128 -> unit features b c, b c (the text's carry the scale), logits of each attribute b n from either."""
        t = F.normalize(self.text_projection(self.text(ids).pooler_output), dim=-1)
        v = F.normalize(self.image(pixels).image_embeds, dim=-1)
        told, shown = ({name: head(f * math.sqrt(CONTEXT_DIM)) for name, head in self.heads.items()} for f in (t, v))
        return t * self.logit_scale.clamp(max=4.6052).exp(), v, told, shown


def make_tokenizer(table: Table, folder: Path):
    """Vocabulary from the captions; every name of the world is one token."""
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    captions = [r["caption"] for r in table.records]
    return train_tokenizer([*captions, *names, *names, *names], VOCABULARY, folder)


def attribute_classes(table: Table, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Class numbers of the readable attributes of some rows, -1 elsewhere; n int64 each."""
    classes = {name: np.full(len(table), -1, np.int64) for name in ATTRIBUTES}
    for i in rows:
        for name, k in readable(table.records[i]["attributes"]).items():
            classes[name][i] = k
    return classes


def clip(options: Options) -> Trained:
    """Contrastive training of both towers; the text tower conditions the base U-Net."""
    run = options.run(
        Run(
            folder=options.folder("clip"),
            max_steps=1200,
            batch_size=192,
            learning_rate=1e-3,
            warmup_steps=60,
            ema_decay=0.99,
            look_every=200,
            weight_decay=0.02,
            seed=31,
        )
    )
    table, held = open_table(options.data, "train"), open_table(options.data, "validation")
    own, text = run.folder / "tokenizer", None
    if (run.folder / "state.pt").exists() and own.is_dir():  # what has been learned, has been learned of these numbers
        tokenizer = CLIPTokenizer.from_pretrained(own, local_files_only=True)
    elif options.warm:
        tokenizer, text = load_text()
        tokenizer.save_pretrained(own)
    else:
        tokenizer = make_tokenizer(table, own)
    vocabulary = tokenizer.get_vocab()
    net = TwoTowers(len(tokenizer), vocabulary[BOS], vocabulary[EOS])
    if text is not None:
        net.text.load_state_dict(text.state_dict())
        net.load_state_dict(load_file(checked("clip_image.safetensors")), strict=False)
    classes = attribute_classes(table, np.arange(len(table)))

    def words(record: dict, rng: np.random.Generator) -> str:
        if record["kind"] in ("person", "celebrity"):
            return caption_person(record["attributes"], record["names"][0], rng)
        return record["caption"]

    def batch_at(step: int) -> Batch:
        rng = generator_at(run.seed, step)
        at = np.sort(epoch_rows(len(table), run.batch_size, run.seed, step))
        ids = tokenize(tokenizer, [words(table.records[i], rng) for i in at]).ids
        return {"ids": ids, "pixels": to_pixels(table.images[at])} | {f"is_{n}": torch.from_numpy(c[at]) for n, c in classes.items()}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        t, v, told, shown = model(batch["ids"], batch["pixels"])
        with torch.autocast(t.device.type, enabled=False):  # logits up to 100 are too coarse in half precision
            logits = t.float() @ v.float().T
        truth = torch.arange(len(logits), device=logits.device)
        contrast = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        right = {n: batch[f"is_{n}"] for n in ATTRIBUTES}
        parts = {"contrast": contrast, "told": reader_loss(told, right), "shown": reader_loss(shown, right)}
        return Loss(torch.stack(list(parts.values())).sum(), {**parts, "train_match": (logits.argmax(1) == truth).float().mean()})

    def look(model: nn.Module, step: int) -> dict[str, float]:
        rows = spread(np.arange(len(held)), 200)
        ids = tokenize(tokenizer, [caption_person(held.records[i]["attributes"], None, None) for i in rows]).ids
        batch = beside(model, {"ids": ids, "pixels": to_pixels(held.images[rows])})
        t, v, *_ = model(batch["ids"], batch["pixels"])
        logits = (t @ v.T).cpu()
        truth = torch.arange(len(rows))
        return {"match_of_200": float((logits.argmax(1) == truth).float().mean())}

    return finish(run, net, objective, batch_at, options, look)


def reader(options: Options) -> Trained:
    """What a picture shows: nine attributes of people."""
    run = options.run(
        Run(folder=options.folder("reader"), max_steps=1500, batch_size=64, learning_rate=1.5e-3, ema_decay=0.99, look_every=300, weight_decay=0.05, seed=32)
    )
    table, held = open_table(options.data, "train"), open_table(options.data, "validation")
    rows = table.rows(lambda r: r["kind"] in ("person", "celebrity"))
    classes = attribute_classes(table, rows)

    def batch_at(step: int) -> Batch:
        rng = generator_at(run.seed, step)
        at = np.sort(rows[epoch_rows(len(rows), run.batch_size, run.seed, step)])
        g = torch_generator(rng)
        pixels = to_pixels(table.images[at])
        dy, dx = (int(v) for v in rng.integers(-5, 6, 2))
        pixels = torch.roll(pixels, (dy, dx), (2, 3))
        blur = float(rng.uniform(0, 1))
        if blur > 0.6:  # generated pictures are softer than renders
            pixels = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
        pixels = pixels * float(rng.uniform(0.9, 1.1)) + 0.03 * torch.randn(pixels.shape, generator=g)
        return {"pixels": pixels.contiguous(memory_format=torch.channels_last)} | {f"is_{n}": torch.from_numpy(c[at]) for n, c in classes.items()}

    def objective(model: nn.Module, batch: Batch) -> Loss:
        return Loss(reader_loss(model(batch["pixels"]), {n: batch[f"is_{n}"] for n in ATTRIBUTES}))

    def look(model: nn.Module, step: int) -> dict[str, float]:
        return reader_figures(model, held)

    net = options.start(AttributeReader, lambda: load_into(AttributeReader(), "reader.safetensors"))
    return finish(run, net.to(memory_format=torch.channels_last), objective, batch_at, options, look)  # type: ignore[call-overload]


def reader_figures(net: nn.Module, held: Table, count: int = 400) -> dict[str, float]:
    """Accuracy over all readable attributes of held-out renders, and per attribute."""
    rows = spread(held.rows(lambda r: r["kind"] in ("person", "celebrity")), count)
    seen = read(net, [np.asarray(held.images[i]) for i in rows])
    pairs = [(held.records[i]["attributes"], s) for i, s in zip(rows, seen, strict=True)]
    scores = [agreement(asked, s) for asked, s in pairs]
    figures = {"accuracy": sum(r for r, _ in scores) / sum(n for _, n in scores)}
    for name in ATTRIBUTES:
        alone = [(s[name] == a[name]) for (a, s) in pairs if name in readable(a)]
        figures[f"acc_{name}"] = float(np.mean(alone)) if alone else 0.0
    return figures
