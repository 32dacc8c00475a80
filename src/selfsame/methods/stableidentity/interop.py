"""Learned words in anybody's stock diffusers pipeline: text to image, ControlNet, video, SDXL's two towers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from selfsame.values.identity import LearnedWords


def towers_of(pipe: Any) -> list[tuple[str, Any]]:
    """A pipeline's text towers, each with the name under which the pipeline holds its tokenizer."""
    pairs = [(f"tokenizer{n}", getattr(pipe, f"text_encoder{n}", None)) for n in ("", "_2")]
    return [(name, encoder) for name, encoder in pairs if encoder is not None and getattr(pipe, name, None) is not None]


def check_towers(words: LearnedWords, widths: list[int]) -> None:
    """Raise ValueError when the words are not of these towers' widths."""
    ours = [v.shape[1] for v in words.vectors]
    if ours != widths:
        raise ValueError(
            f"{words.placeholder} was learned for text towers of width {' and '.join(map(str, ours))}, this base has {' and '.join(map(str, widths))}: "
            "learn the person anew for this base"
        )


@contextmanager
def words_added(pipe: Any, *people: LearnedWords) -> Iterator[Any]:
    """The pipeline with people's placeholders in its vocabulary; taken out again on exit, also after an error.

    Within, `pipe("a photo of <ada> in a spacesuit")` works as for any textual inversion: diffusers itself splits the
    placeholder into as many tokens as it has words.

    Raises:
        ValueError: two people share a placeholder, or were learned for towers of other widths.
    """
    names = [p.placeholder for p in people]
    if len(set(names)) != len(names):
        raise ValueError(f"two people share a placeholder ({', '.join(names)}): give each their own")
    towers = towers_of(pipe)
    for person in people:
        check_towers(person, [encoder.get_input_embeddings().embedding_dim for _, encoder in towers])
    olds = [getattr(pipe, name) for name, _ in towers]
    tables = [encoder.get_input_embeddings() for _, encoder in towers]
    rows = [table.weight.data for table in tables]
    try:
        for (name, _), tokenizer in zip(towers, olds, strict=True):
            setattr(pipe, name, copy.deepcopy(tokenizer))
        for person in people:
            for (name, encoder), vectors in zip(towers, person.vectors, strict=True):
                pipe.load_textual_inversion(torch.from_numpy(vectors), token=person.placeholder, tokenizer=getattr(pipe, name), text_encoder=encoder)
        yield pipe
    finally:
        for (name, encoder), tokenizer, table, weight in zip(towers, olds, tables, rows, strict=True):
            setattr(pipe, name, tokenizer)
            table.weight.data, table.num_embeddings = weight.to(table.weight), len(weight)  # transformers grows a table in place; it may have moved
            encoder.set_input_embeddings(table)
            encoder.config.vocab_size = len(weight)
