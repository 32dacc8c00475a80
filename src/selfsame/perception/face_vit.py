"""Face transformers: what StableIdentity reads a face with. Their feature is the CLS state after the last norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from selfsame.perception.embedders import CropSpec

FACE_VIT_CROP = CropSpec(64, share=0.50, shift_y=-0.02)  # a little wider than the encoder's: some of the hair belongs to a face
FEATURE_DIM = 128


class FaceViT(nn.Module):
    """The miniature's: 64 px crop in [-1, 1] -> 128 numbers, not normalised. A stock `ViTModel` inside, as the real one is."""

    def __init__(self) -> None:
        super().__init__()
        config: dict[str, Any] = {
            "hidden_size": FEATURE_DIM,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 384,
            "image_size": 64,
            "patch_size": 8,
        }
        self.vit = ViTModel(ViTConfig(**config), add_pooling_layer=False)

    def forward(self, crops: Tensor) -> Tensor:
        return self.vit(crops).last_hidden_state[:, 0]


@torch.no_grad()
def cls_feature(vit: ViTModel, pixels: Tensor) -> Tensor:
    """CLS feature of a stock face ViT: b 3 224 224 in [-1, 1] -> b 768; neither pooled nor normalised."""
    return vit(pixels.to(vit.device)).last_hidden_state[:, 0]
