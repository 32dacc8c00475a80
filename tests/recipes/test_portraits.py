"""InstantID for one's own base: photos to portraits, portraits to weights that the same commands read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from selfsame.cli.main import main
from selfsame.data.portraits import PortraitsJob, Report, open_portraits, person_of, prepare_portraits, square_around
from selfsame.images.files import InputError, read_image, write_image
from selfsame.methods.instantid.method import ResamplerSize
from selfsame.methods.instantid.samples import InstantIDSamples, PhotosOf, lend_faces
from selfsame.perception import real_faces
from selfsame.perception.real_faces import RealFace
from selfsame.recipes import portraits as recipe_of_portraits
from selfsame.recipes.common import Options, generator_at
from selfsame.recipes.portraits import Clock, Side, instantid_of, told
from selfsame.studio.real import Folders, RealStudio
from tests.goldens import recipe
from tests.methods.test_instantid_interop import SD15
from tests.perception.test_real_faces import TinyArcFace, TinyScrfd, exported
from tests.studio.test_real import saved_base

ADA = Path(__file__).parents[2] / "examples/ada.png"
SMALL = {"dim": 64, "depth": 1, "heads": 2, "dim_head": 32}


class Reader:
    """Finds ada's face where it is, at any size; grey pictures show nobody."""

    def __call__(self, image: np.ndarray) -> list[RealFace]:
        if image.std() < 1:
            return []
        h, w = image.shape[:2]
        kps = np.array([[0.4, 0.5], [0.6, 0.5], [0.5, 0.58], [0.43, 0.68], [0.57, 0.68]]) * [w, h]
        box = np.array([0.3, 0.3, 0.7, 0.8]) * [w, h, w, h]
        seed = int(image.astype(np.int64).sum() % 2**31)
        return [RealFace(box, kps, 0.9, np.random.default_rng(seed).standard_normal(512).astype(np.float32))]


