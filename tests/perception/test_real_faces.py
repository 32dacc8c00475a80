"""Faces in photographs: on networks with random weights the numbers equal those of the insightface package, file for file."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.cli.main import main
from selfsame.images.align import ARCFACE_112
from selfsame.images.files import InputError, read_image, write_image
from selfsame.mannequins.render import draw
from selfsame.mannequins.world import sample
from selfsame.perception import real_faces
from selfsame.perception.real_faces import SFACE, YUNET, ArcFace, OnnxFaces, OpenCvFaces, Scrfd, normalises_itself, reader_of, session_of, suppressed

needs_insightface = pytest.mark.skipif(importlib.util.find_spec("insightface") is None, reason="make test installs insightface")


class TinyScrfd(nn.Module):
    """SCRFD's inputs and outputs around almost nothing; boxes lie about their cells, and black has no faces: equal scores have no order."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies = nn.ModuleList([nn.Conv2d(3, 8, s, s) for s in (8, 16, 32)])
        self.heads = nn.ModuleList([nn.ModuleList([nn.Conv2d(8, 2 * n, 1) for n in (1, 4, 10)]) for _ in range(3)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels: list[list[Tensor]] = [[], [], []]
        for body, heads in zip(self.bodies, self.heads, strict=True):
            f = torch.tanh(3 * body(x))
            lit = (F.avg_pool2d(x, body.stride).mean(1, keepdim=True) > -0.98).float()  # type: ignore[arg-type]
            for k, (head, n) in enumerate(zip(heads, (1, 4, 10), strict=True)):  # type: ignore[call-overload]
                y = head(f).permute(0, 2, 3, 1).reshape(-1, n)
                shown = lit.repeat(1, 2, 1, 1).permute(0, 2, 3, 1).reshape(-1, 1)
                levels[k].append((torch.sigmoid(4 * y) * shown, y.abs() * 3 + 0.3, y)[k])
        return tuple(y for level in levels for y in level)


class TinyArcFace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 14 * 14, 512))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * 5


class OldArcFace(TinyArcFace):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - 127.5) * 0.0078125)


def exported(net: nn.Module, size: int, path: Path, *, free: bool = False, outputs: list[str] | None = None) -> Path:
    axes = {"input.1": {2: "h", 3: "w"}} if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), (torch.zeros(1, 3, size, size),), str(path), dynamo=False, input_names=["input.1"], output_names=outputs, dynamic_axes=axes
        )
    if isinstance(net, OldArcFace):  # old exporters called nodes Sub and Mul, torch calls them /Sub and /Mul
        model = onnx.load(str(path))
        for node in model.graph.node:
            node.name = node.name.lstrip("/")
        onnx.save(model, str(path))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "antelopev2" / "antelopev2"  # unpacked twice, as people have it
    made.mkdir(parents=True)
    torch.manual_seed(0)
    exported(TinyScrfd(), 640, made / "renamed_detector.onnx", free=True)
    exported(TinyArcFace(), 112, made / "glintr100.onnx")
    return made.parent


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Larger than the detector's square and not square."""
    image = draw([sample("validation", 3).scene])[0].image
    large = cv2.resize(image, (900, 700), interpolation=cv2.INTER_CUBIC)
    return np.clip(large + np.random.default_rng(0).normal(0, 12, large.shape), 0, 255).astype(np.uint8)


@needs_insightface
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [640, 320])
def test_boxes_and_points_equal_insightface(folder: Path, photo: np.ndarray, turned: bool, size: int):
    from insightface.model_zoo.retinaface import RetinaFace

    image = np.ascontiguousarray(photo.transpose(1, 0, 2)) if turned else photo
    path = next(folder.rglob("renamed_detector.onnx"))
    theirs = RetinaFace(str(path))
    theirs.prepare(-1)
    boxes, points = theirs.detect(np.ascontiguousarray(image[..., ::-1]), input_size=(size, size))
    ours = Scrfd(session_of(path))(image, size)
    assert len(ours) == len(boxes) >= 100
    assert np.abs(np.stack([f.box for f in ours]) - boxes[:, :4]).max() < 1e-3
    assert np.abs(np.stack([f.kps for f in ours]) - points).max() < 1e-3
    assert np.allclose([f.score for f in ours], boxes[:, 4], atol=1e-5)


@needs_insightface
@pytest.mark.parametrize("net", [TinyArcFace, OldArcFace])
def test_embeddings_equal_insightface_also_of_faces_that_must_shrink(tmp_path: Path, photo: np.ndarray, net: type[nn.Module]):
    from insightface.app.common import Face
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    torch.manual_seed(1)
    path = exported(net(), 112, tmp_path / "recogniser.onnx")
    theirs, ours = ArcFaceONNX(str(path)), ArcFace(session_of(path), path)
    rng = np.random.default_rng(0)
    for zoom in (0.7, 2.0, 5.0):
        kps = (ARCFACE_112 * zoom + rng.normal(0, 3, (5, 2)) + 60).astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # skimage's, about a method that insightface calls
            expected = theirs.get(np.ascontiguousarray(photo[..., ::-1]), Face(kps=kps))
        made = ours(photo, kps)
        assert float(made @ expected / np.linalg.norm(made) / np.linalg.norm(expected)) > 0.9999
        assert np.linalg.norm(made) == pytest.approx(np.linalg.norm(expected), rel=1e-3)


def test_an_old_graph_is_known_by_its_first_nodes(tmp_path: Path):
    assert normalises_itself(exported(OldArcFace(), 112, tmp_path / "old.onnx"))
    assert not normalises_itself(exported(TinyArcFace(), 112, tmp_path / "new.onnx"))


