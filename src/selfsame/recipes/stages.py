"""What a rehearsal of InstantID paints: one person a picture, or two and three in places as the world's groups have them, each in a region as users get it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfsame.data.tables import Table, has_table, open_table
from selfsame.images.draw import draw_kps_small
from selfsame.mannequins.captions import caption_group
from selfsame.models.text import encode_prompts
from selfsame.recipes.base import WIDE
from selfsame.recipes.common import torch_generator
from selfsame.recipes.rehearsal import Rehearsing, between
from selfsame.studio.places import columns


@dataclass(frozen=True)
class Stage:
    """Pictures to be and who shall be in them. b: pictures, m: people. Of several processes each paints all of them."""

    text: Tensor  # b t c
    start: Tensor  # b c h w standard normal
    embedding: Tensor  # m k 512, of photos; zeros: nobody
    wanted: Tensor  # m 512, what the encoder shall read there; zeros: it is not asked
    kps: np.ndarray  # m 5 2 pixels
    drawings: Tensor  # m 3 H W in [0, 1]
    region: Tensor | None = None  # m 1 H W, 1 where a person may act
    rows: Tensor | None = None  # m, the picture each stands in; None: person i in picture i

    def to(self, device: torch.device) -> Stage:
        return replace(self, **{f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)})

    def unlikeness(self, rehearsing: Rehearsing, model: nn.Module, empty: Tensor) -> Tensor:
        """How unlike those who were asked for the people are that InstantID is painting here; `empty` are the text states t c of no prompt."""
        at = self.to(next(model.parameters()).device)
        nothing, nobody = empty.to(at.text).expand_as(at.text), torch.zeros_like(at.embedding)
        places = {} if at.rows is None else {"region": at.region, "rows": at.rows}
        return rehearsing.unlikeness(
            lambda noisy, t: model(noisy, t, at.text, at.embedding, at.drawings, **places),
            lambda noisy, t: model(noisy, t, nothing, nobody, at.drawings, **places),
            at.start, at.wanted, list(at.kps), None if at.rows is None else at.rows.tolist(),
        )  # fmt: skip


def wanted_of(own: Tensor, lent: Tensor) -> Tensor:
    """What shall be read: between a person's own embedding (m 512) and the photos' that lend the face (m k 512); zeros where none does."""
    return between(own, lent.mean(1)) * lent.any(dim=2).any(dim=1)[:, None]


class Groups:
    """Where groups stand in a split of the world, whoever they are."""

    def __init__(self, data: Path, split: str, tokenizer: Any, text_encoder: Any) -> None:
        self.tables = [open_table(data, split, 128, width) for width in WIDE if has_table(data, split, 128, width)]
        self.tokenizer, self.text_encoder = tokenizer, text_encoder

    def places(self, people: int, rng: np.random.Generator) -> tuple[list[dict[str, Any]], tuple[int, int]]:
        """Records of some groups of one size, at most so many people in all but always one group, and height and width of their pictures.

        Raises:
            ValueError: the split shows no group.
        """
        if not self.tables:
            raise ValueError("no group to rehearse with")
        sizes = np.array([len(table) for table in self.tables])
        table: Table = self.tables[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        count = min(len(table), max(1, people // len(table.records[0]["kps"])))
        return [table.records[i] for i in rng.choice(len(table), count, replace=False)], (int(table.images.shape[1]), int(table.images.shape[2]))

    def stage(self, records: list[dict[str, Any]], size: tuple[int, int], channels: int, own: Tensor, lent: Tensor, rng: np.random.Generator) -> Stage:
        """Other people in those groups' places, under captions that name nobody.

        Args:
            own, lent: m 512 and m k 512, of the people who shall stand there.
        """
        each = len(records[0]["kps"])
        prompts = [caption_group(r["attributes"], [None] * each, rng) for r in records]
        kps = np.array([points for r in records for points in r["kps"]])
        drawings = np.stack([draw_kps_small(*size, points) for points in kps])
        masks = np.stack([mask for _ in records for mask in columns(each, *size)[1]])
        return Stage(
            encode_prompts(self.tokenizer, self.text_encoder, prompts).encoder_hidden_states,
            torch.randn(len(records), channels, size[0] // 8, size[1] // 8, generator=torch_generator(rng)),
            lent, wanted_of(own, lent), kps, torch.from_numpy(drawings).permute(0, 3, 1, 2).float() / 255,
            torch.from_numpy(masks)[:, None], torch.arange(len(records)).repeat_interleave(each),
        )  # fmt: skip
