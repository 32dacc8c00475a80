"""What caching latents, text states and face embeddings saves of a whole training step, in one run. Run: python benchmarks/caches.py"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from selfsame.images.draw import draw_kps_small
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import sample
from selfsame.methods.instantid.method import InstantID
from selfsame.methods.instantid.objective import InstantIDTrainer
from selfsame.models.latents import encode
from selfsame.models.mannequin import CONTEXT_DIM, LATENT_CHANNELS, MAX_TOKENS, new_unet
from selfsame.models.text import encode_prompts
from selfsame.perception.embedders import ENCODER_CROP, embed, to_crops
from selfsame.recipes.common import to_pixels
from selfsame.recipes.instantid import SIZE
from selfsame.studio.studio import load

BATCH = 16


def seconds(run: Callable[[], object], count: int = 3) -> float:
    """A sample's share of the fastest of some runs."""
    run()
    times = []
    for _ in range(count):
        began = time.monotonic()
        run()
        times.append(time.monotonic() - began)
    return min(times) / BATCH


def main() -> None:
    studio = load()
    items = [sample("train", i) for i in range(8)] * (BATCH // 8)
    pictures = [draw([item.scene])[0] for item in items[:8]] * (BATCH // 8)
    pixels = to_pixels(np.stack([p.image for p in pictures]))
    drawn = torch.from_numpy(np.stack([draw_kps_small(128, 128, p.kps[0]) for p in pictures])).permute(0, 3, 1, 2).float() / 255
    noisy, text = torch.randn(BATCH, LATENT_CHANNELS, 16, 16), torch.randn(BATCH, MAX_TOKENS, CONTEXT_DIM)
    t, faces = torch.full((BATCH,), 500), torch.randn(BATCH, 1, 512)

    def step_of(module: torch.nn.Module, *given: torch.Tensor) -> Callable[[], None]:
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], fused=True)

        def step() -> None:
            out = module(*given)
            (out if isinstance(out, torch.Tensor) else out.sample).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    parts = {
        "latents": seconds(lambda: encode(studio.vae, pixels)),
        "text states": seconds(lambda: encode_prompts(*studio.text, [item.caption for item in items])),
        "face embeddings": seconds(lambda: embed(studio.encoder, to_crops([p.image for p in pictures], [p.kps[0] for p in pictures], ENCODER_CROP))),
    }
    for name, value in parts.items():
        print(f"{name:16} {1000 * value:.1f} ms a sample")
    base = new_unet()
    trainer = InstantIDTrainer(InstantID.new(base, SIZE, conditioning_channels=(16, 32, 64, 96)), base)
    steps = {
        "base": (step_of(new_unet(), noisy, t, text), ("latents", "text states")),
        "InstantID": (step_of(trainer, noisy, t, text, faces, drawn), tuple(parts)),
    }
    for name, (step, needed) in steps.items():
        cached, saved = seconds(step), sum(parts[part] for part in needed)
        print(f"{name} step on cached inputs {1000 * cached:.1f} ms a sample; without the cache {(cached + saved) / cached:.2f} times as long")


if __name__ == "__main__":
    main()
