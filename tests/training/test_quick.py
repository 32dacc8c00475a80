"""bf16 on a CPU in another form: the same layers, nothing left behind, everything else untouched."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfsame.training.quick import QuickBf16, plain_attention


@pytest.mark.parametrize(("queries", "keys"), [(16, 16), (16, 5)])
def test_plain_attention_is_attention(queries: int, keys: int):
    q, k, v = (torch.randn(2, 3, n, 8) for n in (queries, keys, keys))
    assert torch.allclose(plain_attention(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-6)


def test_a_bf16_norm_is_the_fp32_norm_rounded():
    norm, x = nn.GroupNorm(2, 8), torch.randn(3, 8, 4, 4).bfloat16()
    with QuickBf16():
        quick = norm(x)
    assert quick.dtype == torch.bfloat16
    assert torch.equal(quick, norm(x.float()).bfloat16())


def test_fp32_is_untouched_and_nothing_is_left_behind():
    q = torch.randn(1, 2, 4, 8)
    half = q.bfloat16()
    before = F.scaled_dot_product_attention(half, half, half)
    with QuickBf16():
        inside = F.scaled_dot_product_attention(q, q, q)
        masked = F.scaled_dot_product_attention(half, half, half, torch.ones(4, 4, dtype=torch.bool).tril())
    assert torch.equal(inside, F.scaled_dot_product_attention(q, q, q))
    assert torch.equal(masked, F.scaled_dot_product_attention(half, half, half, torch.ones(4, 4, dtype=torch.bool).tril()))
    assert torch.equal(F.scaled_dot_product_attention(half, half, half), before)


def test_gradients_are_those_of_autocast_to_bf16():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    x = torch.randn(4, 10, 32)

    def gradients(quick: bool) -> torch.Tensor:
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (layer(x) if not quick else _quickly(layer, x)).float().square().mean()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])

    plain, quick = gradients(False), gradients(True)
    assert F.cosine_similarity(plain, quick, dim=0) > 0.995


def _quickly(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with QuickBf16():
        return layer(x)
