"""Edits of pictures of any size, with an untrained MimicBrush on the shipped base: what holds whatever the weights know."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import selfsame
from selfsame.cli.main import main
from selfsame.data.edit_sets import world_case
from selfsame.images.files import InputError, read_image, read_metadata, write_image
from selfsame.images.masks import Window, ellipse
from selfsame.mannequins.attributes import Look, View
from selfsame.mannequins.clips import clip_scene
from selfsame.mannequins.people import person_of
from selfsame.mannequins.render import PersonIn, Scene, draw
from selfsame.methods.mimicbrush.method import MimicBrush
from selfsame.perception.depth import DepthNet, depth_of
from selfsame.perception.detector import Found
from selfsame.studio.edits import SIDE, Editor, Region, Square, framed, put_back
from selfsame.studio.inpainting import face_to_replace, put_person
from selfsame.studio.places import Person
from selfsame.studio.request import EditRequest, Request
from selfsame.studio.studio import Studio

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = EditRequest(num_steps=2)


@pytest.fixture(scope="module")
def studio() -> Studio:
    return selfsame.load("mannequin")


@pytest.fixture(scope="module")
def method(studio: Studio) -> MimicBrush:
    torch.manual_seed(0)
    made = MimicBrush.from_base(studio.unet, 128, lora_rank=2).eval().requires_grad_(False)
    made.unet.conv_in.weight.add_(0.02 * torch.randn_like(made.unet.conv_in.weight))  # listens to all its channels
    return made


@pytest.fixture
def editor(studio: Studio, method: MimicBrush) -> Editor:
    made = Editor(studio, method)
    torch.manual_seed(0)
    made.depth_net = DepthNet().eval().requires_grad_(False)
    made.depth_net.head.bias.fill_(0.5)  # somewhere near
    return made


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [draw([clip_scene("test", i, 1)[0]])[0].image for i in range(3)]


def box(height: int, width: int, y: int, x: int, dy: int, dx: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + dy, x : x + dx] = 255
    return mask


def test_colours_are_measured_where_nothing_was_painted(pictures: list[np.ndarray]):
    """Whole cells are painted, more than the mask: a result that is right outside them is not moved by what it is inside."""
    source = pictures[0]
    mask = box(128, 128, 41, 43, 30, 30)
    square, inside, window = framed(source, mask, 1.8)
    result = np.where(inside[..., None], np.uint8(0), square)
    plain, matched = (put_back(source, result, mask, window, EditRequest(feather=0, match_colour=on)) for on in (False, True))
    assert np.abs(matched.astype(int) - plain).max() <= 6  # there and back again in size


@pytest.mark.parametrize(("height", "width"), [(128, 128), (300, 500), (90, 40), (64, 400)])
def test_outside_the_feathered_mask_no_bit_changes(editor: Editor, pictures: list[np.ndarray], height: int, width: int):
    source = np.array(Image.fromarray(pictures[0]).resize((width, height)))
    mask = box(height, width, height // 3, width // 3, height // 4, width // 4)
    made = editor.edit(source, [Region(mask, pictures[1])], QUICK)[0]
    near = box(height, width, height // 3 - QUICK.feather, width // 3 - QUICK.feather, height // 4 + 2 * QUICK.feather, width // 4 + 2 * QUICK.feather) > 0
    assert made.shape == source.shape
    assert np.array_equal(made[~near], source[~near])
    assert not np.array_equal(made[mask > 0], source[mask > 0])


def test_rows_with_different_references_and_none_do_not_disturb_each_other(editor: Editor, pictures: list[np.ndarray]):
    mask = box(SIDE, SIDE, 30, 30, 60, 60) > 0
    squares = [Square(pictures[0], mask, pictures[1]), Square(pictures[2], mask, None), Square(pictures[1], mask, pictures[2])]
    together = editor.paint(squares, [1, 2, 3], QUICK)
    for k, square in enumerate(squares):
        alone = editor.paint([square], [1 + k], QUICK)[0]
        assert np.abs(alone.astype(int) - together[k]).max() <= 1


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_any_guidance_runs_and_the_reference_counts(editor: Editor, pictures: list[np.ndarray], guidance: float):
    mask = box(SIDE, SIDE, 30, 30, 60, 60) > 0
    request = EditRequest(num_steps=2, guidance_scale=guidance)
    a, b = (editor.paint([Square(pictures[0], mask, pictures[k])], [1], request)[0] for k in (1, 2))
    assert not np.array_equal(a, b)


def test_a_reference_is_looked_at_once(editor: Editor, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch):
    calls = 0
    forward = editor.method.reference_net.forward

    def counted(*args: object) -> object:
        nonlocal calls
        calls += 1
        return forward(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(editor.method.reference_net, "forward", counted)
    mask = box(SIDE, SIDE, 30, 30, 60, 60)
    first = editor.edit(pictures[0], [Region(mask, pictures[1])], QUICK)[0]
    assert calls == 2
    editor.edit(pictures[2], [Region(box(SIDE, SIDE, 10, 10, 40, 30), pictures[1])], QUICK)
    assert calls == 2
    assert np.array_equal(first, editor.edit(pictures[0], [Region(mask, pictures[1])], QUICK)[0])


def test_several_regions_are_each_their_own_edit(editor: Editor, pictures: list[np.ndarray]):
    request = EditRequest(num_steps=2, context=1.2)
    source = np.concatenate([pictures[0], pictures[2]], 1)
    left, right = box(128, 256, 40, 30, 40, 40), box(128, 256, 40, 180, 40, 40)
    both = editor.edit(source, [Region(left, pictures[1]), Region(right, pictures[2])], request)[0]
    only = editor.edit(source, [Region(left, pictures[1])], request)[0]
    assert np.array_equal(both[:, :120], only[:, :120])
    assert not np.array_equal(both[right > 0], only[right > 0])


def test_shape_is_kept_by_depth_and_a_reference_mask_shows_a_part(editor: Editor, pictures: list[np.ndarray]):
    mask = box(SIDE, SIDE, 30, 30, 60, 60)
    plain = editor.edit(pictures[0], [Region(mask, pictures[1])], QUICK)[0]
    shaped = editor.edit(pictures[0], [Region(mask, pictures[1])], EditRequest(num_steps=2, keep_shape=True))[0]
    part = editor.edit(pictures[0], [Region(mask, pictures[1], box(SIDE, SIDE, 20, 20, 50, 50))], QUICK)[0]
    assert not np.array_equal(plain, shaped)
    assert not np.array_equal(plain, part)


def test_the_shape_to_keep_is_guided(editor: Editor, pictures: list[np.ndarray]):
    """The row without the reference is not told of the shape either: that shows where a shape is kept and something is guided, and nowhere else."""
    mask = box(SIDE, SIDE, 30, 30, 60, 60)

    def differs(**asked: Any) -> bool:
        made = []
        for guides in (True, False):
            editor.guides_shape = guides
            made.append(editor.edit(pictures[0], [Region(mask, pictures[1])], EditRequest(num_steps=2, **asked))[0])
        return not np.array_equal(*made)

    assert differs(keep_shape=True)
    assert not differs()
    assert not differs(keep_shape=True, guidance_scale=1.0)


def test_shipped_weights_keep_a_shape_that_was_asked_for(studio: Studio):
    """On things of the validation split, with the protocol's steps and guidance: at most half the depth error of a free shape."""
    editor, error = Editor(studio), {True: 0.0, False: 0.0}
    for i in range(4):
        case = world_case("TextureTrans/CrossInstance", "validation", i)
        for kept in error:
            made = editor.edit(case.source, [Region(case.mask, case.reference)], EditRequest(keep_shape=kept, seed=i))[0]
            before, after = (depth_of(editor.depth_net, image) for image in (case.source, made))
            error[kept] += float(np.abs(before - after)[case.mask > 0].mean())
    assert error[True] <= 0.5 * error[False], error


