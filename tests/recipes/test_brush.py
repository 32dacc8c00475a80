"""MimicBrush for one's own base: pairs of videos and stills, tiny networks in their libraries' own folders, weights that the editor reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from selfsame.cli.main import main
from selfsame.data.pair_table import PairTable
from selfsame.data.pairs import PairsJob, prepare_pairs, read_pairs
from selfsame.images.files import InputError
from selfsame.mannequins.clips import clip_scene
from selfsame.mannequins.render import draw
from selfsame.methods.mimicbrush.samples import PairSamples
from selfsame.recipes import brush
from selfsame.recipes.brush import mimicbrush_of
from selfsame.recipes.common import Options
from selfsame.studio.brush import BrushEditor
from selfsame.studio.edits import Region
from selfsame.studio.request import EditRequest
from selfsame.training.loop import AnotherRun
from tests.goldens import mimicbrush_recipe as recipe
from tests.studio.test_brush import DEPTH_CONFIG

WIDE = PairSamples(ssim_low=-1, ssim_high=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("own")
    frames = [draw([scene])[0].image for scene in clip_scene("test", 1, 4)]
    (root / "videos").mkdir()
    (root / "stills").mkdir()
    writer = cv2.VideoWriter(str(root / "videos/a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 8, (128, 128))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    marks = np.zeros((128, 128), np.uint8)
    marks[30:80, 40:90] = 1
    Image.fromarray(frames[0]).save(root / "stills/b.png")
    Image.fromarray(marks).save(root / "stills/b.mask.png")
    for split in ("train", "validation"):
        for more in ({"videos": root / "videos"}, {"stills": root / "stills"}):
            list(prepare_pairs(PairsJob(root / "pairs", split, **more, how=WIDE), 1))
    unet = recipe.fill(UNet2DConditionModel(**recipe.UNET | {"sample_size": 16}, in_channels=4), "referencenet")
    assert isinstance(unet, UNet2DConditionModel)
    unet.save_pretrained(root / "base/unet")
    recipe.vae().save_pretrained(root / "base/vae")
    (root / "base/scheduler").mkdir()
    (root / "base/scheduler/scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    recipe.image_encoder().save_pretrained(root / "clip")
    about = dict(DEPTH_CONFIG)
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=Dinov2Config(**about.pop("backbone")), **about)).save_pretrained(root / "depth")
    return {"base": root / "base", "image_encoder": root / "clip", "depth": root / "depth", "data": root / "pairs"}


def test_pairs_are_the_same_by_number_and_in_order(folders: dict[str, Path]):
    table = PairTable(folders["data"], "train")
    listed = list(read_pairs(folders["data"], "train"))
    assert len(table) == len(listed) == 3
    assert table.is_still.tolist() == [r["kind"] == "still" for r in listed]
    for i, record in enumerate(listed):
        again = table[i]
        assert np.array_equal(again["first"], record["first"])
        assert np.array_equal(again["second"], record["second"])
        assert (again["mask"] is None) == (record["mask"] is None)
    with pytest.raises(FileNotFoundError, match="selfsame prepare pairs"):
        PairTable(folders["data"], "test")


def test_a_damaged_shard_is_named(folders: dict[str, Path], tmp_path: Path):
    for path in folders["data"].glob("train-*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=r"train-stills-.*is damaged"):
        PairTable(tmp_path, "train")


def test_what_was_trained_is_what_the_editor_paints_with(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(brush, "SHOWN_STEPS", 2)
    networks = {k: folders[k] for k in ("base", "image_encoder", "depth")}
    trained = mimicbrush_of(Options(data=folders["data"], runs=tmp_path, steps=2, batch_size=2), **networks)
    assert trained.samples == 4
    assert {"held_out_inside", "held_out_inside_alone"} <= set(trained.figures)
    assert list((trained.folder / "samples").iterdir())
    weights = trained.folder / "weights"
    assert json.loads((weights / "selfsame.json").read_text()) == {"fusion": "concat"}
    editor = BrushEditor(weights)
    method = trained.module.method  # type: ignore[union-attr]
    assert editor.method.fusion == "concat"
    assert all(torch.equal(v, editor.method.unet.state_dict()[k]) for k, v in method.unet.state_dict().items())
    assert all(torch.equal(v, editor.method.reference_net.unet.state_dict()[k]) for k, v in method.reference_net.unet.state_dict().items())
    base = UNet2DConditionModel.from_pretrained(folders["base"] / "unet")
    assert any(not torch.equal(v, method.unet.state_dict()[k]) for k, v in base.state_dict().items() if "conv_in" not in k), "it has learned"
    source = next(read_pairs(folders["data"], "train"))["first"]
    mask = np.zeros(source.shape[:2], np.uint8)
    mask[40:80, 40:80] = 255
    assert editor.edit(source, [Region(mask, source[::-1].copy())], EditRequest(num_steps=1, solver="ddim"))[0].shape == source.shape
    more = mimicbrush_of(Options(data=folders["data"], runs=tmp_path / "on", steps=1, batch_size=2), **networks, start=weights)
    assert more.module.method.fusion == "concat"  # type: ignore[union-attr]
    with pytest.raises(AnotherRun, match="learned from other models"):  # without --start it is another run
        mimicbrush_of(Options(data=folders["data"], runs=tmp_path / "on", steps=2, batch_size=2), **networks)
    args = ["train", "mimicbrush", "--base", str(folders["base"]), "--data", str(folders["data"]), "--runs", str(tmp_path / "cli"), "--smoke"]
    tower = ["--image-encoder", str(folders["image_encoder"]), "--depth", str(folders["depth"])]
    assert main([*args, *tower]) == 0
    assert "selfsame edit --model mimicbrush --weights" in capsys.readouterr().out
    assert main(args) == 2
    assert "needs --image-encoder and --depth" in capsys.readouterr().err
    assert main(["train", "instantid", *tower]) == 2


def test_what_does_not_fit_is_refused_before_anything_is_learned(folders: dict[str, Path], tmp_path: Path):
    networks = {k: folders[k] for k in ("base", "image_encoder", "depth")}
    options = Options(data=folders["data"], runs=tmp_path / "runs", steps=1)
    own = tmp_path / "base"
    (own / "unet").mkdir(parents=True)
    (own / "scheduler").mkdir()
    config = json.loads((folders["base"] / "unet/config.json").read_text())
    (own / "unet/config.json").write_text(json.dumps(config | {"sample_size": 64}))
    (own / "scheduler/scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    with pytest.raises(InputError, match="squares of 128 pixels in split 'train', this base takes 512"):
        mimicbrush_of(options, **networks | {"base": own})
    (own / "scheduler/scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    with pytest.raises(InputError, match="predicts v_prediction"):
        mimicbrush_of(options, **networks | {"base": own})
    (own / "scheduler/scheduler_config.json").write_text('{"prediction_type": "epsilon", "beta_end": 0.02}')
    with pytest.raises(InputError, match=r"another noise schedule than Stable Diffusion's \(beta_end 0.02\)"):
        mimicbrush_of(options, **networks | {"base": own})
    with pytest.raises(InputError, match="not the image tower"):
        mimicbrush_of(options, **networks | {"image_encoder": folders["depth"]})
    with pytest.raises(FileNotFoundError, match="no pairs of split"):
        mimicbrush_of(replace(options, data=tmp_path), **networks)
