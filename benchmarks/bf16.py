"""Whether bf16 pays in training here: pictures a second of the miniature base in fp32, under autocast, and under autocast with `QuickBf16`, in one run.

Run: python benchmarks/bf16.py
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack

import torch

from selfsame.models.mannequin import CONTEXT_DIM, LATENT_CHANNELS, MAX_TOKENS, new_unet
from selfsame.training.quick import QuickBf16
from selfsame.training.run import fast_bf16

BATCH, STEPS = 32, 4


def pictures_a_second(contexts: list[AbstractContextManager[object]]) -> float:
    """Of the fastest of some training steps."""
    torch.manual_seed(0)
    unet = new_unet().train()
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    noisy, text = torch.randn(BATCH, LATENT_CHANNELS, 16, 16), torch.randn(BATCH, MAX_TOKENS, CONTEXT_DIM)
    t, times = torch.full((BATCH,), 500), []
    for _ in range(STEPS + 2):
        began = time.monotonic()
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            loss = unet(noisy, t, text).sample.float().square().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.monotonic() - began)
    return BATCH / min(times[2:])


def main() -> None:
    autocast = torch.autocast("cpu", torch.bfloat16)
    plain = pictures_a_second([])
    print(f"taken to be faster here: {'yes' if fast_bf16() else 'no'}")
    for name, contexts in (("fp32", []), ("bf16 by autocast", [autocast]), ("bf16 by autocast and QuickBf16", [QuickBf16(), autocast])):
        rate = plain if not contexts else pictures_a_second(contexts)
        print(f"{name:32} {rate:5.1f} pictures/s, {rate / plain:.2f} times fp32")


if __name__ == "__main__":
    main()
