"""Whether `torch.compile` pays in painting here: a guided step of the miniature and of Stable Diffusion 1.5's size, eager beside compiled, in one run.

Run: python benchmarks/compiled.py
     python benchmarks/compiled.py --size sd15 --dtype bfloat16     random weights, 256 x 256: 6 GB, some minutes
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from instantid import SIZES, TEXT_TOKENS
from torch import Tensor

from selfsame.models.mannequin import CONTEXT_DIM, LATENT_CHANNELS, MAX_TOKENS
from selfsame.weights.mannequin import load_unet

RUNS = 7


def seconds(run: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("miniature", "sd15"), default="miniature")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    if args.size == "sd15":
        unet, latents, text = UNet2DConditionModel(**SIZES["sd15"], sample_size=64), torch.randn(2, 4, 32, 32), torch.randn(2, TEXT_TOKENS, 768)
        steps = 30
    else:
        unet, latents, text = load_unet(), torch.randn(2, LATENT_CHANNELS, 16, 16), torch.randn(2, MAX_TOKENS, CONTEXT_DIM)
        steps = 16
    unet, latents, text, t = unet.to(dtype).eval(), latents.to(dtype), text.to(dtype), torch.tensor([500, 500])
    quick = torch.compile(unet)

    def eager() -> Tensor:
        return unet(latents, t, text, return_dict=False)[0]

    def compiled() -> Tensor:
        return quick(latents, t, text, return_dict=False)[0]

    once = seconds(compiled)
    off = float((eager() - compiled()).abs().max())
    slow, fast = zip(*((seconds(eager), seconds(compiled)) for _ in range(RUNS)), strict=True)  # in turn
    before, after = statistics.median(slow), statistics.median(fast)
    print(f"{args.size}, {args.dtype}: {before * 1e3:.0f} ms a guided step, compiled {after * 1e3:.0f} ms, {before / after:.2f} times")
    gained = (before - after) * steps
    after_all = f"paid back after {once / gained:.0f} pictures of {steps} steps" if gained > 0 else "never paid back"
    print(f"compiling took {once:.0f} s: {after_all}; largest difference {off:.1e}")


if __name__ == "__main__":
    main()
