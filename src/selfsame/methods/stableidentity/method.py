"""StableIdentity as one trainable module: a frozen base, its frozen text towers, and the projections that write words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from selfsame.adapters.words import Slots, words_inserted
from selfsame.methods.stableidentity.modules import CelebritySpace, WordProjection


def name_ids(tokenizer: CLIPTokenizer, names: Sequence[str], num_words: int = 2) -> tuple[Tensor, tuple[str, ...]]:
    """Token ids k n of the names that are exactly so many tokens, and the names that are not.

    The official code has no such filter: a longer name would give its first two tokens, a shorter one the end token.
    """
    rows = {name: tokenizer(name, add_special_tokens=False)["input_ids"] for name in names}
    kept = [ids for ids in rows.values() if isinstance(ids, list) and len(ids) == num_words]
    skipped = tuple(name for name, ids in rows.items() if not isinstance(ids, list) or len(ids) != num_words)
    return torch.tensor(kept, dtype=torch.long).view(-1, num_words), skipped


def celebrity_space(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, names: Sequence[str], num_words: int = 2) -> tuple[CelebritySpace, tuple[str, ...]]:
    """Where these names lie in a text tower's table, and the names that were skipped.

    Raises:
        ValueError: fewer than two names have the right number of tokens.
    """
    ids, skipped = name_ids(tokenizer, names, num_words)
    table = text_encoder.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    return CelebritySpace.of(table, ids.to(table.device)), skipped


class FreeWords(nn.Module):
    """Textual Inversion (arXiv:2208.01618), the baseline: the words themselves are trained, from the celebrities' mean."""

    def __init__(self, space: CelebritySpace) -> None:
        super().__init__()
        self.words = nn.Parameter(space.mean.clone())

    def forward(self, features: Tensor) -> Tensor:
        """Features b f, of which only the number counts -> words b n d."""
        return self.words.expand(len(features), -1, -1)


class PersonTrainer(nn.Module):
    """Words, text towers and U-Net behind one call; only the words' modules learn. SDXL has two towers, and words for each."""

    def __init__(self, words: Sequence[WordProjection | FreeWords], towers: Sequence[Any], unet: UNet2DConditionModel) -> None:
        super().__init__()
        if len(words) != len(towers):
            raise ValueError(f"{len(words)} word modules for {len(towers)} text towers: give one for each")
        self.words, self.towers = nn.ModuleList(words), nn.ModuleList(tower.requires_grad_(False) for tower in towers)
        self.unet = unet.requires_grad_(False)

    def vectors(self, features: Tensor) -> list[Tensor]:
        """Words of one person, 1 f -> n d for each tower."""
        return [module(features)[0] for module in self.words]

    def forward(self, noisy: Tensor, timesteps: Tensor, features: Tensor, ids: Tensor, first: Tensor) -> Tensor:
        """The U-Net's prediction, b c h w.

        Args:
            noisy: b c h w (VP).
            timesteps: b.
            features: b f of the face encoder.
            ids: b k t, token ids of each tower with places for the words.
            first: b, the position of the first word in each row.
        """
        outs = [self._told(i, features, ids[:, i], first) for i in range(len(self.towers))]
        if len(outs) == 1:
            return self.unet(noisy, timesteps, encoder_hidden_states=outs[0].last_hidden_state).sample
        states = torch.cat([out.hidden_states[-2] for out in outs], -1)
        sides = [8 * noisy.shape[-2], 8 * noisy.shape[-1]]
        added = {"text_embeds": outs[-1].text_embeds, "time_ids": noisy.new_tensor([*sides, 0, 0, *sides]).expand(len(noisy), -1)}
        return self.unet(noisy, timesteps, encoder_hidden_states=states, added_cond_kwargs=added).sample

    def _told(self, tower: int, features: Tensor, ids: Tensor, first: Tensor) -> Any:
        encoder: Any = self.towers[tower]
        words = self.words[tower](features)  # b n d
        b, n, _ = words.shape
        positions = (first[:, None] + torch.arange(n, device=first.device)).flatten()
        slots = Slots(torch.arange(b, device=first.device).repeat_interleave(n), positions, words.flatten(0, 1))
        with words_inserted(encoder.get_input_embeddings(), slots):
            return encoder(ids, output_hidden_states=len(self.towers) > 1)
