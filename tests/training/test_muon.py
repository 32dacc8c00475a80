"""Muon: matrices move by orthogonal steps, vectors as AdamW moves them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from selfsame.training.muon import RMS, Muon, orthogonal


@given(st.integers(2, 24), st.integers(2, 24), st.floats(1e-3, 1e3), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_all_singular_values_become_about_one_whatever_the_size(m: int, n: int, size: float, seed: int):
    """The iteration keeps the singular vectors: what is left is the nearest orthogonal matrix, within its published band."""
    g = torch.randn(1, m, n, generator=torch.Generator().manual_seed(seed))
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    kept = s / s.norm() > 0.02  # smaller ones need more than five rounds
    found = torch.diagonal(u.mT @ orthogonal(g * size) @ v.mT, dim1=1, dim2=2)
    assert ((found > 0.3) & (found < 1.3))[kept].all()
    off = u.mT @ orthogonal(g * size) @ v.mT - torch.diag_embed(found)
    assert off.abs().max() < 1e-2


def test_vectors_follow_adamw_exactly():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(7)) for _ in range(3)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    a = Muon(ours, 1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    b = torch.optim.AdamW(theirs, 1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(7)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(ours, theirs, strict=True))


def test_a_matrix_moves_as_far_as_adamw_would_and_a_kernel_is_a_matrix():
    torch.manual_seed(0)
    for shape in ((32, 64), (32, 16, 3, 3)):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape)
        Muon([p], 1.0, weight_decay=0).step()
        assert float(p.detach().square().mean().sqrt()) == pytest.approx(RMS, rel=0.2)


def test_it_goes_on_from_its_state():
    torch.manual_seed(0)
    grads = [[torch.randn(4, 6), torch.randn(5)] for _ in range(4)]

    def run(stop: int | None) -> list[torch.Tensor]:
        params = [nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(5))]
        o = Muon(params, 1e-2)
        for i, gs in enumerate(grads):
            if i == stop:
                state = o.state_dict()
                o = Muon(params, 1e-2)
                o.load_state_dict(state)
            for p, g in zip(params, gs, strict=True):
                p.grad = g
            o.step()
        return [p.detach() for p in params]

    assert all(torch.equal(a, b) for a, b in zip(run(None), run(2), strict=True))
