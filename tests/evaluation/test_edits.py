"""Edits measured: sets that anyone can fill, numbers that mean what they say, a protocol that is pinned."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, Dinov2Config, Dinov2Model

import selfsame
from selfsame.cli.main import main
from selfsame.data.edit_sets import TRACKS, EditCase, is_inner, read_track, world_case, write_case
from selfsame.evaluation.pictures import box_of, clean_crop, psnr, ssim
from selfsame.images.files import InputError
from selfsame.methods.mimicbrush.method import MimicBrush
from selfsame.perception.depth import DepthNet
from selfsame.perception.similarity import CLIP_STATISTICS, StockClip, StockDino
from selfsame.recipes.measure import edits as measure
from selfsame.recipes.measure.edits import BASELINES, EDITS, OURS, edits, edits_digest
from selfsame.recipes.measure.protocols import protocol
from selfsame.studio.edits import Editor
from selfsame.weights.mannequin import checked_folder


@pytest.fixture(scope="module")
def cases() -> dict[str, EditCase]:
    return {track: world_case(track, "test", 0) for track in TRACKS}


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    method = MimicBrush.from_base(selfsame.load("mannequin").unet, 128, lora_rank=2).eval().requires_grad_(False)
    method.unet.conv_in.weight.add_(0.02 * torch.randn_like(method.unet.conv_in.weight))
    monkeypatch.setattr(Editor, "method", method)
    monkeypatch.setattr(Editor, "depth_net", DepthNet().eval().requires_grad_(False))


@pytest.mark.parametrize("track", TRACKS)
def test_cases_of_the_world_hide_what_differs(cases: dict[str, EditCase], track: str):
    case = cases[track]
    again = world_case(track, "test", 0)
    assert case.about == again.about
    assert np.array_equal(case.source, again.source)
    assert case.truth is not None
    assert case.is_inner == is_inner(track)
    changed = np.abs(case.truth.astype(int) - case.source).max(2) > 12
    assert changed.any() != is_inner(track)
    assert (changed & (case.mask == 0)).sum() <= 0.02 * max(1, changed.sum())  # outside the mask the truth is the source, but for light thrown by the part


def test_a_set_is_read_as_it_was_written(tmp_path: Path, cases: dict[str, EditCase]):
    for track, case in cases.items():
        write_case(tmp_path, track, case)
        (again,) = read_track(tmp_path, track)
        assert isinstance(again, EditCase)
        assert again.prompt == case.prompt
        assert again.truth is not None
        for name in ("source", "mask", "reference", "reference_mask", "truth", "part"):
            assert np.array_equal(getattr(again, name), getattr(case, name))


def test_a_bad_case_is_named_and_the_others_stay(tmp_path: Path, cases: dict[str, EditCase]):
    track = TRACKS[1]
    for name in "ab":
        case = cases[track]
        write_case(tmp_path, track, EditCase(name, case.source, case.mask, case.reference))
    (tmp_path / track / "a_source_mask.png").unlink()
    first, second = read_track(tmp_path, track)
    assert isinstance(first, InputError)
    assert "a_source_mask.png" in str(first)
    assert isinstance(second, EditCase)
    assert second.truth is not None  # the source itself


def test_equal_pictures_score_best_and_noise_worse():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    near, far = (np.clip(a + rng.normal(0, s, a.shape), 0, 255).astype(np.uint8) for s in (4, 60))
    assert ssim(a, a) == pytest.approx(1, abs=1e-5)
    assert psnr(a, a) == 100
    assert ssim(a, near) > ssim(a, far)
    assert psnr(a, near) > psnr(a, far)
    assert psnr(a, near) == pytest.approx(10 * np.log10(255**2 / np.mean((a.astype(float) - near) ** 2)), abs=1e-3)
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(a, a[:20])


def test_boxes_grow_inside_the_picture_and_crops_are_clean():
    mask = np.zeros((30, 50), bool)
    mask[0:2, 47:50] = True
    rows, columns = box_of(mask, 11)
    assert (rows.start, rows.stop, columns.start, columns.stop) == (0, 11, 39, 50)
    crop = clean_crop(np.zeros((30, 50, 3), np.uint8), mask, 60)
    assert crop.shape == (60, 60, 3)
    assert crop[30, 30].max() < 10
    assert crop[-1].min() > 240
    with pytest.raises(ValueError, match="empty mask"):
        box_of(np.zeros((3, 3), bool))


def test_the_protocol_is_pinned():
    p = protocol(EDITS)
    assert p["asked_sha256"] == edits_digest(p)
    assert edits_digest({**p, "seed": 1}) != p["asked_sha256"]


@pytest.mark.usefixtures("untrained")
def test_a_report_of_every_row(tmp_path: Path, cases: dict[str, EditCase], monkeypatch: pytest.MonkeyPatch):
    for track, case in cases.items():
        write_case(tmp_path / "set", track, case)
    monkeypatch.setattr(measure, "protocol", lambda name: {**protocol(name), "num_steps": 2})
    report = edits(tmp_path, folder=tmp_path / "set")
    names = {r.name for r in report.rows}
    for track in TRACKS:
        assert {f"{track}: {n}" for n in (OURS, *BASELINES[:4], "oracle")} <= names
        assert (f"{track}: MimicBrush, shape free" in names) == track.startswith("Texture")
        oracle = next(r for r in report.rows if r.name == f"{track}: oracle").columns
        ours = next(r for r in report.rows if r.name == f"{track}: {OURS}").columns
        assert float(oracle["SSIM"]) > float(ours["SSIM"])
        assert float(oracle["perceptual"]) < float(ours["perceptual"])
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert any("minus cut and paste" in n for n in report.notes)
    assert any("SSIM, MimicBrush over the oracle's" in n for n in report.notes)
    assert any("depth error, MimicBrush over that with the shape free" in n for n in report.notes)
    assert any("reader-I is by a net that conditions nothing" in n for n in report.notes)
    monkeypatch.setattr(measure, "_made", lambda *_: pytest.fail("painted again"))
    again = edits(tmp_path, folder=tmp_path / "set")  # goes on from the pictures that are there
    without = [{k: v for k, v in r.columns.items() if k != "s"} for r in report.rows]
    assert [{k: v for k, v in r.columns.items() if k != "s"} for r in again.rows] == without
    assert [c.said.split(" ")[0] for c in report.cases] == [t.split(" ")[0] for t in TRACKS]  # each track's worst, beside what was asked


def test_the_truth_is_most_like_itself_and_the_background_does_not_count(cases: dict[str, EditCase]):
    studio = selfsame.load("mannequin")
    scorer = measure.Scorer(measure.reader_net(), measure.WorldClip(studio), Editor(studio))
    case = cases[TRACKS[0]]
    assert case.truth is not None
    assert case.part is not None
    outside = case.truth.copy()
    outside[case.part == 0] = 0
    right, cut, wrong = (scorer.scores(case, image) for image in (case.truth, outside, case.source))
    for key in ("CLIP-I to the truth", "reader-I to the truth"):
        assert right[key] == pytest.approx(1, abs=1e-4)
        assert cut[key] == pytest.approx(1, abs=1e-4)
        assert wrong[key] < right[key]


@pytest.mark.usefixtures("untrained")
def test_stock_extractors_read_pictures_and_prompts(tmp_path: Path):
    """What CLIP's and DINO's own classes say of pixels that were prepared by hand; a folder of something else is named."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=16)
    text = CLIPTextConfig(**sizes, vocab_size=1500, max_position_embeddings=16, bos_token_id=0, eos_token_id=1)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).eval()
    model.save_pretrained(tmp_path / "clip")
    shutil.copytree(checked_folder("base/tokenizer"), tmp_path / "clip", dirs_exist_ok=True)
    Dinov2Model(Dinov2Config(**sizes, image_size=56, patch_size=14)).save_pretrained(tmp_path / "dino")
    grey, noise = np.full((32, 32, 3), 128, np.uint8), np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    clip, dino = StockClip(tmp_path / "clip"), StockDino(tmp_path / "dino")
    seen = clip.images([grey, noise])
    assert torch.allclose(seen.norm(dim=1), torch.ones(2))
    assert clip.prompt("a photo of a person " * 9).shape == (8,)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in CLIP_STATISTICS)
    byhand = (torch.full((3, 32, 32), 128 / 255) - mean) / std
    features = model.visual_projection(model.vision_model(byhand[None]).pooler_output)
    assert torch.allclose(seen[0], torch.nn.functional.normalize(features, dim=-1)[0], atol=1e-5)
    one, two = dino.images([grey, noise])
    assert float(one @ one) == pytest.approx(1, abs=1e-5)
    assert float(one @ two) < 0.9999
    values = load_file(tmp_path / "clip/model.safetensors")
    shutil.copytree(tmp_path / "clip", tmp_path / "cut")
    save_file({k: v for k, v in values.items() if k != "text_projection.weight"}, tmp_path / "cut/model.safetensors", {"format": "pt"})
    wrong = (
        (StockClip, "none", "no config.json"),
        (StockDino, "clip", "holds a clip"),
        (StockClip, "dino", "holds a dinov2"),
        (StockClip, "cut", "text_projection"),
    )
    for kind, folder, said in wrong:
        with pytest.raises(InputError, match=said):
            kind(tmp_path / folder)
    write_case(tmp_path / "set", TRACKS[1], world_case(TRACKS[1], "test", 0))
    report = edits(tmp_path, folder=tmp_path / "set", only=("cut and paste", "oracle"), clip=tmp_path / "clip", dino=tmp_path / "dino")
    assert all(np.isfinite(float(r.columns[head])) for r in report.rows for head in ("CLIP-I", "CLIP-T", "DINO-I"))
    assert report.protocol["extractors"]["DINO"].endswith("dino")
    assert main(["evaluate", "identity", "--dino", str(tmp_path / "dino"), "--out", str(tmp_path / "out")]) == 2


