"""How alike pictures are to stock CLIP and DINO models (folders of transformers), the extractors that papers report edits by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.images.files import InputError
from selfsame.images.resize import CLIP_STATISTICS, IMAGENET_STATISTICS, normalised
from selfsame.perception.stock import read_stock

DINO_KINDS = ("dinov2", "dinov2_with_registers", "vit")


class StockClip:
    """CLIP (arXiv:2103.00020) of transformers, such as openai/clip-vit-large-patch14: unit features of pictures and prompts in one space."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """
        Raises:
            InputError: the folder holds no such model or no tokenizer.
        """
        from transformers import CLIPModel, CLIPTokenizer

        self.name, self.model = str(folder), read_stock(CLIPModel, folder, "a CLIP model", ("clip",)).to(device)
        try:
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, TypeError, ValueError) as error:
            raise InputError(f"{folder}: its tokenizer cannot be loaded ({' '.join(str(error).split())[:120]}); fetch the whole folder") from None
        self.side = int(self.model.config.vision_config.image_size)
        self._said: dict[str, Tensor] = {}

    @torch.no_grad()
    def images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Square pictures to n d."""
        pixels = torch.cat([normalised(i, self.side, *CLIP_STATISTICS) for i in images]).to(self.model.device)
        return F.normalize(self.model.visual_projection(self.model.vision_model(pixels).pooler_output), dim=-1).cpu()

    @torch.no_grad()
    def prompt(self, prompt: str) -> Tensor:
        """A prompt, cut at the tower's limit, to d; each is read once."""
        if prompt not in self._said:
            self._said[prompt] = self._read(prompt)
        return self._said[prompt]

    def _read(self, prompt: str) -> Tensor:
        limit = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(prompt, truncation=True, max_length=limit, return_tensors="pt").input_ids.to(self.model.device)
        return F.normalize(self.model.text_projection(self.model.text_model(ids).pooler_output), dim=-1).cpu()[0]


class StockDino:
    """DINO (arXiv:2104.14294) or DINOv2 (arXiv:2304.07193) of transformers: unit CLS features of pictures at 224 px, as usual."""

    side = 224

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """
        Raises:
            InputError: the folder holds another model.
        """
        from transformers import AutoModel

        self.name, self.model = str(folder), read_stock(AutoModel, folder, "a DINO such as facebook/dinov2-base", DINO_KINDS).to(device)

    @torch.no_grad()
    def images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Square pictures to n d."""
        pixels = torch.cat([normalised(i, self.side, *IMAGENET_STATISTICS) for i in images]).to(self.model.device)
        more = {"interpolate_pos_encoding": True} if self.model.config.model_type == "vit" else {}
        return F.normalize(self.model(pixels, **more).last_hidden_state[:, 0], dim=-1).cpu()
