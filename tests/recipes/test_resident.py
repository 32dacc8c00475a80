"""Arrays that batches are taken from."""

from __future__ import annotations

import numpy as np
import torch

from selfsame.recipes.common import to_pixels
from selfsame.recipes.resident import Resident, place_of


def test_rows_come_as_they_lie_in_the_array():
    values = np.arange(24, dtype=np.float16).reshape(6, 4)
    rows = Resident(values, "validation")
    assert len(rows) == 6
    assert rows.shape == (6, 4)
    assert rows[np.array([5, 0, 5])].tolist() == values[[5, 0, 5]].tolist()
    assert rows[np.array([[1, 2], [3, 4]])].shape == (2, 2, 4)
    assert rows[np.array([1])].dtype == torch.float32
    assert rows.raw(np.array([1])).dtype == torch.float16
    rows[np.array([0])].add_(7)  # what is taken is one's own
    assert rows[np.array([0])].tolist() == values[[0]].tolist()


def test_pictures_come_as_pixels():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    assert torch.allclose(Resident(images, "validation").pixels(np.array([2, 0])), to_pixels(images[[2, 0]]))


def test_what_is_held_out_stays_on_the_cpu():
    assert place_of("validation") == place_of("test") == torch.device("cpu")