@pytest.mark.usefixtures("untrained")
def test_anyones_folder_is_measured_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", "edits", "--world", "1", "--split", "test", "--out", str(tmp_path / "set")]) == 0
    args = ["evaluate", "edits", "--edit-set", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--rows", "cut and paste", "oracle"]
    assert main(args) == 0
    assert "TextureTrans/WithinInstance: oracle" in capsys.readouterr().out
    for extra in ("truth", "prompt", "part"):  # what nobody has to give
        for path in (tmp_path / "set").rglob(f"*_{extra}.*"):
            path.unlink()
    assert main([*args[:7], "cut and paste", "inpainting by text", "oracle"]) == 0
    assert main([*args, "--people", "-1"]) == 2
    assert "--people -1" in capsys.readouterr().err
    assert main(["prepare", "edits", "--world", "2", "--split", "test", "--out", str(tmp_path / "set")]) == 0
    assert main(["prepare", "edits", "--world", "1", "--split", "test", "--out", str(tmp_path / "set")]) == 2
    assert "0001_source.png: is a case beyond the 1 asked for" in capsys.readouterr().err
    args[3] = str(tmp_path)
    assert main(args) == 2
    assert "holds no case" in capsys.readouterr().err
    assert main(["evaluate", "edits", "--rows", "mimic", "--out", str(tmp_path / "out")]) == 2
    assert "choose from" in capsys.readouterr().err
