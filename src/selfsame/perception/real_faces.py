"""Faces in photographs: SCRFD and ArcFace files run by onnxruntime, YuNet and SFace run by OpenCV.

InstantID's own encoder is `antelopev2` (SCRFD 10G with key points, ArcFace R100); `buffalo_l` and AuraFace have the same graphs. No
insightface package is needed: anchors, suppression, alignment and normalisation are here and equal its numbers on the same files.
Pictures are h w 3 uint8 RGB; boxes xyxy and key points (x, y) are in the picture's pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from selfsame.images.align import crop_face
from selfsame.images.files import InputError
from selfsame.perception.detector import Found
from selfsame.weights.catalogue import model_with
from selfsame.weights.mannequin import sha256

STRIDES = (8, 16, 32)
ANCHORS = 2  # a cell
SCORE, OVERLAP = 0.5, 0.4  # a face scores at least this; of faces that overlap more the better one stays
SIZES = (640, 320, 128)  # a face that fills the picture is only found small
ARCFACE = 112  # pixels of the aligned face
EMBEDDING = 512
YUNET_LONGEST = 640  # YuNet knows faces of 10 to 300 pixels
KNOWN_SPACES = ("antelopev2", "buffalo_l", "auraface")  # folders whose names say which recogniser they hold
YUNET, SFACE = "face_detection_yunet_2023mar.onnx", "face_recognition_sface_2021dec.onnx"


@dataclass(frozen=True)
class RealFace(Found):
    """A found face with the raw output of the recogniser: its norm says how clear the face is."""

    embedding: np.ndarray  # 512 float32 (SFace: 128), not normalised

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = (float(v) for v in self.box)
        return max(0.0, x1 - x0) * max(0.0, y1 - y0)


class FaceReader(Protocol):
    """Finds and reads the faces of a picture, largest first."""

    name: str
    digest: str  # sha256 of the recogniser's file

    def __call__(self, image: np.ndarray) -> list[RealFace]: ...


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise InputError('faces in photographs need onnxruntime: pip install "selfsame[faces]"') from None
    return onnxruntime


def session_of(path: Path, providers: Sequence[str] = ()) -> Any:
    """An onnxruntime session of a file.

    Raises:
        InputError: the file is no graph that can be run, or a provider is not installed; the message names the remedy.
    """
    runtime = _runtime()
    unknown = [p for p in providers if p not in runtime.get_available_providers()]
    if unknown:
        raise InputError(f"onnxruntime has no {unknown[0]} here, only {', '.join(runtime.get_available_providers())}; for CUDA install onnxruntime-gpu")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(path), options, providers=list(providers) or ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own for every kind of damage
        raise InputError(f"{path}: not an ONNX file that can be run ({str(error).splitlines()[0][:120]}); download it again") from None


def suppressed(boxes: np.ndarray, scores: np.ndarray, overlap: float = OVERLAP) -> list[int]:
    """Rows that stay, best score first. Areas and overlaps count both border pixels, as SCRFD's authors do."""
    size = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    left = list(np.argsort(-scores, kind="stable"))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(int(best))
        rest = np.array(left, int)
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (high - low + 1).clip(0).prod(1)
        left = list(rest[shared / (size[best] + size[rest] - shared) <= overlap])
    return kept


class Scrfd:
    """SCRFD with key points: nine outputs, scores, sides and points at three strides, two anchors a cell."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.input = session.get_inputs()[0].name
        side = session.get_inputs()[0].shape[-1]
        self.sizes = (side,) if isinstance(side, int) else SIZES  # an export of one size takes no other

    def __call__(self, image: np.ndarray, size: int = SIZES[0]) -> list[Found]:
        """Faces, best score first. The picture is fitted into the top left of a black square of `size` pixels."""
        h, w = image.shape[:2]
        ratio = h / w  # in insightface's order of operations: its rounding decides over a row of pixels
        hh, ww = (size, max(1, int(size / ratio))) if ratio > 1 else (max(1, int(size * ratio)), size)
        zoom = hh / h
        canvas = np.zeros((size, size, 3), np.uint8)
        canvas[:hh, :ww] = cv2.resize(image, (ww, hh))
        blob = ((canvas.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None]
        outputs = [o[0] if o.ndim == 3 else o for o in self.session.run(None, {self.input: blob})]
        boxes, points, scores = [], [], []
        for level, stride in enumerate(STRIDES):
            score, sides, offsets = outputs[level][:, 0], outputs[level + 3] * stride, outputs[level + 6] * stride
            cells = size // stride
            ys, xs = np.divmod(np.repeat(np.arange(cells * cells), ANCHORS), cells)
            centre = np.stack([xs, ys], 1).astype(np.float32) * stride
            at = score >= SCORE
            boxes.append(np.concatenate([centre - sides[:, :2], centre + sides[:, 2:]], 1)[at])
            points.append((centre[:, None] + offsets.reshape(-1, 5, 2))[at])
            scores.append(score[at])
        box, kps, score = np.concatenate(boxes) / zoom, np.concatenate(points) / zoom, np.concatenate(scores)
        return [Found(box[i], kps[i], float(score[i])) for i in suppressed(box, score)]


class ArcFace:
    """A recogniser of aligned faces of 112 pixels."""

    def __init__(self, session: Any, path: Path | None = None) -> None:
        self.session = session
        self.input = session.get_inputs()[0].name
        self.mean, self.deviation = (0.0, 1.0) if path is not None and normalises_itself(path) else (127.5, 127.5)

    def __call__(self, image: np.ndarray, kps: np.ndarray) -> np.ndarray:
        """The raw embedding, 512 float32."""
        face = crop_face(image, kps, ARCFACE, shrink=False)
        blob = ((face.astype(np.float32) - self.mean) / self.deviation).transpose(2, 0, 1)[None]
        return self.session.run(None, {self.input: blob})[0][0]


def normalises_itself(path: Path) -> bool:
    """Whether a recogniser's graph begins by taking the mean away (old exports do): then it is fed plain pixels."""
    try:
        import onnx
    except ImportError:
        raise InputError('a recogniser\'s graph is read with onnx: pip install "selfsame[faces]"') from None
    nodes = [node.name for node in onnx.load(str(path), load_external_data=False).graph.node[:8]]
    return any(n.startswith(("Sub", "_minus")) for n in nodes) and any(n.startswith(("Mul", "_mul")) for n in nodes)