def noisy(seed: int, height: int = 160, width: int = 128) -> np.ndarray:
    image = cv2.resize(read_image(ADA), (width, height)).astype(np.float32)
    return np.clip(image + np.random.default_rng(seed).normal(0, 4, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for k in range(2):
        for n, who in enumerate(("ada", "ben")):
            (folder / who).mkdir(parents=True, exist_ok=True)
            write_image(folder / who / f"{k}.png", noisy(10 * n + k))
    (folder / "ada" / "0.txt").write_text("a photo of a woman outdoors\n")
    write_image(folder / "alone.png", noisy(77))
    write_image(folder / "ben" / "wall.png", np.full((128, 128, 3), 90, np.uint8))
    write_image(folder / "ben" / "tiny.png", noisy(3, 40, 40))
    (folder / "ben" / "broken.jpg").write_bytes(b"no picture")
    return folder


def made(job: PortraitsJob) -> Report:
    total = Report()
    for report in prepare_portraits(job, Reader()):
        total.add(report)
    return total


def test_photos_become_portraits_and_bad_ones_are_named(photos: Path, tmp_path: Path):
    job = PortraitsJob(tmp_path / "out", photos, "tiny", size=128)
    report = made(job)
    assert (report.sources, report.portraits, report.teachers, report.people) == (8, 5, 2, {"ada": 2, "ben": 2, "alone": 1})
    assert [next(w for w in ("wall", "tiny", "broken") if w in line) for line in report.problems] == ["broken", "tiny", "wall"]
    table = open_portraits(job.folder, "train")
    assert [r["caption"] for r in table.records].count("a photo of a woman outdoors") == 1
    assert {r["caption"] for r in table.records} == {"a photo of a woman outdoors", "a photo of a person"}
    assert table.embeddings.shape == (5, 512)
    assert len(set(table.people[[r["person"] == "ada" for r in table.records]])) == 1
    images = list(table.images())
    assert {i.shape for i in images} == {(128, 128, 3)}
    square, truth = images[0].astype(float), noisy(0)[24:152].astype(float)  # the 128 pixels around the middle of a box from 48 to 128
    assert np.abs(square - truth).mean() < 6, "a JPEG of the photo itself"
    assert np.abs(table.kps[0] - (Reader()(noisy(0))[0].kps - [0, 24])).max() < 1, "key points move with the square"


def test_a_second_run_reads_reports_and_changes_are_seen(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = PortraitsJob(tmp_path / "out", photos, "tiny", size=128)
    first = made(job)
    (shard,) = job.folder.glob("*.tar")
    stamp = shard.stat().st_mtime_ns
    again = made(job)
    assert (again, shard.stat().st_mtime_ns) == (first, stamp)
    (photos / "ben" / "0.txt").write_text("a photo of a man")
    made(replace(job))
    assert "a photo of a man" in {r["caption"] for r in open_portraits(job.folder, "train").records}
    write_image(photos / "carl.png", noisy(5))
    assert made(PortraitsJob(job.folder, photos, "tiny", size=128)).portraits == 6
    assert len(list(job.folder.glob("*.tar"))) == 1, "the shard of fewer photos is gone"
    with pytest.raises(InputError, match="choose another folder"):
        made(replace(job, encoder="other"))


def test_whose_photo_and_which_square():
    assert [person_of(s) for s in ("ada/1.png", "x/ada/1.png", "carl.png")] == ["ada", "x/ada", "carl"]
    assert square_around(100, 60, np.array([0, 70, 60, 100])) == (40, 0, 60), "at the lower end"
    assert square_around(60, 100, np.array([30, 0, 50, 60])) == (0, 10, 60)


def test_somebodys_only_photo_lends_the_face_for_itself_when_allowed():
    people, rows = np.array([4, 7, 4, 9]), np.arange(4)
    assert sorted(PhotosOf(people, rows).of) == [4]
    photos = PhotosOf(people, rows, alone=True)
    assert sorted(photos.of) == [4, 7, 9]
    lent = lend_faces(np.eye(4, dtype=np.float32), photos, [0, 1, 2, 3], InstantIDSamples(max_photos=1), np.random.default_rng(0))
    assert lent[:, 0].argmax(1).tolist() == [2, 1, 0, 3]


@pytest.fixture(scope="module", params=("sdxl", "sd15"))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / request.param
    unet = recipe.fill(UNet2DConditionModel(**(recipe.UNET if request.param == "sdxl" else SD15)), "unet")
    assert isinstance(unet, UNet2DConditionModel)
    saved_base(folder, unet, 2 if request.param == "sdxl" else 1)
    return folder


def test_training_for_a_base_leaves_weights_that_generate_reads(base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recipe_of_portraits, "SHOWN_STEPS", 2)
    for split in ("train", "validation"):
        made(PortraitsJob(tmp_path / "data", photos, "tiny", split, size=128))
    studio = RealStudio(Folders(base))
    width = int(studio.unet.config["cross_attention_dim"])
    before = {k: v.clone() for k, v in studio.unet.state_dict().items()}
    size = ResamplerSize(**SMALL, num_queries=4, output_dim=width)
    options = Options(data=tmp_path / "data", runs=tmp_path / "runs", steps=2, batch_size=2, learning_rate=1e-3)
    trained = instantid_of(options, base, size=size)
    assert np.isfinite(trained.figures["held_out_plain"])
    assert (trained.folder / "samples" / "0000002.png").exists()
    unet = trained.module.unet
    assert isinstance(unet, torch.nn.Module)
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items() if k in before), "the base is frozen"
    loaded = RealStudio(Folders(base, trained.folder / "weights", None)).instantid
    method = trained.module.method
    assert isinstance(method, torch.nn.Module)
    fresh = dict(loaded.state_dict())
    assert all(torch.equal(v, fresh[k]) for k, v in method.state_dict().items())
    on = instantid_of(replace(options, runs=tmp_path / "more", steps=1), base, start=trained.folder / "weights")
    moved = [not torch.equal(v, fresh[k]) for k, v in on.module.method.state_dict().items()]  # type: ignore[union-attr, operator]
    assert any(moved)
    assert len(moved) == len(fresh)


def test_a_batch_is_what_its_portraits_say(base: Path, photos: Path, tmp_path: Path):
    made(PortraitsJob(tmp_path / "data", photos, "tiny", size=128))
    studio, table = RealStudio(Folders(base)), open_portraits(tmp_path / "data", "train")
    side = Side(studio, table, tmp_path / "cache", 128, alone=True)
    clock = Clock(torch.linspace(0.999, 0.01, 1000), "epsilon")
    empty = {k: v[0] for k, v in told(studio, [""]).items()}
    all_of = InstantIDSamples(drop_face=0, drop_text=0, drop_both=0, max_photos=1, face_weight=3)
    at = np.arange(len(table))
    batch = side.batch(at, generator_at(0, 0), all_of, clock, empty)
    said = told(studio, [r["caption"] for r in table.records])
    assert torch.allclose(batch["text"], said["text"], atol=2e-3)
    assert batch["kps_image"].shape == (5, 3, 128, 128)
    assert torch.equal(batch["weight"].mean((1, 2, 3)), torch.ones(5)) or torch.allclose(batch["weight"].mean((1, 2, 3)), torch.ones(5))
    assert batch["weight"].max() > batch["weight"].min()
    if studio.is_xl:
        assert batch["time_ids"][0].tolist() == [160, 128, 24, 0, 128, 128]
        assert torch.allclose(batch["pooled"], said["pooled"], atol=2e-3)
    none = side.batch(at, generator_at(0, 0), replace(all_of, drop_both=1.0), clock, empty)
    assert not none["embedding"].any()
    assert torch.equal(none["text"], empty["text"].expand_as(none["text"]))
    if studio.is_xl:
        assert torch.equal(none["pooled"], empty["pooled"].expand_as(none["pooled"]))


def test_from_the_command_line(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    models = tmp_path / "antelopev2"
    models.mkdir()
    torch.manual_seed(0)
    exported(TinyScrfd(), 640, models / "det.onnx", free=True)
    exported(TinyArcFace(), 112, models / "rec.onnx")
    monkeypatch.setattr(real_faces, "SCORE", 0.955)
    out = tmp_path / "data"
    assert main(["prepare", "portraits", "--photos", str(photos), "--face-models", str(models), "--size", "64", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "broken.jpg" in said.err
    assert main(["prepare", "portraits", "--out", str(out)]) == 2
    assert main(["prepare", "portraits", "--photos", str(tmp_path / "no"), "--face-models", str(models), "--out", str(out)]) == 2
    assert main(["train", "instantid", "--base", str(tmp_path), "--data", str(tmp_path / "nothing")]) == 2
    assert main(["train", "encoder", "--base", str(tmp_path)]) == 2
    assert main(["train", "instantid", "--start", str(tmp_path)]) == 2
    assert main(["train", "instantid", "--base", str(tmp_path), "--ship"]) == 2
    errors = capsys.readouterr().err
    for remedy in ("--photos FOLDER", "no such folder", "selfsame prepare portraits", "belong to instantid", "needs --base", "--start says where"):
        assert remedy in errors
