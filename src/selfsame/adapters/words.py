"""Words that are no rows of the token table: put at their places after the lookup, taken away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slots:
    """Which places of a batch of prompts hold which word."""

    rows: Tensor  # m int64
    positions: Tensor  # m int64
    vectors: Tensor  # m d

    @classmethod
    def none(cls, width: int) -> Slots:
        """No place at all."""
        empty = torch.zeros(0, dtype=torch.long)
        return cls(empty, empty, torch.zeros(0, width))

    @classmethod
    def after_placeholder(cls, ids: Tensor, placeholder: int, words: Tensor) -> Slots:
        """Words b n d in the place of each row's placeholder and of the n - 1 tokens that follow it.

        This is how StableIdentity's training captions are written: "a photo of a * person", whose "person" is only there to be overwritten.

        Args:
            ids: b t.

        Raises:
            ValueError: a row has more than one placeholder, or too little room after it.
        """
        rows, first = (ids == placeholder).nonzero(as_tuple=True)
        if len(rows.unique()) != len(rows):
            raise ValueError(f"token {placeholder} stands twice in one prompt: a prompt has one placeholder a person")
        n = words.shape[1]
        if len(first) and int(first.max()) + n > ids.shape[1]:
            raise ValueError(f"the placeholder's {n} words do not fit: it stands at {int(first.max())} of {ids.shape[1]} tokens")
        steps = torch.arange(n, device=ids.device)
        return cls(rows.repeat_interleave(n), (first[:, None] + steps).flatten(), words[rows].flatten(0, 1))


@contextmanager
def words_inserted(token_embedding: nn.Module, slots: Slots) -> Iterator[None]:
    """Within, the token lookup gives the slots' vectors at their places; positions are added afterwards, as for any token.

    Gradients reach the vectors. Any CLIP text tower of any transformers version has such a lookup:
    `text_encoder.get_input_embeddings()`.
    """

    def insert(module: nn.Module, inputs: tuple, out: Tensor) -> Tensor:
        return out.index_put((slots.rows.to(out.device), slots.positions.to(out.device)), slots.vectors.to(out))

    hook = token_embedding.register_forward_hook(insert)
    try:
        yield
    finally:
        hook.remove()
