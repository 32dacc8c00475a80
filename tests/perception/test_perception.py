"""Detector targets, margin loss, reader scores: what must hold before any training."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selfsame.mannequins.people import split_person
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import neutral_scene
from selfsame.perception.detector import STRIDE, UNIT, FaceDetector, detect, faces_of, targets
from selfsame.perception.embedders import ENCODER_CROP, JUDGE_CROP, FaceEncoder, JudgeNet, MarginLoss, rank1, to_crops
from selfsame.perception.reader import ATTRIBUTES, AttributeReader, agreement, readable, reader_loss
from selfsame.weights.mannequin import load_into


class Oracle(torch.nn.Module):
    """Says exactly what the targets ask."""

    def __init__(self, boxes: torch.Tensor, kps: torch.Tensor) -> None:
        super().__init__()
        self.boxes, self.kps = boxes, kps

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        h, w = pixels.shape[-2] // STRIDE, pixels.shape[-1] // STRIDE
        score, _, offsets = targets(self.boxes, self.kps, h, w)
        return torch.cat([(score * 20 - 10)[:, None], offsets], 1)


def test_a_perfect_network_finds_exactly_the_face():
    boxes = torch.tensor([[30.0, 20, 90, 100]])
    kps = torch.tensor([[[45.0, 50], [75, 50], [60, 65], [48, 80], [72, 80]]])
    found = detect(Oracle(boxes, kps), np.zeros((128, 128, 3), np.uint8))
    assert len(found) == 1
    assert np.allclose(found[0].box, boxes[0], atol=1e-3)
    assert np.allclose(found[0].kps, kps[0], atol=1e-3)


def test_found_points_scale_with_the_picture():
    boxes = torch.tensor([[30.0, 20, 90, 100]])
    kps = torch.tensor([[[45.0, 50], [75, 50], [60, 65], [48, 80], [72, 80]]])
    large = detect(Oracle(boxes, kps), np.zeros((512, 512, 3), np.uint8))[0]
    assert np.allclose(large.kps, (kps[0] + 0.5) * 4 - 0.5, atol=1e-2)


@pytest.mark.parametrize(("side", "cells"), [(192, 2), (256, 2), (512, 4), (512, 2)])
def test_the_detector_that_ships_finds_small_faces_in_large_pictures(side: int, cells: int):
    net, people, cell = (
        load_into(FaceDetector(), "detector.safetensors"),
        draw([neutral_scene(split_person("test", i)) for i in range(cells * cells)]),
        side // cells,
    )
    image, middles = np.zeros((side, side, 3), np.uint8), []
    for k, person in enumerate(people):
        y, x = divmod(k, cells)
        image[y * cell : (y + 1) * cell, x * cell : (x + 1) * cell] = cv2.resize(person.image, (cell, cell), interpolation=cv2.INTER_AREA)
        middles.append(person.kps[0].mean(0) * cell / 128 + [x * cell, y * cell])
    found = faces_of(net, image)
    assert len(found) == len(people)
    assert all(min(np.linalg.norm(f.kps.mean(0) - m) for f in found) < 0.05 * cell for m in middles)


@pytest.mark.parametrize("zoom", [1, 2, 4, 8])
def test_one_large_face_is_one_face_in_a_picture_of_any_size(zoom: int):
    net, person = load_into(FaceDetector(), "detector.safetensors"), draw([neutral_scene(split_person("test", 0))])[0]
    (small,) = detect(net, person.image)
    (large,) = faces_of(net, np.kron(person.image, np.ones((zoom, zoom, 1), np.uint8)))
    assert np.allclose(large.kps, (small.kps + 0.5) * zoom - 0.5, atol=zoom)


def test_a_picture_without_a_face_has_no_target():
    score, _, offsets = targets(torch.full((1, 4), torch.nan), torch.full((1, 5, 2), torch.nan), 16, 16)
    assert score.sum() == 0
    assert torch.isfinite(offsets).all()
    assert UNIT > STRIDE


def test_conditioner_and_judge_are_different_kinds():
    encoder, judge = FaceEncoder(), JudgeNet()
    kinds = [{type(m) for m in net.modules()} for net in (encoder, judge)]
    assert torch.nn.BatchNorm2d in kinds[0]
    assert torch.nn.BatchNorm2d not in kinds[1]
    assert ENCODER_CROP != JUDGE_CROP
    crops = to_crops([np.zeros((128, 128, 3), np.uint8)], [np.array([[45.0, 50], [75, 50], [60, 65], [48, 80], [72, 80]])], ENCODER_CROP)
    assert encoder.eval()(crops).shape == (1, 512)
    assert judge.eval()(crops).shape == (1, 256)


def test_the_margin_makes_the_true_class_harder():
    torch.manual_seed(0)
    loss = MarginLoss(5, 8, margin=0.3)
    x, people = torch.randn(4, 8), torch.tensor([0, 1, 2, 3])
    with_margin, _ = loss(x, people)
    loss.margin = 0.0
    without, _ = loss(x, people)
    assert with_margin > without
    assert torch.allclose(without, F.cross_entropy(24 * F.normalize(x) @ F.normalize(loss.weight).T, people))


def test_rank1_counts_nearest_by_angle():
    gallery = torch.eye(3)
    assert rank1(torch.tensor([[5.0, 0, 0], [0, 0.1, 0.2]]), gallery, torch.tensor([0, 1])) == 0.5


def test_the_reader_reads_only_what_can_be_seen():
    asked = {"style": "pencil sketch", "clothes": "suit", "clothes_colour": "red", "hat": "none", "hat_colour": "red", "turn": ""}
    assert set(readable(asked)) == {"style", "clothes", "hat"}
    assert agreement(asked, {"style": "pencil sketch", "clothes": "hoodie", "hat": "none"}) == (2, 3)


def test_the_reader_ignores_unread_classes():
    logits = AttributeReader()(torch.zeros(2, 3, 128, 128))
    assert {k: v.shape[1] for k, v in logits.items()} == {k: len(v) for k, v in ATTRIBUTES.items()}
    classes = {k: torch.tensor([-1, -1]) for k in ATTRIBUTES} | {"style": torch.tensor([2, -1])}
    assert float(reader_loss(logits, classes).detach()) == pytest.approx(float(F.cross_entropy(logits["style"][:1], torch.tensor([2])).detach()))
