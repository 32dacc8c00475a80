"""Prompts to text states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class Prompted:
    """Text states of prompts, and what was cut off."""

    encoder_hidden_states: Tensor  # b t c
    cut: tuple[str, ...]  # for each prompt the words beyond the limit, "" when none


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Token ids b t padded to the limit, and the words of each prompt that did not fit."""
    limit = tokenizer.model_max_length
    ids, cut = [], []
    for prompt in prompts:
        tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert isinstance(tokens, list)
        kept, rest = tokens[: limit - 2], tokens[limit - 2 :]
        cut.append(str(tokenizer.decode(rest)).strip() if rest else "")
        row = [tokenizer.bos_token_id, *kept, tokenizer.eos_token_id]
        ids.append(row + [tokenizer.pad_token_id] * (limit - len(row)))
    return torch.tensor(ids), tuple(cut)


@torch.no_grad()
def encode_prompts(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: Sequence[str], batch_size: int = 256) -> Prompted:
    """Last hidden states after the final norm, as Stable Diffusion 1 uses them."""
    ids, cut = tokenize(tokenizer, prompts)
    states = [text_encoder(part.to(text_encoder.device)).last_hidden_state for part in ids.split(batch_size)]
    return Prompted(torch.cat(states), cut)
