"""What learning a person needs of a base model: the miniature's parts, or Stable Diffusion's from local folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.images.align import align_as_ffhq
from selfsame.images.files import InputError
from selfsame.images.resize import IMAGENET_STATISTICS, normalised
from selfsame.mannequins import paint
from selfsame.mannequins.captions import STYLE_PHRASES
from selfsame.mannequins.people import celebrities
from selfsame.methods.stableidentity.interop import towers_of, words_added
from selfsame.methods.stableidentity.modules import WordProjection
from selfsame.methods.stableidentity.samples import CAPTIONS, encoder_pixels, framed, square
from selfsame.models.mannequin import SCHEDULE, alphas_cumprod, load_image_encoder
from selfsame.models.single_file import kind_of
from selfsame.perception.embedders import embed, to_crops
from selfsame.perception.face_vit import FACE_VIT_CROP, cls_feature
from selfsame.perception.parser import parse
from selfsame.perception.real_faces import gpu_providers, reader_of
from selfsame.perception.stock import read_stock
from selfsame.recipes.common import to_pixels
from selfsame.recipes.naming import taught_projection
from selfsame.studio.painting import Row
from selfsame.studio.people import chosen_face, whole
from selfsame.studio.real import folder_of_file
from selfsame.studio.request import Request
from selfsame.studio.studio import Studio
from selfsame.values.identity import Identity, LearnedWords
from selfsame.weights.official import variant_of

SMALLEST_FACE = 48  # pixels of the miniature: less shows nobody
SMALLEST_PHOTO = 64  # of a photograph
FACE_NAMES = ("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip")  # CelebAMask-HQ


Layers = tuple[str, str, int]  # of a projection: what it reads, its landing, its depth
OFFICIAL: Layers = ("face", "joint", 2)


@dataclass(frozen=True, kw_only=True)
class LearnBase:
    """A base model with all that turns a photo into training samples for it."""

    name: str
    unet: Any
    vae: Any
    towers: tuple[tuple[Any, Any], ...]  # tokenizer and text encoder; SDXL has two
    prediction_type: str
    alphas_cumprod: Tensor
    side: int  # pixels of the square training pictures
    captions: tuple[str, ...]  # with {} where the person stands
    names: Sequence[str]  # of the celebrities
    notes: Callable[[np.ndarray, str], tuple[str, ...]]  # a picture and its name -> what its owner should know
    frame: Callable[[np.ndarray, str], np.ndarray]  # a picture and its name -> the square with the face, side side 3 uint8
    readers: Mapping[str, Callable[[np.ndarray], Tensor]]  # by `Learning.encoder`: such a square -> features of it and of its mirror image, 2 f
    parse: Callable[[np.ndarray], np.ndarray]  # such a square -> labels side side
    face_labels: tuple[int, ...]
    hair_labels: tuple[int, ...]
    identity: Callable[[Sequence[np.ndarray]], Identity] | None  # whom the photos show, without words; None: this base keeps words alone
    preview: Callable[[LearnedWords], list[np.ndarray]]
    taught: Mapping[Layers, Callable[[], Sequence[WordProjection]]] = field(default_factory=dict)  # projections that know how faces are named, one a tower


def mannequin_base(studio: Studio) -> LearnBase:
    """The miniature: its detector frames the face, its parser and face transformer read it."""

    def frame(image: np.ndarray, name: str) -> np.ndarray:
        found, _ = studio.face(image, name=name)
        width = float(min(found.box[2] - found.box[0], found.box[3] - found.box[1]))
        if width < SMALLEST_FACE:
            raise InputError(f"{name}: the face is {width:.0f} pixels wide, too small to learn from; use a picture in which it has at least {SMALLEST_FACE}")
        return framed(image, found.box)

    def read(image: np.ndarray) -> Tensor:
        found, _ = studio.face(image, name="the framed face")
        crop = to_crops([image], [found.kps], FACE_VIT_CROP)
        return embed(studio.face_vit, torch.cat([crop, crop.flip(3)]))

    @torch.no_grad()
    def read_by_clip(image: np.ndarray) -> Tensor:
        pixels = to_pixels(image[None])
        return load_image_encoder()(torch.cat([pixels, pixels.flip(3)])).image_embeds

    def preview(words: LearnedWords) -> list[np.ndarray]:
        rows = [
            Row(p.format(words.placeholder))
            for p in ("a photo of {}", "a watercolour of {} on a beach", "a photo of {} wearing a spacesuit", "a pencil sketch of {} laughing")
        ]
        return studio.paint(rows, Request(num_steps=12), list(range(len(rows))), words=(words,))[0]

    return LearnBase(
        name="mannequin",
        unet=studio.unet,
        vae=studio.vae,
        towers=(studio.text,),
        prediction_type=SCHEDULE["prediction_type"],
        alphas_cumprod=alphas_cumprod(),
        side=128,
        captions=STYLE_PHRASES["photo"],
        names=[" ".join(n) for n in celebrities()],
        notes=lambda image, name: studio.face(image, name=name)[1],
        frame=frame,
        readers={"face": read, "clip": read_by_clip},
        parse=lambda image: parse(studio.parser, image),
        face_labels=(paint.SKIN, paint.EYES, paint.BROWS, paint.NOSE, paint.MOUTH, paint.EARS, paint.GLASSES),
        hair_labels=(paint.HAIR,),
        identity=lambda images: studio.identity(*images),
        preview=preview,
        taught={OFFICIAL: lambda: (taught_projection(*studio.text),)},
    )


def labels_called(id2label: Mapping[int, str], names: Sequence[str], folder: Path) -> tuple[int, ...]:
    """Numbers of a parser's labels by name.

    Raises:
        InputError: the parser lacks one.
    """
    numbers = {label: int(number) for number, label in id2label.items()}
    missing = [name for name in names if name not in numbers]
    if missing:
        raise InputError(f"{folder}: the parser has no label {missing[0]!r}; give one trained on CelebAMask-HQ, such as jonathandinu/face-parsing")
    return tuple(numbers[name] for name in names)


def stable_diffusion_base(
    folder: Path, face_vit: Path, parser: Path, names: Path, *, face_models: Path | None = None, device: str = "cpu", side: int = 0
) -> LearnBase:
    """A Stable Diffusion 1, 2 or XL folder, a face ViT (transformers), a SegFormer face parser (transformers), a list of two-word names.

    Args:
        face_models: folder of a detector that finds the face, which is then aligned as FFHQ's are; None: photos are taken as they are, squared, and should be
            aligned already.
        side: pixels of the training pictures; 0: what the U-Net was made for.

    Raises:
        InputError: a folder is missing, or is no such model.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import SegformerForSemanticSegmentation, ViTModel

    if folder.is_file():
        folder = folder_of_file(folder, kind_of(folder))
    for path, what in ((folder, "the base model"), (face_vit, "the face transformer"), (parser, "the face parser")):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder for {what}; download it first, for instance with `hf download`")
    if not names.is_file():
        raise InputError(f"{names}: no such file; give a text file with one two-word name a line")
    try:
        celebrities_of = [line.strip() for line in names.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise InputError(f"{names}: is not UTF-8 text; save it in that encoding") from None
    try:
        is_xl = (folder / "text_encoder_2").is_dir()
        unused: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}  # base folders name them, and may not hold them
        unused |= {} if is_xl else {"safety_checker": None, "requires_safety_checker": False}
        kind: Any = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
        pipe: Any = kind.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32, **unused, **variant_of(folder / "unet")).to(device)
    except (OSError, ValueError) as error:
        raise InputError(f"a model cannot be read ({str(error).splitlines()[0]}); check that the folders hold what diffusers and transformers saved") from None
    vit = read_stock(ViTModel, face_vit, "the face transformer", ("vit",))
    segmenter = read_stock(SegformerForSemanticSegmentation, parser, "the face parser", ("segformer",))
    pipe.set_progress_bar_config(disable=True)
    towers = tuple((getattr(pipe, name), encoder) for name, encoder in towers_of(pipe))
    side = side or 8 * int(pipe.unet.config.sample_size)
    for part in (pipe.unet, pipe.vae, *(encoder for _, encoder in towers), vit, segmenter):
        part.requires_grad_(False).eval().to(device)
    size = vit.config.image_size
    assert isinstance(size, int), "face transformers see squares"

    faces = None if face_models is None else reader_of(face_models, gpu_providers() if device.startswith("cuda") else ())

    def frame(image: np.ndarray, name: str) -> np.ndarray:
        if faces is None:
            return square(_middle(image), side)
        face = whole(chosen_face(faces(image), None, name)[0], image.shape, name)
        width = float(face.box[2] - face.box[0])
        if width < SMALLEST_PHOTO:
            raise InputError(f"{name}: the face is {width:.0f} pixels wide, too small to learn from; use a picture in which it has at least {SMALLEST_PHOTO}")
        return align_as_ffhq(image, face.kps, side)

    def notes(image: np.ndarray, name: str) -> tuple[str, ...]:
        if faces is None:
            return (f"{name}: taken as it is; the face should fill the middle, upright, as in FFHQ. --face-models FOLDER finds and aligns it",)
        found = len(faces(image))
        return (f"{name}: {found} faces, the largest is used",) if found > 1 else ()

    def read(image: np.ndarray) -> Tensor:
        pixels = encoder_pixels(image, size)
        return cls_feature(vit, torch.stack([pixels, pixels.flip(2)])).float().cpu()

    @torch.no_grad()
    def labels(image: np.ndarray) -> np.ndarray:
        pixels = normalised(image, len(image), *IMAGENET_STATISTICS)
        logits = segmenter(pixels.to(device)).logits.float()
        return F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)[0].argmax(0).to(torch.uint8).cpu().numpy()

    def preview(words: LearnedWords) -> list[np.ndarray]:
        prompts = [f"a photo of {words.placeholder}", f"{words.placeholder} wearing a spacesuit, facing to camera, best quality, ultra high res"]
        with words_added(pipe, words):
            made = pipe(
                prompts, num_inference_steps=25, guidance_scale=8.5, height=side, width=side, output_type="np", generator=torch.Generator().manual_seed(42)
            )
        return [(image * 255).round().astype(np.uint8) for image in made.images]

    config, named = pipe.scheduler.config, {int(k): v for k, v in (segmenter.config.id2label or {}).items()}
    return LearnBase(
        name=folder.name,
        unet=pipe.unet,
        vae=pipe.vae,
        towers=towers,
        prediction_type=str(config.prediction_type),
        alphas_cumprod=pipe.scheduler.alphas_cumprod.float().cpu(),
        side=side,
        captions=CAPTIONS,
        names=celebrities_of,
        notes=notes,
        frame=frame,
        readers={"face": read},
        parse=labels,
        face_labels=labels_called(named, FACE_NAMES, parser),
        hair_labels=labels_called(named, ("hair",), parser),
        identity=None,
        preview=preview,
    )


def _middle(image: np.ndarray) -> np.ndarray:
    """The largest square in the middle."""
    h, w = image.shape[:2]
    edge = min(h, w)
    y, x = (h - edge) // 2, (w - edge) // 2
    return image[y : y + edge, x : x + edge]
