"""The VAE's statistics live in its weights."""

from __future__ import annotations

import numpy as np
import torch

from selfsame.data.tables import Table
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import sample
from selfsame.models.latents import decode, encode
from selfsame.models.mannequin import new_vae
from selfsame.recipes.common import to_pixels
from selfsame.recipes.vae import fold_statistics, latent_statistics


def test_folding_normalises_latents_and_leaves_pictures_alone():
    torch.manual_seed(0)
    pictures = [draw([sample("train", i).scene])[0] for i in range(4)]
    table = Table(np.stack([p.image for p in pictures]), np.zeros((4, 1, 1)), np.zeros((4, 1, 1)), [{}] * 4)
    vae = new_vae().eval()
    pixels = to_pixels(table.images)
    before = decode(vae, encode(vae, pixels))
    fold_statistics(vae, table)
    mean, std = latent_statistics(vae, table)
    assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-3)
    assert torch.allclose(std, torch.ones_like(std), atol=1e-2)
    assert torch.allclose(before, decode(vae, encode(vae, pixels)), atol=1e-3)
