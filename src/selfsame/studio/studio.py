"""A studio: loaded models, photos to identities, requests to pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from selfsame.diffusion.sampling import Step
from selfsame.images.draw import draw_kps_small
from selfsame.images.files import InputError
from selfsame.images.masks import Window, resized
from selfsame.mannequins.captions import caption_person
from selfsame.mannequins.world import CANONICAL_VIEWS, average_kps
from selfsame.methods.instantid.method import InstantID
from selfsame.models.latents import encode, pictures_of
from selfsame.models.text import encode_prompts
from selfsame.perception.detector import FaceDetector, Found, faces_of
from selfsame.perception.embedders import ENCODER_CROP, JUDGE_CROP, FaceEncoder, JudgeNet, embed, to_crops
from selfsame.perception.face_vit import FaceViT
from selfsame.perception.parser import FaceParser
from selfsame.perception.reader import AttributeReader, read
from selfsame.studio.family import Family
from selfsame.studio.memory import CHOICES
from selfsame.studio.painting import Painter, Row, Told, scheduler_of
from selfsame.studio.people import Cast, Towers, cast_of, check_words, chosen_face, from_left, lent_embedding, vectors_of, whole
from selfsame.studio.places import Person, Pose
from selfsame.studio.request import MANNEQUIN, Request, nearest
from selfsame.values.identity import Identity, LearnedWords
from selfsame.weights import mannequin

ENCODER_NAME, TURBO = "mannequin-encoder-2", "turbo.safetensors"
MODELS = ("mannequin", "instantid-sdxl", "instantid-sd15")
OWN_FACES = "the miniature sees faces of its own world, upright and whole (selfsame render draws one); for photographs see docs/photographs.md"
ROWS = 4  # pictures denoised together


@overload
def load(name: Literal["mannequin"] = "mannequin", *, device: str = "cpu") -> Studio: ...


@overload
def load(
    name: str,
    *,
    device: str = "cpu",
    base: str | Path | None = None,
    instantid: str | Path | None = None,
    face_models: str | Path | None = None,
    memory: str = "auto",
    precision: str = "auto",
    loras: Sequence[str] = (),
) -> Any: ...


def load(
    name: str = "mannequin",
    *,
    device: str = "cpu",
    base: str | Path | None = None,
    instantid: str | Path | None = None,
    face_models: str | Path | None = None,
    memory: str = "auto",
    precision: str = "auto",
    loras: Sequence[str] = (),
) -> Any:
    """Load a model family: a `Studio` of the miniature, or a `RealStudio` for photographs.

    Args:
        base, instantid, face_models: for photographs, folders of your own in place of those that `selfsame models fetch` brought.
        loras: for photographs, LoRAs of the base: FILE or FILE:WEIGHT.
        memory: for photographs, a preset of `studio.memory`: high, medium, low or auto.
        precision: for photographs, fp32, fp16 or bf16; auto: fp16 on a GPU, fp32 on a CPU, where speed fast takes bf16 if that is faster.

    Raises:
        InputError: no such model, a device that is not there, or a folder that is missing.
    """
    nearest(name, MODELS, "model")
    nearest(memory, CHOICES, "memory")
    where = str(checked_device(device))
    given = [None if p is None else Path(p) for p in (base, instantid, face_models)]
    if name == "mannequin":
        if any(given) or loras or precision != "auto":
            raise InputError("base, instantid, face_models, precision and LoRAs are for a model for photographs; the miniature brings its own")
        return Studio(where)
    from selfsame.models.loras import Lora
    from selfsame.studio.real import PRECISIONS, Folders, RealStudio

    dtype = PRECISIONS[nearest(precision, tuple(PRECISIONS), "precision")]
    return RealStudio(Folders.of(name, *given), device=where, dtype=dtype, memory=memory, loras=[Lora.read(text) for text in loras])


def checked_device(name: str) -> torch.device:
    """A device that is there.

    Raises:
        InputError: torch knows no such device, or sees none here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is unknown; choose cpu, cuda, cuda:1 ... or mps") from None
    seen = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 0)
    if (device.index or 0) >= seen:
        raise InputError(f"device {name!r}: torch sees {seen} of that kind here; use --device cpu")
    return device


