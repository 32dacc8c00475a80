"""The reader of faces in latents, and the estimates that it learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selfsame.diffusion.schedule import add_noise, denoised_of, target
from selfsame.models.mannequin import alphas_cumprod
from selfsame.recipes.likeness import Blur, LatentFace, kept_reader, read_latents, readable, unlikeness


@pytest.fixture(scope="module")
def latents() -> np.ndarray:
    """Eighty pictures of four kinds in a low-dimensional world."""
    rng = np.random.default_rng(0)
    kinds, common = rng.normal(size=(4, 16, 16, 16)), rng.normal(size=(6, 16, 16, 16))
    return np.stack([kinds[i % 4] + np.tensordot(rng.normal(size=6), common, 1) for i in range(80)]).astype(np.float16)


def test_an_estimate_is_the_picture_without_noise_and_the_mean_in_nothing_but(latents: np.ndarray):
    blur, clean = Blur.of(latents, np.random.default_rng(0)), torch.from_numpy(latents[:8]).float()
    g = torch.Generator().manual_seed(0)
    assert torch.allclose(blur(clean, torch.full((8,), 1e-3), g), clean, atol=0.02)
    assert torch.allclose(blur(clean, torch.full((8,), 1e6), g).flatten(1), blur.mean.expand(8, -1), atol=0.05)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 8.0])
def test_an_estimate_is_nearer_than_the_noisy_picture_and_than_the_mean(latents: np.ndarray, sigma: float):
    blur, clean = Blur.of(latents, np.random.default_rng(0)), torch.from_numpy(latents[:40]).float()
    seen = blur(clean, torch.full((40,), sigma), torch.Generator().manual_seed(1))
    error = float((seen - clean).square().mean())
    assert error < sigma**2
    assert error < float((clean.flatten(1) - blur.mean).square().mean())


def test_a_reader_tells_people_apart_and_is_taught_once(latents: np.ndarray, tmp_path: Path):
    rng = np.random.default_rng(1)
    said = rng.normal(size=(4, 512)).astype(np.float32)
    people = np.arange(80) % 4
    embeddings = said[people] + 0.1 * rng.normal(size=(80, 512)).astype(np.float32)
    net = read_latents(latents, embeddings, people, np.arange(80), seed=0, steps=40)
    cosines = torch.nn.functional.cosine_similarity(net(torch.from_numpy(latents[:20]).float())[:, None], torch.from_numpy(said)[None], dim=2)
    assert (cosines.argmax(1).numpy() == people[:20]).mean() > 0.9
    made = [kept_reader(tmp_path / "reader.pt", latents, embeddings, people, np.arange(80), 0, steps=2) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["reader.pt"]


def test_a_perfect_prediction_reads_as_the_picture_at_every_noise():
    """Through the v-prediction the reader sees clean latents, however noisy the step."""
    abar, g = alphas_cumprod(), torch.Generator().manual_seed(0)
    clean, noise, t = torch.randn(4, 16, 16, 16, generator=g), torch.randn(4, 16, 16, 16, generator=g), torch.tensor([0, 300, 700, 999])
    v, at = target("v_prediction", clean, noise, t, abar), abar[t].view(-1, 1, 1, 1)
    net = LatentFace()
    estimate = denoised_of("v_prediction", v, add_noise(clean, noise, t, abar), at)
    assert torch.allclose(net(estimate), net(clean), atol=1e-3)
    weights = readable(abar[t])
    assert (weights.diff() < 0).all()
    assert 0 < weights[-1] < 0.01
    assert weights[0] > 0.99


def test_unlikeness_is_nothing_for_a_perfect_prediction_of_the_person():
    """Nobody's rows count nothing, nor do pictures of a size that the reader does not know; a stranger's count more than the person's own."""
    abar, g = alphas_cumprod(), torch.Generator().manual_seed(0)
    clean, noise, t = torch.randn(4, 16, 16, 16, generator=g), torch.randn(4, 16, 16, 16, generator=g), torch.tensor([0, 200, 400, 600])
    v, batch = target("v_prediction", clean, noise, t, abar), {"noisy": add_noise(clean, noise, t, abar), "t": t}
    net = LatentFace().requires_grad_(False)
    said = net(clean)
    assert float(unlikeness(net, v, batch, said, abar)) == pytest.approx(0, abs=1e-4)
    assert float(unlikeness(net, v, batch, -said, abar)) == pytest.approx(float((2 * readable(abar[t])).mean()), rel=1e-3)
    assert float(unlikeness(net, v, batch, torch.zeros_like(said), abar)) == 0
    assert float(unlikeness(net, v[..., :8], batch, said, abar)) == 0
