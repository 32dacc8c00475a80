"""StableIdentity as one trainable module: a frozen base, a frozen text tower, and the projection that writes words."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Words, text tower and U-Net behind one call; only the words' module learns."""

    def __init__(self, words: WordProjection | FreeWords, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.words = words
        self.text_encoder = text_encoder.requires_grad_(False)
        self.unet = unet.requires_grad_(False)

    def forward(self, noisy: Tensor, timesteps: Tensor, features: Tensor, ids: Tensor, first: Tensor) -> Tensor:
        """The U-Net's prediction, b c h w.

        Args:
            noisy: b c h w (VP).
            timesteps: b.
            features: b f of the face encoder.
            ids: b t token ids, with places for the words.
            first: b, the position of the first word in each row.
        """
        words = self.words(features)  # b n d
        b, n, _ = words.shape
        positions = (first[:, None] + torch.arange(n, device=first.device)).flatten()
        slots = Slots(torch.arange(b, device=first.device).repeat_interleave(n), positions, words.flatten(0, 1))
        with words_inserted(self.text_encoder.get_input_embeddings(), slots):
            states = self.text_encoder(ids).last_hidden_state
        return self.unet(noisy, timesteps, encoder_hidden_states=states).sample
