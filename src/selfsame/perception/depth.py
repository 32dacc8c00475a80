"""The miniature depth network: how near each pixel is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from selfsame.perception.parser import PixelNet, each_pixel


class DepthNet(PixelNet):
    """b 3 h w -> depth b 1 h w, 0 far (the backdrop) to 1 near."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(1, width)


def depth_loss(net: nn.Module, pixels: Tensor, depth: Tensor) -> Tensor:
    """Mean absolute error, and that of the differences between neighbours, without which edges melt.

    Args:
        depth: b h w in [0, 1].
    """
    error = net(pixels).float()[:, 0] - depth
    return error.abs().mean() + error.diff(dim=1).abs().mean() + error.diff(dim=2).abs().mean()


@torch.no_grad()
def depth_of(net: nn.Module, image: np.ndarray) -> np.ndarray:
    """Depth of one picture (h w 3 uint8), h w float32 in [0, 1]."""
    return each_pixel(net, image)[0].clamp(0, 1).cpu().numpy()
