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

CLIP_STATISTICS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # mean and deviation, of both extractors' training pictures
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_KINDS = ("dinov2", "dinov2_with_registers", "vit")


def _read(kind: Any, folder: Path, what: str) -> Any:
    """A stock model from its own folder, frozen."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json there; give the folder of {what} as transformers saves it")
    try:
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval().requires_grad_(False)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{folder}: {what} cannot be loaded ({' '.join(str(error).split())[:160]}); fetch it again, as safetensors") from None


def normalised(images: Sequence[np.ndarray], side: int, statistics: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """Square pictures s s 3 uint8 -> n 3 side side, as these models were trained: bicubic, less the mean, over the deviation."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in statistics)
    pixels = [torch.from_numpy(np.ascontiguousarray(i)).permute(2, 0, 1)[None].float() / 255 for i in images]
    sized = [F.interpolate(p, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1) for p in pixels]
    return (torch.cat(sized) - mean) / std


class StockClip:
    """CLIP (arXiv:2103.00020) of transformers, such as openai/clip-vit-large-patch14: unit features of pictures and prompts in one space."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """
        Raises:
            InputError: the folder holds no such model or no tokenizer.
        """
        from transformers import CLIPModel, CLIPTokenizer

        self.name, self.model = folder.name, _read(CLIPModel, folder, "a CLIP model").to(device)
        try:
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, TypeError, ValueError) as error:
            raise InputError(f"{folder}: its tokenizer cannot be loaded ({' '.join(str(error).split())[:120]}); fetch the whole folder") from None
        self.side = int(self.model.config.vision_config.image_size)

    @torch.no_grad()
    def images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Square pictures to n d."""
        pixels = normalised(images, self.side, CLIP_STATISTICS).to(self.model.device)
        return F.normalize(self.model.visual_projection(self.model.vision_model(pixels).pooler_output), dim=-1).cpu()

    @torch.no_grad()
    def prompt(self, prompt: str) -> Tensor:
        """A prompt, cut at the tower's limit, to d."""
        limit = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(prompt, truncation=True, max_length=limit, return_tensors="pt").input_ids.to(self.model.device)
        return F.normalize(self.model.text_projection(self.model.text_model(ids).pooler_output), dim=-1).cpu()[0]


class StockDino:
    """DINO (arXiv:2104.14294) or DINOv2 (arXiv:2304.07193) of transformers: unit CLS features of pictures."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """
        Raises:
            InputError: the folder holds another model.
        """
        from transformers import AutoModel

        self.name, self.model = folder.name, _read(AutoModel, folder, "a DINO model").to(device)
        if self.model.config.model_type not in DINO_KINDS:
            raise InputError(f"{folder}: holds a {self.model.config.model_type}, no DINO; give facebook/dinov2-base or facebook/dino-vits16")

    @torch.no_grad()
    def images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Square pictures to n d. 224 px, as usual, whatever size the positions were stored for."""
        pixels = normalised(images, 224, IMAGENET_STATISTICS).to(self.model.device)
        more = {"interpolate_pos_encoding": True} if self.model.config.model_type == "vit" else {}
        return F.normalize(self.model(pixels, **more).last_hidden_state[:, 0], dim=-1).cpu()
