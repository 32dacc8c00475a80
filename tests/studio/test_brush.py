"""The official MimicBrush weights' layout, at the size of the goldens: loaded, edited with, refused when it is something else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from selfsame.cli.main import main
from selfsame.data.edit_sets import TRACKS, world_case, write_case
from selfsame.diffusion.sampling import guided_together, sample
from selfsame.images.files import InputError, read_image, write_image
from selfsame.methods.mimicbrush import pictures
from selfsame.methods.mimicbrush.checkpoint import POSITION_IDS, mimicbrush_to_official
from selfsame.methods.mimicbrush.method import Reference, inpaint_channels, predict
from selfsame.models.latents import encode
from selfsame.recipes.measure.edits import OURS, edits
from selfsame.studio.brush import BRUSH, DEPTH, PROJECTORS, TOWER, VAE, BrushEditor
from selfsame.studio.edits import Region, Square
from selfsame.studio.painting import generators_of, noise_of
from selfsame.studio.request import EditRequest
from selfsame.values.conditioning import Conditioning, stacked
from tests.goldens import mimicbrush_recipe as recipe
from tests.methods.test_mimicbrush_goldens import official_depth

DEPTH_CONFIG: dict[str, Any] = {
    "backbone": {"hidden_size": 24, "num_hidden_layers": 12, "num_attention_heads": 2, "image_size": 518, "patch_size": 14, "out_indices": [9, 10, 11, 12],
                 "apply_layernorm": True, "reshape_hidden_states": False},
    "reassemble_hidden_size": 24, "patch_size": 14, "neck_hidden_sizes": [4, 4, 8, 8], "fusion_hidden_size": 8, "head_hidden_size": 8, "head_in_index": -1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `selfsame models fetch mimicbrush` would bring, of tiny networks."""
    root = tmp_path_factory.mktemp("mimicbrush")
    (root / BRUSH).parent.mkdir()
    (root / DEPTH).parent.mkdir()
    tower = recipe.image_encoder()
    parts = mimicbrush_to_official(recipe.method(), tower)
    parts["image_encoder"][POSITION_IDS] = torch.arange(257)[None]  # as old transformers saved it
    torch.save(parts, root / BRUSH)
    (root / BRUSH).with_name("config.json").write_text(json.dumps(recipe.UNET | {"sample_size": 16}))
    tower.config.save_pretrained(root / TOWER)
    recipe.vae().save_pretrained(root / VAE)
    (root / DEPTH).with_name("config.json").write_text(json.dumps(DEPTH_CONFIG))
    about = dict(DEPTH_CONFIG)
    net = DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=Dinov2Config(**about.pop("backbone")), **about))
    torch.save(official_depth(net), root / DEPTH)
    return root


@pytest.fixture(scope="module")
def editor(folder: Path) -> BrushEditor:
    return BrushEditor(folder)


def test_an_edit_is_the_official_composition(editor: BrushEditor):
    """Black under the mask, tokens of the reference and of zero pixels, the depth of a picture of zeros, DDIM; posterior means instead of draws."""
    p = pictures.prepared(recipe.image(128, 128, 1), recipe.mask(128, 128), recipe.image(100, 128, 4), size=128)
    method, vae, tower = editor.method, editor.studio.vae, editor.image_encoder
    with torch.no_grad():
        clip = pictures.clip_pixels(p.reference)
        tokens, nothing = method.image_tokens(tower, clip), method.image_tokens(tower, torch.zeros_like(clip))
        reference, collage = (encode(vae, pictures.vae_pixels(x)) for x in (p.reference, p.collage))
        zeros = editor.depth_net(torch.zeros(1, 3, 518, 518)).predicted_depth[:, None]
        channels = inpaint_channels(pictures.latent_mask(p.mask), collage, method.depth_feature(zeros, collage))
        borrowed = Reference(method.reference_net, reference, tokens)

        def both(latents: torch.Tensor, t: torch.Tensor, index: int) -> torch.Tensor:
            with_ = Conditioning(tokens, inpaint=channels, reference=borrowed.condition(t, torch.zeros(1, dtype=torch.long)))
            return predict(method.unet, latents, t, stacked(Conditioning(nothing, inpaint=channels), with_))

        with method.attached("mean"):
            *_, last = sample(guided_together(both, 5.0), noise_of(generators_of([3]), (4, 16, 16)), recipe.scheduler(), 4)
    expected = editor.studio.decode(last.latents)[0]
    square = Square(p.source, p.mask, p.reference)
    made = editor.paint([square], [3], EditRequest(num_steps=4, guidance_scale=5, solver="ddim"))[0]
    assert np.abs(made.astype(int) - expected.astype(int)).max() <= 1