class Studio(Family):
    """The miniature models behind one door. Networks load when first needed."""

    limits, together, judges = MANNEQUIN, ROWS, True  # sizes; pictures denoised at a time; whether a second encoder can score a likeness

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    # ------------------------------------------------------------------------------------------ parts

    @cached_property
    def detector(self) -> nn.Module:
        return mannequin.load_into(FaceDetector(), "detector.safetensors")

    @cached_property
    def encoder(self) -> nn.Module:
        return mannequin.load_into(FaceEncoder(), "encoder.safetensors")

    @cached_property
    def judge(self) -> nn.Module:
        return mannequin.load_into(JudgeNet(), "judge.safetensors")

    @cached_property
    def reader(self) -> nn.Module:
        return mannequin.load_into(AttributeReader(), "reader.safetensors")

    @cached_property
    def parser(self) -> nn.Module:
        return mannequin.load_into(FaceParser(), "parser.safetensors")

    @cached_property
    def face_vit(self) -> nn.Module:
        return mannequin.load_into(FaceViT(), "face_vit.safetensors")

    @cached_property
    def vae(self) -> Any:
        return _on(mannequin.load_vae(), self.device)

    @cached_property
    def unet(self) -> Any:
        return _on(mannequin.load_unet(), self.device)

    @cached_property
    def turbo_unet(self) -> Any:
        """The base with the LoRA by which it paints in few steps."""
        from selfsame.models.loras import Lora, fuse_unet

        unet = copy.deepcopy(self.unet)
        fuse_unet([Lora(mannequin.checked(TURBO))], unet, is_xl=False)
        return unet

    @cached_property
    def text(self) -> tuple[Any, Any]:
        tokenizer, encoder = mannequin.load_text()
        return tokenizer, _on(encoder, self.device)

    @cached_property
    def instantid(self) -> InstantID:
        return InstantID.from_pretrained(mannequin.checked_folder("instantid"), self.unet).to(self.device)

    # ------------------------------------------------------------------------------------------ faces

    def as_read(self, image: np.ndarray) -> np.ndarray:
        """A photo as faces are looked for in it."""
        return image

    def faces(self, image: np.ndarray) -> list[Found]:
        """Faces of a picture, largest first."""
        return faces_of(self.detector, image)

    def face(self, image: np.ndarray, *, which: int | None = None, name: str = "the picture") -> tuple[Found, tuple[str, ...]]:
        """The face to use: the largest, or number `which` counted from image left, from 0. Also warnings.

        Raises:
            InputError: no face, no such face, or one cut by the border.
        """
        found = self.faces(image)
        if not found:
            raise InputError(f"{name}: no face was found; {OWN_FACES}")
        chosen, notes = chosen_face(found, which, name)
        return whole(chosen, image.shape, name), notes

    def embedded(self, image: np.ndarray, found: Found) -> tuple[np.ndarray, str]:
        """What the conditioning encoder says of a face, 1 512 float32, and the encoder's name."""
        return embed(self.encoder, to_crops([image], [found.kps], ENCODER_CROP)).numpy(), ENCODER_NAME

    def judged(self, image: np.ndarray, *, which: int | None = None) -> Tensor | None:
        """The judge's unit vector of the largest face, or of number `which` from the left, 256; None when no face is found."""
        found = self.faces(image)
        if not found:
            return None
        chosen = found[0] if which is None else from_left(found)[which]
        return self.vectors(image, [chosen.kps])[0]

    def vectors(self, image: np.ndarray, kps: Sequence[np.ndarray]) -> Tensor:
        """The judge's unit vectors of faces with these key points, n 256."""
        return torch.nn.functional.normalize(embed(self.judge, to_crops([image] * len(kps), list(kps), JUDGE_CROP)), dim=1)

    def likeness(self, image: np.ndarray, reference: np.ndarray, *, which: int | None = None) -> float | None:
        """The judge's cosine between the people of two pictures (of the reference, face `which`); None when either shows no face."""
        a, b = self.judged(image), self.judged(reference, which=which)
        return None if a is None or b is None else float(a @ b)

    # ------------------------------------------------------------------------------------------ pictures

    def scheduler(self, solver: str) -> Any:
        """A fresh solver with the base model's schedule."""
        import diffusers

        config: Any = diffusers.DPMSolverMultistepScheduler.load_config(str(mannequin.checked_folder("base/scheduler")))
        common = {k: config[k] for k in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")}
        return scheduler_of(common, solver, timestep_spacing="trailing")

    def text_states(self, prompts: Sequence[str], words: Mapping[str, Tensor] | None = None) -> tuple[Tensor, tuple[str, ...]]:
        """Text states b t c with learned words (n d) in place of their placeholders, and a warning for each prompt, "" where it was not too long."""
        prompted = encode_prompts(*self.text, prompts, words)
        notes = tuple(f"the prompt is too long; these words were left out: {cut!r}" if cut else "" for cut in prompted.cut)
        return prompted.encoder_hidden_states, notes

    def embedding(self, identity: Identity, photos: str) -> Tensor:
        """What the Resampler gets: 1 1 512 (mean of the photos) or 1 k 512 (jointly).

        Raises:
            InputError: the identity was made by another encoder.
        """
        return lent_embedding(identity, ENCODER_NAME, photos, self.device)

    def cast(self, people: Sequence[Person], request: Request) -> Cast:
        """Who is painted by face tokens and who by learned words."""
        cast = cast_of(people, request)
        if cast.words:
            check_words(cast.words, Towers.of(self.text[1]))
        return cast

    def sized(self, request: Request, people: Sequence[Person]) -> Request:
        """The request with a size, steps, guidance and solver.

        Raises:
            InputError: it asks for speed turbo, whose weights are not installed.
        """
        if request.speed == "turbo" and "turbo_unet" not in vars(self) and TURBO not in mannequin.manifest()["files"]:
            raise InputError("speed turbo: this folder of weights has none for it; `selfsame train turbo --ship` makes them")
        return super().sized(request, people)

    def known_faces(self, image: np.ndarray) -> tuple[list[Found], Tensor]:
        """Faces of a picture and the conditioning encoder's embeddings of them, n 512."""
        found = self.faces(image)
        return found, embed(self.encoder, to_crops([image] * len(found), [f.kps for f in found], ENCODER_CROP)) if found else torch.zeros(0, 512)

    def described(self, image: np.ndarray, what: Sequence[str], *, which: int | None = None) -> str:
        """What a photo shows, as the attribute reader sees it, in the words of a prompt."""
        x0, y0, x1, y1 = self.face(image, which=which)[0].box
        side = 1.9 * max(x1 - x0, y1 - y0)  # as much around a face as pictures of the world have
        around = Window(round((y0 + y1 - side) / 2 + 0.05 * side), round((x0 + x1 - side) / 2), max(1, round(side)))
        seen = read(self.reader, [resized(around.crop(image, 255), self.limits.side)])[0]
        wanted = {k: v for k, v in seen.items() if k.partition("_")[0] in what}
        return caption_person(wanted, None, None).removeprefix("a person").strip()

    def view(self, yaw_deg: float, pitch_deg: float = 0.0, roll_deg: float = 0.0) -> Pose:
        """Key points of the world's average head in a view: yaw to image right, pitch up, roll with the image-right side up."""
        frontal = CANONICAL_VIEWS[0]
        return Pose(average_kps(replace(frontal, yaw_deg=yaw_deg, pitch_deg=pitch_deg, roll_deg=roll_deg))[0], self.limits.side, self.limits.side)

    def paint(
        self,
        rows: Sequence[Row],
        request: Request,
        seeds: Sequence[int],
        *,
        words: Sequence[LearnedWords] = (),
        known: tuple[Tensor, Tensor] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> tuple[list[np.ndarray], tuple[str, ...]]:
        """Denoise rows of different prompts and people together. Size, steps, solver, strengths come from the request.

        Args:
            words: may stand in prompts by their placeholders.
            known: latents b c h w of a picture to paint into, and a mask b 1 h w of its cells, 1 where to paint.

        Returns:
            Pictures, and a warning for each, "" for none.
        """
        return self.painter(words).paint(rows, request.sized(self.limits), seeds, known=known, on_step=on_step)

    def painter(self, words: Sequence[LearnedWords] = ()) -> Painter:
        """The networks and rules that paint; `words` may stand in prompts."""
        vectors = {name: towers[0] for name, towers in vectors_of(words).items()}

        def tell(prompts: Sequence[str], against: Sequence[str], request: Request) -> tuple[Told, Told]:
            said, not_said = (self.text_states(p, vectors) for p in (prompts, against))
            return Told(said[0], notes=said[1]), Told(not_said[0], notes=not_said[1])

        def unet(speed: str) -> Any:
            return self.turbo_unet if speed == "turbo" else self.unet

        channels = int(self.unet.config.in_channels)
        return Painter(self.device, torch.float32, channels, unet, lambda: self.instantid, tell, self.scheduler, draw_kps_small, self.decode)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels 1 3 h w in [-1, 1] to latents."""
        return encode(self.vae, pixels)

    def decode(self, latents: Tensor) -> list[np.ndarray]:
        """Latents b c h w to pictures h w 3 uint8."""
        return pictures_of(self.vae, latents)


def _on(model: Any, device: torch.device) -> Any:
    return model.to(device)
