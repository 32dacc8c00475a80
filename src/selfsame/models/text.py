"""Prompts to text states, learned words included."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from selfsame.adapters.words import Slots, words_inserted

FILLER = 0  # id under a learned word: any token but a special one, since the word stands in its place


@dataclass(frozen=True)
class Tokens:
    """Prompts as token ids."""

    ids: Tensor  # b t
    cut: tuple[str, ...]  # for each prompt the words beyond the limit, "" when none
    places: tuple[tuple[int, int, str, int], ...] = ()  # row, position, placeholder, which of its words


@dataclass(frozen=True)
class Prompted:
    """Text states of prompts, and what was cut off."""

    encoder_hidden_states: Tensor  # b t c
    cut: tuple[str, ...]  # for each prompt the words beyond the limit, "" when none


def split_at(prompt: str, placeholders: Collection[str]) -> list[str]:
    """A prompt in pieces, each a placeholder or text without any; without placeholders one piece, as it is."""
    if not placeholders:
        return [prompt]
    return [piece for piece in re.split("|".join(f"({re.escape(name)})" for name in placeholders), prompt) if piece]


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str], words: Mapping[str, int] | None = None) -> Tokens:
    """Token ids padded to the limit; each placeholder becomes as many places as it has words, and nothing after it is lost.

    Args:
        words: number of words of each placeholder, such as {"<ada>": 2}.
    """
    words = words or {}
    room = tokenizer.model_max_length - 2
    ids, cut, places = [], [], []
    for row, prompt in enumerate(prompts):
        line: list[int] = []
        left_out: list[str] = []
        for piece in split_at(prompt, words):
            count = words.get(piece, 0)
            tokens = [FILLER] * count if count else tokenizer(piece, add_special_tokens=False)["input_ids"]
            assert isinstance(tokens, list)
            free = 0 if left_out else room - len(line)
            fitting = tokens[:free] if free >= len(tokens) or not count else []  # a person is never cut in two
            if len(fitting) < len(tokens):
                left_out.append(piece if count else str(tokenizer.decode(tokens[len(fitting) :])).strip())
            places += [(row, len(line) + 1 + i, piece, i) for i in range(len(fitting) if count else 0)]
            line += fitting
        cut.append(" ".join(left_out))
        ids.append([tokenizer.bos_token_id, *line, tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (room - len(line)))
    return Tokens(torch.tensor(ids), tuple(cut), tuple(places))


def slots_of(tokens: Tokens, words: Mapping[str, Tensor]) -> Slots | None:
    """Where the learned words (n d each) go; None when the prompts name none."""
    if not tokens.places:
        return None
    rows, positions = (torch.tensor([place[i] for place in tokens.places]) for i in (0, 1))
    return Slots(rows, positions, torch.stack([words[name][i] for _, _, name, i in tokens.places]))


@torch.no_grad()
def encode_prompts(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: Sequence[str], words: Mapping[str, Tensor] | None = None, *, batch_size: int = 256
) -> Prompted:
    """Last hidden states after the final norm, as Stable Diffusion 1 uses them.

    Args:
        words: learned words n d of each placeholder that may stand in a prompt.
    """
    words = words or {}
    states, cut = [], []
    for start in range(0, len(prompts), batch_size):
        tokens = tokenize(tokenizer, prompts[start : start + batch_size], {name: len(v) for name, v in words.items()})
        cut += tokens.cut
        ids, slots = tokens.ids.to(text_encoder.device), slots_of(tokens, words)
        if slots is None:
            states.append(text_encoder(ids).last_hidden_state)
        else:
            with words_inserted(text_encoder.get_input_embeddings(), slots):
                states.append(text_encoder(ids).last_hidden_state)
    return Prompted(torch.cat(states), tuple(cut))


@torch.no_grad()
def encode_for_sdxl(tokenizer: Any, text_encoders: Sequence[Any], prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Plain prompts for SDXL's two encoders: states b t c, the last but one of each side by side, and the second's pooled vectors b p.

    Both read the first tokenizer's ids, as `models.weighted` does; what is too long is cut.
    """
    ids = tokenize(tokenizer, prompts).ids
    outs = [encoder(ids.to(encoder.device), output_hidden_states=True) for encoder in text_encoders]
    return torch.cat([out.hidden_states[-2] for out in outs], -1), outs[-1][0]


def tower_hash(*text_encoders: Any) -> str:
    """Which text tower(s) a learned word belongs to: a short hash of the shapes and values of their token tables, in half precision.

    The same weights in single or half precision (not bf16, which rounds more), or after tokens were added at the end, give the same hash.
    """
    digest = hashlib.sha256()
    for tower in text_encoders:
        table = tower.get_input_embeddings().weight.detach()[: min(1000, tower.get_input_embeddings().num_embeddings)].half().cpu().numpy()
        digest.update(str(table.shape[1]).encode() + table.tobytes())
    return digest.hexdigest()[:16]
