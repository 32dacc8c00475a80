"""Whole runs, latents in hand: what leaves out no result leaves out nothing, and neighbours do not disturb each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import selfsame
from selfsame.diffusion.sampling import guided_together
from selfsame.images.draw import draw_kps_small
from selfsame.mannequins.world import CANONICAL_VIEWS, average_kps
from selfsame.methods.instantid.method import predict
from selfsame.studio.crowd import Shown
from selfsame.studio.painting import Painter, Row, generators_of, last_of, noise_of
from selfsame.studio.request import MANNEQUIN, Request, Strengths
from selfsame.studio.studio import Studio
from selfsame.values.conditioning import Conditioning, FaceCondition, SpatialCondition, stacked

PROMPT = "a photo of a person in a garden"


@pytest.fixture(scope="module")
def studio() -> Studio:
    return selfsame.load("mannequin")


@pytest.fixture(scope="module")
def painter(studio: Studio) -> Painter:
    return replace(studio.painter(), decode=lambda latents: list(latents))  # type: ignore[arg-type, return-value]


def kps(view: int) -> np.ndarray:
    return average_kps(CANONICAL_VIEWS[view])[0]


def embedding(seed: int) -> Tensor:
    return 20 * torch.nn.functional.normalize(torch.randn(1, 1, 512, generator=torch.Generator().manual_seed(seed)), dim=-1)


def latents(painter: Painter, rows: list[Row], request: Request, seeds: list[int]) -> Tensor:
    return torch.stack(list(painter.paint(rows, request.sized(MANNEQUIN), seeds)[0]))  # type: ignore[arg-type]


@torch.no_grad()
def plainly(studio: Studio, painter: Painter, request: Request, shown: Shown, seed: int) -> Tensor:
    """The same run with nothing kept and nothing left out: every step computes all keys and values anew, and runs IdentityNet also where its strength is 0."""
    r, method = request.sized(MANNEQUIN), studio.instantid
    told, against = painter.tell([PROMPT], [""], r)
    drawing = torch.from_numpy(draw_kps_small(r.height, r.width, shown.kps)).permute(2, 0, 1)[None].float() / 255
    one = torch.ones(1)

    def said(states: Tensor, tokens: Tensor, index: int) -> Conditioning:
        adapter, control = shown.strengths.at(index, r.num_steps)
        return Conditioning(states, face=FaceCondition(tokens, one * adapter), spatial=SpatialCondition(drawing, tokens, one * control))

    def raw(x: Tensor, t: Tensor, index: int) -> Tensor:
        both = stacked(said(against.states, method.no_face(1), index), said(told.states, method.tokens(shown.embedding), index))
        return predict(studio.unet, method.identity_net, x, t, both)

    with method.attached(studio.unet, keeps=False):
        generators = generators_of([seed])
        noise = noise_of(generators, (painter.channels, r.height // 8, r.width // 8))
        return last_of(guided_together(raw, r.guidance_scale), noise, studio.scheduler(r.solver), r.num_steps, generators, None)


@pytest.mark.parametrize(
    "strengths",
    [
        Strengths(),
        Strengths(controlnet_start=0.2, controlnet_end=0.8, controlnet_scale=0.7),
        Strengths(adapter_start=0.3, adapter_end=0.6, controlnet_scale=0.0),
        Strengths(adapter_scale=0.0),
    ],
    ids=["whole", "net in a window", "adapter in a window, no net", "no adapter"],
)
def test_an_exact_run_equals_the_plain_one_to_1e_5(studio: Studio, painter: Painter, strengths: Strengths):
    request = Request(num_steps=6, height=64, width=64)
    shown = Shown(embedding(1), kps(0) / 2, None, strengths)
    ours, plain = latents(painter, [Row(PROMPT, faces=(shown,))], request, [3]), plainly(studio, painter, request, shown, 3)
    assert float((ours - plain).abs().max() / plain.abs().max()) < 1e-5


def test_a_rows_latents_do_not_depend_on_its_neighbours(painter: Painter):
    """Other people, none, two; other strengths and windows; other prompts: in one batch and alone, to 1e-5 of the largest value."""
    request = Request(num_steps=4, height=64, width=64)
    left = np.zeros((64, 64), np.float32)
    left[:, :32] = 1
    rows = [
        Row(PROMPT, faces=(Shown(embedding(1), kps(0) / 2),)),
        Row("a comic of a mug"),
        Row("a photo of two people", "dark", (Shown(embedding(2), kps(1) / 2, left, Strengths(adapter_scale=0.6)), Shown(embedding(3), kps(2) / 2, 1 - left))),
        Row(PROMPT, faces=(Shown(embedding(4), kps(3) / 2, None, Strengths(controlnet_start=0.5, adapter_end=0.7)),)),
    ]
    together = latents(painter, rows, request, [5, 6, 7, 8])
    for k, row in enumerate(rows):
        alone = latents(painter, [row], request, [5 + k])[0]
        assert float((together[k] - alone).abs().max() / alone.abs().max()) < 1e-5
