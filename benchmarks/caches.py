"""What caching latents, text states and face embeddings saves per training sample, in one run. Run: python benchmarks/caches.py"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from selfsame.mannequins.render import draw
from selfsame.mannequins.world import sample
from selfsame.models.latents import encode
from selfsame.models.mannequin import CONTEXT_DIM, LATENT_CHANNELS, MAX_TOKENS, new_unet
from selfsame.models.text import encode_prompts
from selfsame.perception.embedders import ENCODER_CROP, embed, to_crops
from selfsame.recipes.common import to_pixels
from selfsame.studio.studio import load

BATCH = 16


def seconds(run: Callable[[], object], count: int = 3) -> float:
    run()
    began = time.monotonic()
    for _ in range(count):
        run()
    return (time.monotonic() - began) / count / BATCH


def main() -> None:
    studio = load()
    items = [sample("train", i) for i in range(8)] * (BATCH // 8)
    pictures = [draw([item.scene])[0] for item in items[:8]] * (BATCH // 8)
    pixels = to_pixels(np.stack([p.image for p in pictures]))
    unet = new_unet()
    noisy, text = torch.randn(BATCH, LATENT_CHANNELS, 16, 16), torch.randn(BATCH, MAX_TOKENS, CONTEXT_DIM)

    def step() -> None:
        unet(noisy, torch.full((BATCH,), 500), text).sample.square().mean().backward()

    cached = seconds(step)
    parts = {
        "latents": seconds(lambda: encode(studio.vae, pixels)),
        "text states": seconds(lambda: encode_prompts(*studio.text, [item.caption for item in items])),
        "face embeddings": seconds(lambda: embed(studio.encoder, to_crops([p.image for p in pictures], [p.kps[0] for p in pictures], ENCODER_CROP))),
    }
    print(f"U-Net step on cached inputs {1000 * cached:.1f} ms a sample")
    for name, value in parts.items():
        print(f"{name:16} {1000 * value:.1f} ms a sample")
    print(f"cached: {(cached + sum(parts.values())) / cached:.2f} times faster")


if __name__ == "__main__":
    main()
