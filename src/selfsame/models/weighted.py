"""Prompts of any length with weights in brackets, as InstantID's full pipeline and most user interfaces read them.

    (word)  1.1 times    [word]  1 / 1.1 times    (word:1.3)  1.3 times    \\( \\) \\[ \\]  the bracket itself

Brackets nest and multiply; one that is never closed holds to the end. A text encoder's window is 77 tokens: longer prompts are read
in windows one after the other, and the U-Net sees all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfsame.adapters.words import words_inserted
from selfsame.models.text import FILLER, Tokens, slots_of, split_at

ROUND = 1.1
SQUARE = 1 / 1.1
WINDOW = 75  # tokens between the beginning and the end of a text encoder's window
BREAK = "BREAK"
BREAK_WEIGHT = -1.0  # what the official reader gives the word; it starts no new window there
_PIECE = re.compile(r"\\(?P<literal>[\\()\[\]])|(?P<open>[(\[])|:\s*(?P<number>[+-]?\d*\.?\d+)\s*\)|(?P<close>[)\]])|(?P<text>[^\\()\[\]:]+|.)", re.DOTALL)


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """A prompt as pieces of text and their weights; neighbours of equal weight are one piece."""
    items: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []

    def weigh(start: int, factor: float) -> None:
        items[start:] = [(text, weight * factor) for text, weight in items[start:]]

    def close(bracket: str, factor: float) -> bool:
        """Weigh what stands since the last such bracket; brackets of the other kind stay open."""
        at = next((k for k in range(len(opened) - 1, -1, -1) if opened[k][0] == bracket), None)
        if at is None:
            return False
        weigh(opened.pop(at)[1], factor)
        return True

    for match in _PIECE.finditer(prompt):
        piece, kind = match[0], match.lastgroup
        if kind == "open":
            opened.append((piece, len(items)))
        elif (kind == "number" and close("(", float(match["number"]))) or (
            kind == "close" and close({")": "(", "]": "["}[piece], ROUND if piece == ")" else SQUARE)
        ):
            continue
        elif kind == "literal":
            items.append((match["literal"], 1.0))
        else:
            parts = re.split(rf"\s*\b{BREAK}\b\s*", piece)
            for k, part in enumerate(parts):
                items += [(BREAK, BREAK_WEIGHT)] if k else []
                items.append((part, 1.0))
    for bracket, start in opened:
        weigh(start, ROUND if bracket == "(" else SQUARE)
    merged: list[tuple[str, float]] = []
    for text, weight in items:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged or [("", 1.0)]


@dataclass(frozen=True)
class WeightedPrompt:
    """What SDXL is told: text states and the pooled vector."""

    encoder_hidden_states: Tensor  # 1 t c, t grows with the prompt
    pooled: Tensor  # 1 p


Places = list[tuple[int, str, int]]  # where learned words stand: position, placeholder, which of its words


def weighted_ids(tokenizer: Any, prompt: str, words: Mapping[str, int] | None = None) -> tuple[list[int], list[float], Places]:
    """Token ids of a prompt, of any number, the weight of each, and where learned words stand: never in two windows.

    Args:
        words: number of words of each placeholder.
    """
    ids: list[int] = []
    weights: list[float] = []
    places: Places = []
    words = words or {}
    for text, weight in parse_weights(prompt):
        for piece in split_at(text, words):
            if count := words.get(piece, 0):
                if count > WINDOW:
                    raise ValueError(f"{piece} has {count} words: a text encoder's window holds {WINDOW}")
                left = WINDOW - len(ids) % WINDOW
                if left < count:  # the window's rest is filled as the last window's is
                    ids += [tokenizer.eos_token_id] * left
                    weights += [1.0] * left
                places += [(len(ids) + i, piece, i) for i in range(count)]
            said = [FILLER] * count if count else tokenizer(piece, truncation=False).input_ids[1:-1]
            ids += said
            weights += [weight] * len(said)
    return ids, weights, places


@torch.no_grad()
def _encode(
    encoders: Sequence[Any], ids: list[int], weights: list[float], places: Places, words: Mapping[str, Sequence[Tensor]], bos: int, eos: int
) -> WeightedPrompt:
    states, pooled = [], None
    for start in range(0, len(ids) + 1, WINDOW):  # the last window holds the rest, even when nothing is left
        part = torch.tensor([[bos, *ids[start : start + WINDOW], eos]])
        here = Tokens(part, ("",), tuple((0, at - start + 1, name, i) for at, name, i in places if start <= at < start + WINDOW))
        outs = []
        for tower, encoder in enumerate(encoders):
            slots = slots_of(here, {name: vectors[tower] for name, vectors in words.items()})
            with nullcontext() if slots is None else words_inserted(encoder.get_input_embeddings(), slots):
                outs.append(encoder(part.to(encoder.device), output_hidden_states=True))
        e = torch.cat([out.hidden_states[-2] for out in outs], -1)  # 1 t c
        w = torch.tensor([1.0, *weights[start : start + WINDOW], 1.0]).half().to(e).view(1, -1, 1)
        states.append(e[:, -1:] + (e - e[:, -1:]) * w)
        pooled = outs[-1][0]
    assert pooled is not None
    return WeightedPrompt(torch.cat(states, 1), pooled)


def encode_weighted(
    tokenizer: Any, encoders: Sequence[Any], prompt: str, negative_prompt: str = "", words: Mapping[str, Sequence[Tensor]] | None = None
) -> tuple[WeightedPrompt, WeightedPrompt]:
    """A prompt and its negative, of equal length, for SDXL's two text encoders (the second with projection): InstantID's full pipeline.

        e' = e_end + w (e - e_end)

    The shorter one is filled with end tokens. Both encoders read the first tokenizer's ids; the pooled vector is the last window's.

    Args:
        words: learned words of each placeholder that may stand in a prompt, n d for each encoder.
    """
    words = words or {}
    counts = {name: len(towers[0]) for name, towers in words.items()}
    (ids, weights, places), (negative_ids, negative_weights, negative_places) = (weighted_ids(tokenizer, p, counts) for p in (prompt, negative_prompt))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    length = max(len(ids), len(negative_ids))
    filled = [(i + [eos] * (length - len(i)), w + [1.0] * (length - len(w))) for i, w in ((ids, weights), (negative_ids, negative_weights))]
    told, against = (_encode(encoders, i, w, p, words, bos, eos) for (i, w), p in zip(filled, (places, negative_places), strict=True))
    return told, against


@torch.no_grad()
def encode_windows(
    tokenizer: Any, encoder: Any, prompts: Sequence[str], negative_prompts: Sequence[str], words: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Prompts and their negatives for Stable Diffusion 1: last hidden states after the final norm, whole windows, b t c each and all of one length.

    The same weights and windows as SDXL's; whoever needs fewer windows gets windows of end tokens. A plain prompt that fits into one is
    told as by a stock pipeline.

    Args:
        words: learned words n d of each placeholder that may stand in a prompt.
    """
    words = words or {}
    counts = {name: len(v) for name, v in words.items()}
    read = [weighted_ids(tokenizer, p, counts) for p in (*prompts, *negative_prompts)]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    pad = getattr(tokenizer, "pad_token_id", eos)  # Stable Diffusion 2 fills with another token than the end
    states = []
    for start in range(0, WINDOW * max(1, *(-(-len(ids) // WINDOW) for ids, _, _ in read)), WINDOW):
        parts = [(ids[start : start + WINDOW], weights[start : start + WINDOW]) for ids, weights, _ in read]
        part = torch.tensor([[bos, *ids, eos, *[pad] * (WINDOW - len(ids))] for ids, _ in parts])
        weights = torch.tensor([[1.0, *w, *[1.0] * (WINDOW + 1 - len(w))] for _, w in parts])
        places = [(row, at - start + 1, name, i) for row, (_, _, all_places) in enumerate(read) for at, name, i in all_places if start <= at < start + WINDOW]
        slots = slots_of(Tokens(part, ("",) * len(part), tuple(places)), words)
        with nullcontext() if slots is None else words_inserted(encoder.get_input_embeddings(), slots):
            e = encoder(part.to(encoder.device)).last_hidden_state
        w = weights.to(e)[..., None]
        states.append(torch.where(w == 1, e, e[:, -1:] + (e - e[:, -1:]) * w))
    told, against = torch.cat(states, 1).split([len(prompts), len(negative_prompts)])
    return told, against
