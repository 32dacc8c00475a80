"""Arrays that batches are taken from: in a GPU's memory where there is one and it has room, else on the disk."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from selfsame.recipes.common import as_pixels, compute_device

ROOM = 0.5  # of a GPU's free memory at most goes to one array


def place_of(split: str) -> torch.device:
    """Where a split's batches are made: held-out ones on the CPU, so that their noise and figures are the same on every machine."""
    return compute_device() if split in ("train", "judge") else torch.device("cpu")


class Resident:
    """An array n ... of which rows are taken as float32 tensors on the computing device."""

    def __init__(self, array: np.ndarray, split: str = "train") -> None:
        self.device, self.array, self.held = place_of(split), array, None
        if self.device.type == "cuda" and array.nbytes < ROOM * torch.cuda.mem_get_info(self.device)[0]:
            self.held = torch.from_numpy(np.array(array)).to(self.device)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def raw(self, at: np.ndarray) -> Tensor:
        """Rows by their numbers (any shape), as they are kept."""
        if self.held is not None:
            return self.held[torch.from_numpy(np.asarray(at)).to(self.device)]
        return torch.from_numpy(np.array(self.array[at])).to(self.device)

    def __getitem__(self, at: np.ndarray) -> Tensor:
        """The same, float32."""
        return self.raw(at).float()

    def pixels(self, at: np.ndarray) -> Tensor:
        """Rows of pictures n h w 3 uint8 -> b 3 h w in [-1, 1]."""
        return as_pixels(self.raw(at))