def test_of_boxes_that_overlap_the_better_stays():
    boxes = np.array([[0, 0, 9, 9], [1, 1, 10, 10], [30, 30, 40, 40], [0, 0, 9, 4]], float)
    assert suppressed(boxes, np.array([0.6, 0.9, 0.7, 0.8])) == [1, 3, 2]


def test_a_folder_gives_faces_largest_first_with_raw_embeddings(folder: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(real_faces, "SCORE", 0.93)
    faces = reader_of(folder)(photo)
    assert len(faces) > 1
    areas = [f.area for f in faces]
    assert areas == sorted(areas, reverse=True)
    assert faces[0].embedding.shape == (512,)
    assert abs(np.linalg.norm(faces[0].embedding) - 1) > 0.1


def test_a_face_that_fills_the_picture_is_looked_for_small(folder: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    reader, sizes = OnnxFaces(folder), []
    detect = reader.detector

    def only_small(image: np.ndarray, size: int) -> list:
        sizes.append(size)
        return detect(image, size)[:1] if size == 128 else []

    monkeypatch.setattr(only_small, "sizes", detect.sizes, raising=False)
    monkeypatch.setattr(reader, "detector", only_small)
    assert len(reader(photo)) == 1
    assert sizes == [640, 320, 128]


def test_what_is_missing_or_broken_is_said(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="no such folder"):
        reader_of(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no"):
        reader_of(tmp_path)
    (tmp_path / "glintr100.onnx").write_bytes(next(folder.rglob("glintr100.onnx")).read_bytes())
    with pytest.raises(InputError, match=r"lacks a detector.*glintr100.onnx \(1 outputs\)"):
        reader_of(tmp_path)
    (tmp_path / "det.onnx").write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="download it again"):
        reader_of(tmp_path)
    with pytest.raises(InputError, match="onnxruntime has no CUDAExecutionProvider"):
        session_of(next(folder.rglob("glintr100.onnx")), ["CUDAExecutionProvider"])
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install .selfsame\[faces\]"):
        real_faces.session_of(tmp_path / "x.onnx")


# ------------------------------------------------------------------------------------------ YuNet and SFace


class TinyYuNet(nn.Module):
    """YuNet's twelve outputs: class, objectness, box and points at three strides, one anchor a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies = nn.ModuleList([nn.Conv2d(3, 8, s, s) for s in (8, 16, 32)])
        self.heads = nn.ModuleList([nn.ModuleList([nn.Conv2d(8, n, 1) for n in (1, 1, 4, 10)]) for _ in range(3)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        parts: list[list[Tensor]] = [[], [], [], []]
        for body, heads in zip(self.bodies, self.heads, strict=True):
            f = torch.tanh(body(x / 100))
            for k, (head, n) in enumerate(zip(heads, (1, 1, 4, 10), strict=True)):  # type: ignore[call-overload]
                y = head(f).permute(0, 2, 3, 1).reshape(1, -1, n)
                parts[k].append(torch.sigmoid(3 * y + 1) if k < 2 else y)
        return tuple(y for part in parts for y in part)


class TinySFace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 14 * 14, 128))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x / 100)


def test_opencv_reads_faces_in_the_pictures_own_pixels(tmp_path: Path, photo: np.ndarray):
    torch.manual_seed(0)
    names = [f"{part}_{stride}" for part in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)]
    exported(TinyYuNet(), 320, tmp_path / YUNET, free=True, outputs=names)
    exported(TinySFace(), 112, tmp_path / SFACE)
    reader = reader_of(tmp_path)
    assert isinstance(reader, OpenCvFaces)
    faces = reader(photo)
    assert faces
    assert faces[0].embedding.shape == (128,)
    assert [f.area for f in faces] == sorted((f.area for f in faces), reverse=True)
    centre = np.stack([f.kps.mean(0) for f in faces])
    assert (centre[:, 0] > 640).any()  # beyond the small picture that YuNet saw


def test_opencvs_files_are_missed_by_name(tmp_path: Path):
    (tmp_path / YUNET).write_bytes(b"x")
    with pytest.raises(InputError, match=SFACE):
        reader_of(tmp_path)
    (tmp_path / SFACE).write_bytes(b"x")
    with pytest.raises(InputError, match="download them again"):
        reader_of(tmp_path)


def test_faces_of_a_photograph_from_the_command_line(
    folder: Path, photo: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(real_faces, "SCORE", 0.93)  # random weights see thousands of faces
    write_image(tmp_path / "photo.png", photo)
    args = ["faces", str(tmp_path / "photo.png"), "--models", str(folder), "--out", str(tmp_path / "drawn.png")]
    assert main(args) == 0
    said = capsys.readouterr().out
    assert said.count("<- used") == 1
    assert "embedding norm" in said
    assert read_image(tmp_path / "drawn.png").shape == photo.shape
    assert main([*args, "--provider", "MagicExecutionProvider"]) == 2
    assert "onnxruntime has no MagicExecutionProvider" in capsys.readouterr().err
    assert main(["faces", str(tmp_path / "photo.png"), "--provider", "CPUExecutionProvider"]) == 2
    assert "--models" in capsys.readouterr().err


def test_a_detector_of_one_size_is_asked_for_no_other(tmp_path: Path, photo: np.ndarray):
    torch.manual_seed(0)
    exported(TinyScrfd(), 320, tmp_path / "det.onnx")
    exported(TinyArcFace(), 112, tmp_path / "rec.onnx")
    faces = OnnxFaces(tmp_path)
    assert faces.detector.sizes == (320,)
    faces(np.zeros((64, 64, 3), np.uint8))
    faces(np.zeros((3000, 20, 3), np.uint8))
    assert faces.digest == OnnxFaces(tmp_path).digest
