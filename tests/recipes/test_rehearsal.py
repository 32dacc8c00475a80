"""Painting during training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfsame.images.align import crop_face
from selfsame.mannequins.people import split_person
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import neutral_scene
from selfsame.models.mannequin import new_vae
from selfsame.perception.embedders import ENCODER_CROP, FaceEncoder
from selfsame.recipes.common import to_pixels
from selfsame.recipes.rehearsal import Rehearsal, Rehearsing, aligned, between


class Net(nn.Module):
    """As much of a network as the loop needs: what it says depends on one number."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        assert timesteps.shape == (len(noisy),)
        return self.gain * noisy.roll(1, 1)


KPS = [np.array([[49.0, 55], [78, 54], [64, 70], [53, 85], [76, 84]])] * 2


@pytest.fixture
def rehearsing() -> Rehearsing:
    torch.manual_seed(0)
    return Rehearsing(new_vae(), FaceEncoder(), how=Rehearsal(num_steps=5))


def noise() -> Tensor:
    return torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_face_is_brought_to_the_same_place_as_without_gradients():
    picture = draw([neutral_scene(split_person("validation", 3))])[0]
    pixels = to_pixels(picture.image[None]).requires_grad_(True)
    ours = aligned(pixels, [picture.kps[0]])
    theirs = crop_face(picture.image, picture.kps[0], ENCODER_CROP.size, share=ENCODER_CROP.share, shift_y=ENCODER_CROP.shift_y, shrink=False)
    inside = slice(16, -16)
    off = ((ours[0].permute(1, 2, 0).detach().numpy() + 1) * 127.5 - theirs.astype(np.float32))[inside, inside]
    assert np.abs(off).mean() < 1.5, "grey levels"
    ours.sum().backward()
    assert pixels.grad is not None
    assert float(pixels.grad.abs().sum()) > 0


def test_what_is_told_learns_and_what_guidance_runs_against_does_not(rehearsing: Rehearsing):
    told, against = Net(), Net()
    loss = rehearsing.unlikeness(told, against, noise(), torch.randn(2, 512), KPS)
    loss.backward()
    assert told.gain.grad is not None
    assert float(told.gain.grad.abs()) > 0
    assert against.gain.grad is None
    assert 0 < loss.item() < 2
    assert not any(p.requires_grad for net in (rehearsing.vae, rehearsing.encoder) for p in net.parameters())


def test_nobody_costs_nothing_and_changes_nothing(rehearsing: Rehearsing):
    torch.manual_seed(3)
    wanted = torch.randn(2, 512)
    state = torch.get_rng_state()
    both = rehearsing.unlikeness(Net(), Net(), noise(), wanted, KPS)
    torch.set_rng_state(state)
    again = rehearsing.unlikeness(Net(), Net(), noise(), wanted, KPS)
    assert torch.equal(both, again), "the looks are drawn from torch's own numbers, which checkpoints keep"
    torch.set_rng_state(state)
    first = rehearsing.unlikeness(Net(), Net(), noise(), wanted * torch.tensor([[1.0], [0.0]]), KPS)
    torch.set_rng_state(state)
    second = rehearsing.unlikeness(Net(), Net(), noise(), wanted * torch.tensor([[0.0], [1.0]]), KPS)
    assert both.item() == pytest.approx((first.item() + second.item()) / 2, rel=1e-4)
    assert rehearsing.unlikeness(Net(), Net(), noise(), torch.zeros(2, 512), KPS).item() == 0


def test_several_faces_of_a_picture_count_alike(rehearsing: Rehearsing):
    wanted = torch.randn(3, 512)

    def cost(faces: list[int], rows: list[int] | None) -> float:
        torch.manual_seed(4)
        return rehearsing.unlikeness(Net(), Net(), noise(), wanted[faces], [KPS[0] + 5 * i for i in faces], rows).item()

    assert cost([0, 1], [0, 1]) == cost([0, 1], None)
    apart = [cost([0], [0]), cost([1], [0]), cost([2], [1])]
    assert cost([0, 1, 2], [0, 0, 1]) == pytest.approx(np.mean(apart), rel=1e-4)


def test_between_two_embeddings_lengths_do_not_count():
    a, b = torch.randn(3, 8), torch.randn(3, 8)
    assert torch.allclose(between(a, b), between(5 * a, 0.1 * b), atol=1e-5)
