"""Draws docs/words.jpg: one photo learned as two words, in six contexts, with a ControlNet in a stock diffusers pipeline, and beside InstantID.

Run: python examples/words.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from PIL import Image

import selfsame
from selfsame.images.draw import draw_kps_small
from selfsame.images.files import read_image
from selfsame.methods.instantid.interop import face_in
from selfsame.methods.stableidentity.interop import words_added
from selfsame.recipes.bases import mannequin_base
from selfsame.recipes.measure.protocols import canonical_kps
from selfsame.recipes.stableidentity import learn
from selfsame.weights.mannequin import checked_folder

CONTEXTS = (
    "a photo of <her> in a garden", "a photo of <her> laughing in the city", "a watercolour of <her> on a beach", "a pencil sketch of <her>",
    "a photo of <her> wearing a crown", "a comic of <her> in space",
)  # fmt: skip
VIEWS = (3, 0, 4)  # of the canonical ones: turned right, straight, turned left
BESIDE = ("a photo of <her> in a library", "a photo of <her> wearing a suit", "a comic of <her> in a forest")
NOBODY = np.zeros(512, np.float32)
SIDE = 192  # pixels a picture


def main(photo: Path = Path("examples/cleo.png"), out: Path = Path("docs/words.jpg")) -> None:
    studio = selfsame.load("mannequin")
    with tempfile.TemporaryDirectory() as folder:
        who = learn(mannequin_base(studio), [photo], "<her>", Path(folder))
    assert who.words is not None
    contexts = [studio.generate(selfsame.Request(prompt=prompt, seed=k), who)[0].pixels for k, prompt in enumerate(CONTEXTS)]
    beside = [studio.generate(selfsame.Request(prompt=prompt, seed=k, use="both"), who)[0].pixels for k, prompt in enumerate(BESIDE)]
    pipe = StableDiffusionControlNetPipeline.from_pretrained(checked_folder("base"), controlnet=studio.instantid.identity_net, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    posed = []
    with words_added(pipe, who.words), face_in(pipe, studio.instantid, NOBODY, ip_scale=0.0):  # IdentityNet says where, the words say who
        for view in VIEWS:
            drawing = Image.fromarray(draw_kps_small(128, 128, canonical_kps(view)[0]))
            seeded = torch.Generator().manual_seed(view)
            made: Any = pipe("a photo of <her> in a kitchen", image=drawing, num_inference_steps=16, guidance_scale=3.0, generator=seeded)
            posed.append(np.asarray(made.images[0]))
    rows = ([read_image(photo), *contexts], [np.full_like(contexts[0], 255), *posed, *beside])
    sheet = np.concatenate([np.concatenate(row, 1) for row in rows])
    Image.fromarray(sheet).resize((7 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS).save(out, quality=88)
    print(out)


if __name__ == "__main__":
    main()