def test_picture_i_is_that_of_its_seed(editor: Editor, pictures: list[np.ndarray]):
    mask = box(SIDE, SIDE, 30, 30, 60, 60)
    two = editor.edit(pictures[0], [Region(mask, pictures[1])], EditRequest(num_steps=2, num_images=2, seed=4))
    five = editor.edit(pictures[0], [Region(mask, pictures[1])], EditRequest(num_steps=2, seed=5))[0]
    assert np.abs(two[1].astype(int) - five).max() <= 1


def test_a_person_is_put_where_the_mask_is_and_nowhere_else(studio: Studio, pictures: list[np.ndarray]):
    who = studio.identity(EXAMPLES / "ada.png")
    source = np.array(Image.fromarray(pictures[0]).resize((300, 200)))
    mask = box(200, 300, 60, 100, 80, 80)
    made, notes = put_person(studio, source, mask, who, Request(num_steps=2), QUICK)
    near = box(200, 300, 60 - 4, 100 - 4, 88, 88) > 0
    assert np.array_equal(made[0][~near], source[~near])
    assert "no face was found under the mask" in notes[0]
    bo = read_image(EXAMPLES / "bo.png")
    _, notes = put_person(studio, bo, box(*bo.shape[:2], 20, 20, 90, 90), who, Request(num_steps=2), QUICK)
    assert not notes