def test_a_large_picture_changes_in_its_region_only_and_shape_can_be_kept(editor: BrushEditor):
    source, mask = recipe.image(300, 420, 1), recipe.mask(300, 420)
    region, quick = Region(mask, recipe.image(90, 70, 4)), EditRequest(num_steps=2, solver="ddim", feather=0)
    free, kept = (editor.edit(source, [region], r)[0] for r in (quick, EditRequest(num_steps=2, solver="ddim", feather=0, keep_shape=True)))
    assert np.array_equal(free[mask == 0], source[mask == 0])
    assert not np.array_equal(free, source)
    assert not np.array_equal(free, kept)


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, image in (("s", recipe.image(200, 300, 1)), ("r", recipe.image(90, 70, 4)), ("m", np.repeat(recipe.mask(200, 300)[..., None], 3, 2))):
        write_image(tmp_path / f"{name}.png", image)
    s, m, r, out = (str(tmp_path / f"{n}.png") for n in ("s", "m", "r", "out"))
    args = ["edit", "--source", s, "--mask", m, "--out", out, "--num-steps", "1"]
    assert main([*args, "--reference", r, "--model", "mimicbrush", "--weights", str(folder)]) == 0
    assert read_image(out).shape == (200, 300, 3)
    for more, says in (
        (["--reference", r, "--model", "mimicbrsh"], "did you mean 'mimicbrush'"),
        (["--reference", r, "--weights", str(folder)], "belongs to --model mimicbrush"),
        (["--person", r, "--model", "mimicbrush"], "is painted by InstantID"),
        (["--reference", r, "--model", "instantid-sdxl"], "paints people"),
        (["--reference", r, "--base", r], "belong to --person"),
        (["--reference", r, "--lora", r], "belong to --person"),
        (["--reference", r, "--model", "mimicbrush", "--weights", str(tmp_path)], "lacks mimicbrush/mimicbrush.bin"),
    ):
        capsys.readouterr()
        assert main([*args, *more]) == 2
        assert says in capsys.readouterr().err


def test_the_official_layout_is_measured_by_the_benchmark(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_case(tmp_path / "set", TRACKS[1], world_case(TRACKS[1], "test", 0))
    monkeypatch.setattr(BrushEditor, "limits", replace(BrushEditor.limits, num_steps=1))
    report = edits(tmp_path / "out", folder=tmp_path / "set", weights=folder)
    assert [row.name.split(": ")[1] for row in report.rows] == [OURS, "cut and paste", "image tokens alone", "reference net alone", "oracle"]
    assert any(f"the weights in {folder}, 1 steps, guidance 5, ddim" in note for note in report.notes)
    assert main(["evaluate", "edits", "--weights", str(folder), "--ablations", "--out", str(tmp_path / "x")]) == 2
    assert main(["evaluate", "words", "--weights", str(folder), "--out", str(tmp_path / "x")]) == 2


def test_many_pictures_after_one_reference_run_its_net_once_a_step(editor: BrushEditor, monkeypatch: pytest.MonkeyPatch):
    calls = []
    forward = editor.method.reference_net.forward
    monkeypatch.setattr(editor.method.reference_net, "forward", lambda *args: calls.append(1) or forward(*args))
    reference = recipe.image(80, 90, 7)
    editor.edit(recipe.image(300, 420, 1), [Region(recipe.mask(300, 420), reference)], EditRequest(num_steps=3, solver="ddim", num_images=4))
    editor.edit(recipe.image(200, 200, 2), [Region(recipe.mask(200, 200), reference)], EditRequest(num_steps=3, solver="ddim"))
    assert len(calls) == 3


def test_another_file_in_its_place_is_named(folder: Path, tmp_path: Path):
    def broken(change: str) -> BrushEditor:
        root = tmp_path / change
        shutil.copytree(folder, root)
        if change == "part":
            values = torch.load(root / BRUSH, weights_only=True)
            torch.save({k: v for k, v in values.items() if k != "unet"}, root / BRUSH)
        elif change == "size":
            (root / BRUSH).with_name("config.json").unlink()
        elif change == "cut":
            (root / BRUSH).write_bytes((root / BRUSH).read_bytes()[:1000])
        elif change == "depth":
            torch.save({"x": torch.zeros(1)}, root / DEPTH)
        return BrushEditor(root)

    with pytest.raises(InputError, match="lacks unet"):
        _ = broken("part").method
    with pytest.raises(InputError, match="has shape"):
        _ = broken("size").method
    with pytest.raises(InputError, match=r"damaged|more than tensors"):
        _ = broken("cut").method
    with pytest.raises(InputError, match="depth_anything does not fit"):
        _ = broken("depth").depth_net


def test_stock_folders_hold_the_same_networks(folder: Path, editor: BrushEditor, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Converted, the weights are safetensors that diffusers and transformers load, edits are the same bit for bit, and nothing half-written stays."""
    out = tmp_path / "stock"
    assert main(["convert", str(folder), "--out", str(out)]) == 0
    assert not list(tmp_path.rglob("*.bin"))
    for name, ours in (("unet", editor.method.unet), ("reference_unet", editor.method.reference_net.unet)):
        theirs = UNet2DConditionModel.from_pretrained(out / name).state_dict()  # type: ignore[union-attr]
        assert all(torch.equal(v, theirs[k]) for k, v in ours.state_dict().items())
    p = pictures.prepared(recipe.image(128, 128, 1), recipe.mask(128, 128), recipe.image(100, 128, 4), size=128)
    square, quick = Square(p.source, p.mask, p.reference, editor.depth(p.source)), EditRequest(num_steps=2, solver="ddim")
    again = BrushEditor(out)
    assert np.array_equal(again.depth(p.source), editor.depth(p.source))
    assert np.array_equal(again.paint([square], [3], quick)[0], editor.paint([square], [3], quick)[0])
    assert main(["convert", str(folder), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    (out / PROJECTORS).write_bytes((out / PROJECTORS).read_bytes()[:100])
    with pytest.raises(InputError, match=PROJECTORS):
        _ = BrushEditor(out).method
    shutil.rmtree(out / "depth")
    with pytest.raises(InputError, match="lacks depth"):
        BrushEditor(out)
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "lacks mimicbrush/mimicbrush.bin" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["stock"]
