"""bf16 on a CPU with its slow kernels in fp32: the same layers, nothing left behind, everything else untouched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfsame.training.quick import QuickBf16


def test_a_bf16_norm_is_the_fp32_norm_rounded():
    norm, x = nn.GroupNorm(2, 8), torch.randn(3, 8, 4, 4).bfloat16()
    with QuickBf16():
        quick = norm(x)
    assert quick.dtype == torch.bfloat16
    assert torch.equal(quick, norm(x.float()).bfloat16())


@pytest.mark.parametrize("masked", [False, True])
def test_bf16_attention_is_the_fp32_attention_rounded(masked: bool):
    q, k, v = (torch.randn(2, 3, n, 8).bfloat16() for n in (4, 5, 5))
    mask = torch.ones(4, 5, dtype=torch.bool).tril() if masked else None
    with QuickBf16(), torch.autocast("cpu", torch.bfloat16):
        quick = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.equal(quick, F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).bfloat16())


def test_fp32_is_untouched_and_nothing_is_left_behind():
    q = torch.randn(1, 2, 4, 8)
    before = F.scaled_dot_product_attention(q.bfloat16(), q.bfloat16(), q.bfloat16())
    with QuickBf16():
        inside = F.scaled_dot_product_attention(q, q, q)
    assert torch.equal(inside, F.scaled_dot_product_attention(q, q, q))
    assert torch.equal(F.scaled_dot_product_attention(q.bfloat16(), q.bfloat16(), q.bfloat16()), before)


def test_gradients_are_those_of_autocast_to_bf16():
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), torch.randn(4, 10, 32)

    def gradients(context: AbstractContextManager[object]) -> torch.Tensor:
        layer.zero_grad()
        with context, torch.autocast("cpu", torch.bfloat16):
            loss = layer(x).float().square().mean()
            loss.backward()
        return torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])

    assert F.cosine_similarity(gradients(nullcontext()), gradients(QuickBf16()), dim=0) > 0.995