@pytest.mark.parametrize("zoom", [1, 2])
def test_who_takes_a_faces_place_is_as_large_as_the_face_was(studio: Studio, zoom: int):
    stand = [PersonIn(person_of(s), Look(), View(scale=0.75, x=x, y=0.2)) for s, x in ((300_001, -0.5), (300_005, 0.5))]
    source = np.kron(draw([Scene(tuple(stand), width=192)])[0].image, np.ones((zoom, zoom, 1), np.uint8))
    ada = studio.identity(EXAMPLES / "ada.png")

    def right(image: np.ndarray) -> Found:
        return max(studio.faces(image), key=lambda f: float(f.kps[:, 0].mean()))

    face, _ = face_to_replace(studio, source, 1)
    mask = ellipse(source.shape, face.box)  # one that leaves the hair is looked at no closer
    for where, gain in ((face, 0.2), (mask, 0.0)):
        (made,), notes = put_person(studio, source, where, ada, Request(prompt="a photo of a person", num_steps=8), EditRequest())
        assert not notes
        assert 0.75 < np.ptp(right(made).kps[:, 0]) / np.ptp(right(source).kps[:, 0]) < 1.33
        before, after = (studio.recognised(image, [Person(ada)])[0].likeness for image in (source, made))
        assert before is not None
        assert after is not None
        assert after > before + gain