class OnnxFaces:
    """A folder with a detector and a recogniser as ONNX files, whatever they are called; folders in folders are searched too."""

    def __init__(self, folder: Path, providers: Sequence[str] = ()) -> None:
        """
        Raises:
            InputError: the folder is missing or lacks one of the two; the message says what was found.
        """
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the one that holds the detector's and the recogniser's .onnx files")
        detector = recogniser = None
        seen, spaces = [], []
        for path in sorted(folder.rglob("*.onnx")):
            session = session_of(path, providers)
            outputs, shape = session.get_outputs(), session.get_inputs()[0].shape
            seen.append(f"{path.name} ({len(outputs)} outputs)")
            if len(outputs) == 9:
                detector = Scrfd(session)
            elif len(outputs) == 1 and list(shape[-2:]) == [ARCFACE, ARCFACE] and outputs[0].shape[-1] == EMBEDDING:
                recogniser = ArcFace(session, path)
                self.digest = sha256(path)
                named = next((n for n in reversed(path.absolute().parent.parts) if n in KNOWN_SPACES), folder.absolute().name)
                spaces.append(model_with(self.digest) or named)
        if detector is None or recogniser is None:
            lacks = " and ".join(
                n for n, part in (("a detector with key points (SCRFD, 9 outputs)", detector), ("a recogniser (ArcFace, 512)", recogniser)) if part is None
            )
            raise InputError(f"{folder}: lacks {lacks}; it holds {', '.join(seen) or 'no .onnx file'}")
        if len(spaces) > 1:
            raise InputError(
                f"{folder}: holds {len(spaces)} recognisers ({', '.join(spaces)}), and embeddings of different ones do not mix; give the folder of one"
            )
        self.detector, self.recogniser, self.name = detector, recogniser, spaces[0]

    def __call__(self, image: np.ndarray) -> list[RealFace]:
        for size in self.detector.sizes:
            found = self.detector(image, size)
            if found:
                break
        faces = [RealFace(f.box, f.kps, f.score, self.recogniser(image, f.kps)) for f in found]
        return sorted(faces, key=lambda f: -f.area)


class OpenCvFaces:
    """YuNet and SFace: files that may be used commercially (SFace's embedding has 128 numbers, so InstantID's weights do not take it)."""

    def __init__(self, folder: Path, score: float = 0.6) -> None:
        """
        Raises:
            InputError: one of the two files is missing or cannot be read.
        """
        self.name = "yunet-sface"
        paths = [folder / name for name in (YUNET, SFACE)]
        for path in paths:
            if not path.exists():
                raise InputError(f"{path} is missing; put OpenCV Zoo's {path.name} there")
        self.digest = sha256(paths[1])
        try:
            self.detector = cv2.FaceDetectorYN.create(str(paths[0]), "", (320, 320), score)
            self.recogniser = cv2.FaceRecognizerSF.create(str(paths[1]), "")
        except cv2.error as error:
            raise InputError(f"{folder}: OpenCV cannot read the files ({str(error).splitlines()[0][:120]}); download them again") from None

    def __call__(self, image: np.ndarray) -> list[RealFace]:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        h, w = bgr.shape[:2]
        zoom = min(1.0, YUNET_LONGEST / max(h, w))
        small = bgr if zoom == 1 else cv2.resize(bgr, (max(1, round(w * zoom)), max(1, round(h * zoom))), interpolation=cv2.INTER_AREA)
        self.detector.setInputSize((small.shape[1], small.shape[0]))
        _, rows = self.detector.detect(small)
        faces = []
        for row in rows if rows is not None else ():
            row = row.copy()
            row[:14] /= zoom  # left, top, width, height, five points; the score stays
            box = np.array([row[0], row[1], row[0] + row[2], row[1] + row[3]])
            embedding = self.recogniser.feature(self.recogniser.alignCrop(bgr, row))[0]
            faces.append(RealFace(box, row[4:14].reshape(5, 2), float(row[14]), embedding.copy()))
        return sorted(faces, key=lambda f: -f.area)


def gpu_providers() -> tuple[str, ...]:
    """What onnxruntime computes with on a GPU, nothing where it is not there or was installed without: faces are then read on the CPU."""
    try:
        known = _runtime().get_available_providers()
    except InputError:
        return ()
    return ("CUDAExecutionProvider", "CPUExecutionProvider") if "CUDAExecutionProvider" in known else ()


def reader_of(folder: Path, providers: Sequence[str] = ()) -> FaceReader:
    """What a folder of face models holds: YuNet and SFace, or a detector and a recogniser of insightface's kind.

    Raises:
        InputError: neither.
    """
    return OpenCvFaces(folder) if (folder / YUNET).exists() or (folder / SFACE).exists() else OnnxFaces(folder, providers)