def test_a_small_person_is_painted_enlarged(pictures: list[np.ndarray]):
    large = np.array(Image.fromarray(pictures[0]).resize((512, 512)))
    mask = box(512, 512, 100, 100, 40, 40)
    assert framed(large, mask, 1.8)[2].side == SIDE  # with a reference nothing is enlarged
    assert framed(large, mask, 1.8, SIDE, SIDE // 4)[2].side == round(1.8 * 40)
    assert framed(large, box(512, 512, 9, 9, 9, 9), 1.8, SIDE, SIDE // 4)[2].side == SIDE // 4


# ------------------------------------------------------------------------------------------ command line


@pytest.fixture
def files(tmp_path: Path, pictures: list[np.ndarray]) -> dict[str, str]:
    made = {"source": pictures[0], "reference": pictures[1], "mask": box(SIDE, SIDE, 30, 30, 60, 60), "other": box(64, 64, 3, 3, 9, 9)}
    for name, array in made.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    return {name: str(tmp_path / f"{name}.png") for name in made} | {"out": str(tmp_path / "out.png")}


def test_edit_from_the_command_line(files: dict[str, str], editor: Editor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(Editor, "method", editor.method)
    args = ["edit", "--source", files["source"], "--mask", files["mask"], "--reference", files["reference"], "--num-steps", "2", "--out", files["out"]]
    assert main(args) == 0
    assert files["out"] in capsys.readouterr().out
    about = read_metadata(files["out"])
    assert about["edit"]["num_steps"] == 2
    assert len(about["sources"]) == 3
    assert main([*args, "--num-images", "2"]) == 0
    assert Path(files["out"].replace(".png", "-2.png")).exists()
    capsys.readouterr()
    args[args.index("--reference") + 1] = files["source"]
    assert main(args) == 2
    assert "is the source itself" in capsys.readouterr().err


def test_a_person_from_the_command_line(files: dict[str, str], capsys: pytest.CaptureFixture[str]):
    args = ["edit", "--source", files["source"], "--mask", files["mask"], "--person", str(EXAMPLES / "ada.png"), "--num-steps", "2", "--out", files["out"]]
    assert main(args) == 0
    assert "no face was found under the mask" in capsys.readouterr().err
    plain = read_image(files["out"])
    identity, folder = Path(files["out"]).with_name("ada.safetensors"), Path(files["out"]).with_name("ada")
    selfsame.load("mannequin").identity(EXAMPLES / "ada.png").save(identity)
    folder.mkdir()
    (folder / "1.png").write_bytes((EXAMPLES / "ada.png").read_bytes())
    for same in (identity, folder):
        args[args.index("--person") + 1] = str(same)
        assert main(args) == 0
        assert np.array_equal(read_image(files["out"]), plain)
    assert main([*args, "--adapter-scale", "0.2", "--negative-prompt", "a hat"]) == 0
    assert not np.array_equal(read_image(files["out"]), plain)
    assert read_metadata(files["out"])["adapter_scale"] == 0.2
    for more, says in ((["--adapter-scale", "3"], "strength 3"), (["--person", str(identity), str(EXAMPLES / "bo.png")], "stands alone")):
        capsys.readouterr()
        assert main([*args, *more]) == 2
        assert says in capsys.readouterr().err


def test_without_a_mask_a_person_takes_a_faces_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The chosen one's, hair and all; the neighbour stays bit for bit."""
    pair = np.concatenate([read_image(EXAMPLES / f"{name}.png") for name in ("bo", "cleo")], 1)
    source, out = write_image(tmp_path / "pair.png", pair), tmp_path / "out.png"
    args = ["edit", "--source", str(source), "--person", str(EXAMPLES / "ada.png"), "--num-steps", "2", "--out", str(out)]
    middle = pair.shape[1] // 2
    for into, (changed, kept) in enumerate(((slice(0, middle), slice(middle, None)), (slice(middle, None), slice(0, middle)))):
        assert main([*args, "--into", str(into)]) == 0
        made = read_image(out)
        assert np.array_equal(made[:, kept], pair[:, kept])
        assert not np.array_equal(made[:, changed], pair[:, changed])
    assert main(args) == 0
    assert "2 faces, the largest is used; --into 0..1" in capsys.readouterr().err
    mask = write_image(tmp_path / "mask.png", np.zeros_like(pair))
    for more, says in ((["--into", "2"], "choose 0 to 1"), (["--into", "0", "--mask", str(mask)], "--into belongs to")):
        assert main([*args, *more]) == 2
        assert says in capsys.readouterr().err
    write_image(source, np.full((64, 64, 3), 90, np.uint8))
    assert main(args) == 2
    assert "give --mask, white where" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--source": "nowhere.png"}, "no such file"),
        ({"--mask": "other"}, "64 x 64"),
        ({"--reference": ""}, "one of them"),
        ({"--person": str(EXAMPLES / "ada.png")}, "one of them"),
        ({"--out": "out.jpg"}, "PNG"),
        ({"--guidance-scale": "nan"}, "guidance"),
        ({"--solver": "eulr"}, "did you mean 'euler'"),
        ({"--feather": "-1"}, "feather"),
        ({"--context": "0.5"}, "context"),
        ({"--num-steps": "201"}, "steps"),
        ({"--reference-mask": "mask mask"}, "reference masks"),
    ],
)
def test_bad_input_is_one_line(files: dict[str, str], change: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]):
    flags = {"--source": "source", "--mask": "mask", "--reference": "reference", "--out": "out"} | change
    args = [part for flag, value in flags.items() if value for part in (flag, *(files.get(v, v) for v in value.split(" ")))]
    assert main(["edit", *args]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert says in error
    assert not Path(files["out"]).exists()


@pytest.mark.parametrize(("height", "width"), [(600, 600), (128, 128)])
def test_a_thin_line_is_painted_too(editor: Editor, pictures: list[np.ndarray], height: int, width: int):
    source = np.array(Image.fromarray(pictures[0]).resize((width, height)))
    line = box(height, width, height // 2, 20, 1, width - 60)
    made = editor.edit(source, [Region(line, pictures[1])], EditRequest(num_steps=1, feather=0))[0]
    assert not np.array_equal(made[line > 0], source[line > 0])
    assert np.array_equal(made[line == 0], source[line == 0])
    put_person(editor.studio, source, line, editor.studio.identity(EXAMPLES / "ada.png"), Request(num_steps=1), EditRequest(num_steps=1))


def test_specks_far_apart_are_painted_too(editor: Editor):
    mask = np.zeros((3000, 3000), np.uint8)
    mask[10, 10] = mask[2900, 2900] = 255
    square, inside, _ = framed(np.zeros((3000, 3000, 3), np.uint8), mask, 2.0)
    assert square.shape[:2] == inside.shape
    assert inside.sum() == 2 * 8 * 8


def test_very_long_pictures_cost_no_square_of_their_length(editor: Editor, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch):
    """A reference is looked at small; a mask along a whole source is refused in one line, a part of it is painted."""
    cut = Window.crop

    def watched(window: Window, image: np.ndarray, around: int) -> np.ndarray:
        assert window.side <= 2000, "a square of the picture's length was made"
        return cut(window, image, around)

    monkeypatch.setattr(Window, "crop", watched)
    long = np.ascontiguousarray(np.tile(pictures[1], (160, 1, 1)))  # 128 x 20480
    made = editor.edit(pictures[0], [Region(box(SIDE, SIDE, 30, 30, 60, 60), long)], EditRequest(num_steps=1))[0]
    assert made.shape == pictures[0].shape
    editor.edit(long, [Region(box(len(long), SIDE, 300, 30, 60, 60), pictures[1])], EditRequest(num_steps=1))
    with pytest.raises(InputError, match="mask a smaller part"):
        editor.edit(long, [Region(box(len(long), SIDE, 0, 30, 20000, 60), pictures[1])], QUICK)
    with pytest.raises(InputError, match="the reference mask is"):
        editor.edit(pictures[0], [Region(box(SIDE, SIDE, 30, 30, 60, 60), long, box(len(long), SIDE, 0, 30, 20000, 60))], QUICK)


def test_many_pictures_of_one_source_encode_it_once(editor: Editor, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch):
    seen = []
    encoded = editor.pixels_to_latents
    monkeypatch.setattr(editor, "pixels_to_latents", lambda square: seen.append(1) or encoded(square))
    regions = [Region(box(SIDE, SIDE, y, 30, 30, 60), pictures[2]) for y in (10, 80)]
    editor.edit(pictures[0], regions, replace(QUICK, num_images=3))
    assert len(seen) == 1 + 1 + 3, "the reference, the first region's one collage, the second's three"


def test_a_mask_that_does_not_fit_is_refused(editor: Editor, pictures: list[np.ndarray]):
    for mask in (box(64, 64, 3, 3, 9, 9), np.zeros((SIDE, SIDE), np.uint8)):
        with pytest.raises(InputError, match="does not fit its picture"):
            editor.edit(pictures[0], [Region(mask, pictures[1])], QUICK)


def test_a_tiny_picture_and_no_region_are_refused(editor: Editor, pictures: list[np.ndarray]):
    with pytest.raises(InputError, match="at least 8 x 8"):
        editor.edit(pictures[0][:4], [Region(box(4, 128, 1, 1, 2, 2), pictures[1])], QUICK)
    with pytest.raises(InputError, match="nothing to paint"):
        editor.edit(pictures[0], [], QUICK)


def test_what_edit_does_not_use_it_refuses(files: dict[str, str], capsys: pytest.CaptureFixture[str]):
    plain = ["edit", "--source", files["source"], "--mask", files["mask"]]
    photos = Path(files["out"]).parent / "photos"
    photos.mkdir()
    shutil.copy(EXAMPLES / "ada.png", photos / "1.png")
    for args, says in (
        ([*plain, "--person", str(photos), "--out", str(photos / "2.png")], "--out"),
        ([*plain, "--reference", files["reference"], "--prompt", "a mug", "--out", files["out"]], "takes no words"),
        ([*plain, "--reference", files["reference"], "--controlnet-scale", "0.5", "--out", files["out"]], "--controlnet-scale belongs to --person"),
        ([*plain, "--reference", files["reference"], "--out", files["source"]], "would be overwritten"),
        (["edit", "--source", files["source"], "--mask", "--reference", files["reference"], "--out", files["out"]], "--mask"),
    ):
        assert main(args) == 2
        assert says in capsys.readouterr().err
