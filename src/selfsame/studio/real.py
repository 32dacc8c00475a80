"""Photographs: the official InstantID, or one of its layout, on a Stable Diffusion 1.5 or SDXL folder, behind the same requests as the miniature."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsame.images.draw import draw_kps
from selfsame.images.files import InputError, read_json
from selfsame.images.head import head_kps
from selfsame.images.masks import Window
from selfsame.images.resize import official_size, resize_official
from selfsame.methods.instantid.checkpoint import ABOUT, OFFICIAL_ENCODER, encoder_of, instantid_from_official, is_instantid, weights_in
from selfsame.methods.instantid.method import InstantID
from selfsame.models.latents import encode, pictures_of
from selfsame.models.loras import Lora, fuse_text, fuse_unet
from selfsame.models.single_file import kind_of, unpacked
from selfsame.models.weighted import WINDOW, encode_weighted, encode_windows, weighted_ids
from selfsame.perception.detector import Found
from selfsame.perception.real_faces import RealFace, gpu_providers, reader_of
from selfsame.perception.zeroshot import phrases_for
from selfsame.studio.family import Family, Job
from selfsame.studio.memory import CHOICES, PLANS, SPARE, TILE_SIDE, Plan, Sizes, chosen, free_memory, needed, numbers_in
from selfsame.studio.painting import Painter, Told, scheduler_of
from selfsame.studio.people import Cast, Towers, cast_of, check_words, chosen_face, is_cut, lent_embedding, vectors_of
from selfsame.studio.places import Person, Pose
from selfsame.studio.request import Limits, Request, nearest
from selfsame.training.run import fast_bf16
from selfsame.values.identity import Identity, LearnedWords
from selfsame.weights.catalogue import CATALOGUE
from selfsame.weights.fetch import cache_folder, local, missing_of
from selfsame.weights.official import read_whole, variant_of

AROUND = 2.4  # of a face's larger side: how much of a photo is asked about
SD15, SDXL = Limits(512, 8, 1024, least=64), Limits(1024, 8, 2048)
LONGEST = {512: 640, 1024: 1280}  # the longer side of a photo before it is read, and of a picture in its shape; officially 1280 for SDXL
SHORTEST = 64
PRECISIONS = {"auto": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NO_INSTANTID = {  # by whether the base is SDXL
    True: "InstantID is not there: selfsame models fetch instantid, or give --instantid its folder",
    False: "no InstantID for Stable Diffusion 1.5 was ever released: give --instantid the folder of one that you trained",
}
LCM = {True: "lcm-lora-sdxl", False: "lcm-lora-sd15"}  # likewise
NEEDED = ("unet", "vae", "scheduler", "tokenizer", "text_encoder")


@dataclass(frozen=True)
class Folders:
    """Where the parts lie."""

    base: Path
    instantid: Path | None = None
    face_models: Path | None = None

    @classmethod
    def of(cls, model: str, base: Path | None, instantid: Path | None, face_models: Path | None) -> Folders:
        """Given folders, and for the others what `selfsame models fetch` brought. Only the base must be there: words alone need nothing else.

        Raises:
            InputError: the base was neither given nor fetched; the message says how to fetch it.
        """
        kind = {"instantid-sdxl": "sdxl", "instantid-sd15": "sd15"}[model]
        if base is not None and base.is_file():
            base = folder_of_file(base, kind)
        base = base or local(CATALOGUE[kind])
        instantid = instantid or (_fetched("instantid") if kind == "sdxl" else None)
        return cls(base, instantid, face_models or _fetched("antelopev2"))


def _fetched(name: str) -> Path | None:
    """A model's folder when it was fetched."""
    return None if missing_of(CATALOGUE[name]) else local(CATALOGUE[name])


def folder_of_file(path: Path, kind: str) -> Path:
    """The folder of a fine-tune in one file.

    Raises:
        InputError: a fine-tune of another base, or the base's configs were not fetched.
    """
    found = kind_of(path)
    if (kind, found) == ("sd15", "sd21-base"):  # words and text alone: no InstantID is as wide
        kind = found
    if found != kind:
        raise InputError(f"{path}: a fine-tune of {found}, this model needs one of {kind}; choose another --model")
    known = next((m for m in (CATALOGUE[kind], CATALOGUE[f"{kind}-config"]) if not missing_of(m)), None)
    if known is None:
        raise InputError(f"{path}: to read it the base's configs and tokenizers are needed, some MB: selfsame models fetch {kind}-config")
    return unpacked(path, local(known), cache_folder() / "unpacked")


def photo_as_read(image: np.ndarray, side: int = 1024) -> np.ndarray:
    """A photo as it is read officially: for SDXL its longer side 1280 pixels, for Stable Diffusion 1.5 half of that, both sides multiples of 64.

    Args:
        side: the base's own, 1024 or 512.

    Raises:
        InputError: it is so long and thin that nothing would be left.
    """
    longest = LONGEST[side]
    h, w = image.shape[:2]
    width, height = official_size(w, h, max_side=longest, min_side=longest * 4 // 5)
    if min(width, height) < SHORTEST:
        raise InputError(f"a photo of {w} x {h} is too long and thin; cut out the part with the face")
    return resize_official(image, max_side=longest, min_side=longest * 4 // 5)


class RealStudio(Family):
    """Loaded when first needed; on a GPU in half precision, but for the VAE."""

    judges = False  # the encoder that conditions must not judge
    most_together: Mapping[str, int] = {"cuda": 4}  # pictures at a time on a device where more than one pays

    def __init__(self, folders: Folders, *, device: str = "cpu", dtype: torch.dtype | None = None, memory: str = "auto", loras: Sequence[Lora] = ()) -> None:
        """
        Args:
            dtype: of all but the VAE; None: half precision on a GPU; on a CPU full, with speed fast bf16 where that is faster.
            loras: fused into the base when it is loaded.
            memory: high, medium, low, or auto: the fastest of them that fits (`studio.memory`).

        Raises:
            InputError: the base's folder lacks a part, or no such preset.
        """
        nearest(memory, CHOICES, "memory")
        self.memory, self._plan, self._free = memory, PLANS.get(memory, PLANS["high"]), -1
        self.folders, self.device, self.loras = folders, torch.device(device), tuple(loras)
        self._given, self.dtype = dtype, dtype or (torch.float32 if self.device.type == "cpu" else torch.float16)
        absent = [name for name in NEEDED if not (folders.base / name).is_dir()]
        if absent:
            raise InputError(f"{folders.base}: lacks {', '.join(absent)}; give a diffusers folder of Stable Diffusion 1.5 or SDXL (with model_index.json)")
        if folders.instantid is not None and not is_instantid(folders.instantid):
            raise InputError(f"{folders.instantid}: holds no InstantID; give the folder with ip-adapter.bin and ControlNetModel")
        channels = int(read_json(folders.base / "unet" / "config.json").get("in_channels", 4))
        if channels != 4:
            what = "for inpainting" if channels == 9 else "for another task"
            raise InputError(f"{folders.base}: a U-Net of {channels} input channels, made {what}; give a text-to-image base")
        self.is_xl = (folders.base / "text_encoder_2").is_dir()
        self.limits = SDXL if self.is_xl else SD15
        self.together = 1
        self._said: tuple[Any, tuple[Told, Told]] | None = None  # the last prompts, and what the text encoders made of them

    # ------------------------------------------------------------------------------------------ parts

    def _part(self, cls: Any, name: str, dtype: torch.dtype | None = None) -> Any:
        folder = self.folders.base / name
        return read_whole(cls, folder, f"the base's {name}", torch_dtype=dtype or self.dtype, **variant_of(folder)).to(self.device)

    # ------------------------------------------------------------------------------------------ memory

    @cached_property
    def sizes(self) -> Sizes:
        """Numbers in each part, read off the files' headers."""
        base, own = self.folders.base, self.folders.instantid
        text = sum(numbers_in(base / name) for name in ("text_encoder", "text_encoder_2") if (base / name).is_dir())
        method = 0 if own is None else sum(numbers_in(p) for p in weights_in(own))
        return Sizes(text, numbers_in(base / "unet"), method, numbers_in(base / "vae"), self.dtype.itemsize, self.device.type == "cpu")

    def planned(self, request: Request, people: int = 1) -> tuple[Plan, int]:
        """The preset for a request, and the bytes that its picture will need. It is the request's own, whatever else is painted; nothing is loaded yet.

        Args:
            people: in it.

        Raises:
            InputError: no preset fits into what is free.
        """
        request = request.sized(self.limits)
        sizes, people = replace(self.sizes, precision=self._precision(request.speed).itemsize), max(1, people)
        height, width = request.size
        each = 2 if request.guidance_scale > 1 else 1
        if self._free < 0:  # before anything was loaded
            self._free = free_memory(str(self.device))
        plan = chosen(self.memory, sizes, self._free, height, width, each, people, has_fp8=self.device.type != "mps")

        def peak(count: int) -> int:
            return max(needed(sizes, plan, height, width, count * each, people).values())

        most = self.most_together.get(self.device.type, 1)
        self.together = next((n for n in range(most, 1, -1) if not self._free or peak(n) <= SPARE * self._free), 1)
        return plan, peak(self.together)

    def _unloaded(self, *names: str) -> None:
        """Parts are read again when they are next needed."""
        for name in names:
            vars(self).pop(name, None)

    def text_kind(self, job: Job) -> Hashable:
        """How long its prompts are: SDXL's in tokens, Stable Diffusion 1.5's in windows."""
        counts = {w.placeholder: w.num_words for w in job.words}
        longest = max(len(weighted_ids(self.tokenizer, prompt, counts)[0]) for prompt in (job.row.prompt, job.row.negative_prompt))
        return (longest if self.is_xl else max(1, -(-longest // WINDOW))), self.planned(job.request, len(job.people))[0].name

    def prepare(self, request: Request, people: int) -> None:
        """What is loaded fits the request's size and speed; what does not leaves."""
        plan, dtype = self.planned(request, people)[0], self._precision(request.speed)
        if (plan.fp8, dtype) != (self._plan.fp8, self.dtype):
            self._unloaded("unet", "vae", "encoders", "instantid")
        elif plan != self._plan:  # whether the others may stay, and how the VAE sees
            self._unloaded("vae", "encoders")
        if dtype != self.dtype:
            vars(self).pop("sizes", None)
            self._said = None
        self._plan, self.dtype = plan, dtype

    def _precision(self, speed: str) -> torch.dtype:
        """What a speed computes in when nobody said otherwise."""
        if self._given is not None or self.device.type != "cpu":
            return self.dtype
        return torch.bfloat16 if speed == "fast" and fast_bf16() else torch.float32

    @property
    def preset(self) -> str:  # type: ignore[override]
        """The memory preset as far as pictures differ by it: a base in 8 bits, a VAE that sees tiles."""
        return self._plan.name if self._plan.fp8 or self._plan.tiles else "auto"

    @contextmanager
    def _used(self, name: str) -> Iterator[Any]:
        """A part where it is computed with; afterwards it leaves when the preset says so."""
        part = getattr(self, name)
        models = [m for m in (part if isinstance(part, Sequence) else [part]) if hasattr(m, "to")]
        if self.device.type != "cpu":
            for model in models:
                model.to(self.device)
        try:
            yield part
        finally:
            if self._plan.parks and self.device.type == "cpu":
                vars(self).pop(name, None)
            elif self._plan.parks:
                for model in models:
                    model.to("cpu")

    @cached_property
    def unet(self) -> Any:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        unet = self._part(UNet2DConditionModel, "unet")
        fuse_unet(self.loras, unet, is_xl=self.is_xl)
        if self._plan.fp8:
            unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=self.dtype)
            for own in (*unet.parameters(), *unet.buffers()):
                if own.dtype != torch.float8_e4m3fn:
                    own.data = own.data.clone()  # what is not cast would keep the whole file in memory
        return unet

    @cached_property
    def vae(self) -> Any:
        """In full precision: SDXL's overflows in half."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        vae = self._part(AutoencoderKL, "vae", torch.float32)
        if self._plan.tiles:
            vae.enable_tiling()
            vae.tile_sample_min_size, vae.tile_latent_min_size = 8 * TILE_SIDE, TILE_SIDE  # SDXL's own are four times as many cells
        vae.enable_slicing()  # one picture at a time, however many are painted together
        return vae

    @cached_property
    def tokenizer(self) -> Any:
        """The first one, whose ids both of SDXL's encoders read."""
        from transformers import CLIPTokenizer

        folder = self.folders.base / "tokenizer"
        absent = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
        if absent and not (folder / "tokenizer.json").is_file():  # transformers would read every prompt as nothing
            raise InputError(f"{folder}: lacks {' and '.join(absent)}; fetch it again")
        try:
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # tokenizers has no kinds of its own
            raise InputError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:160]}); fetch it again") from None

    @cached_property
    def encoders(self) -> list[Any]:
        """The text encoders: one, SDXL's two."""
        encoders = self._text_towers()
        fuse_text(self.loras, encoders, is_xl=self.is_xl)
        return encoders

    def _text_towers(self, dtype: torch.dtype | None = None) -> list[Any]:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        kinds = {"text_encoder": CLIPTextModel} | ({"text_encoder_2": CLIPTextModelWithProjection} if self.is_xl else {})
        return [self._part(kind, name, dtype) for name, kind in kinds.items()]

    @cached_property
    def _towers(self) -> Towers:
        """Of the text encoders, which need not stay for it. Words are known by their tables as the files have them: bf16 would round them."""
        if self.dtype == torch.bfloat16:
            return Towers.of(*self._text_towers(torch.float32))
        with self._used("encoders") as encoders:
            return Towers.of(*encoders)

    @cached_property
    def instantid(self) -> InstantID:
        if self.folders.instantid is None:
            raise InputError(NO_INSTANTID[self.is_xl])
        return instantid_from_official(self.folders.instantid, self.unet, dtype=self.dtype).to(self.device)

    @cached_property
    def reader(self) -> Any:
        """Finds and reads faces; its folder's name is the embedding's space."""
        if self.folders.face_models is None:
            raise InputError("a photo needs a face reader: selfsame models fetch antelopev2, or give --face-models the folder of another")
        reader = reader_of(self.folders.face_models, gpu_providers() if self.device.type == "cuda" else ())
        needed = OFFICIAL_ENCODER if self.folders.instantid is None else encoder_of(self.folders.instantid)
        if reader.name != needed:
            raise InputError(
                f"{self.folders.face_models}: holds {reader.name}, but these InstantID weights read embeddings of {needed}; give its folder, called so "
                f"(weights of your own say what they read in {ABOUT})"
            )
        return reader

    @cached_property
    def _zero_negative(self) -> bool:
        """Whether SDXL's missing negative prompt is zeros rather than an empty prompt."""
        index = self.folders.base / "model_index.json"
        return bool(read_json(index).get("force_zeros_for_empty_prompt", True)) if index.exists() else True

    # ------------------------------------------------------------------------------------------ faces

    def face(self, image: np.ndarray, *, which: int | None = None, name: str = "the picture") -> tuple[RealFace, tuple[str, ...]]:
        """The face to use: the largest, or number `which` counted from the left, from 0. Also warnings.

        Raises:
            InputError: no face, or no such face.
        """
        found, notes = chosen_face(self.reader(image), which, name)
        cut = (f"{name}: the border of the picture cuts the face, which may cost likeness",) if is_cut(found, image.shape) else ()
        return found, (*notes, *cut)

    def as_read(self, image: np.ndarray) -> np.ndarray:
        """A photo as it is read officially: its longer side 1280 pixels, both sides multiples of 64.

        Raises:
            InputError: it is so long and thin that nothing would be left.
        """
        return photo_as_read(image, self.limits.side)

    def embedded(self, image: np.ndarray, found: Found) -> tuple[np.ndarray, str]:
        """The recogniser's embedding of a face, 1 512 float32, raw as InstantID's weights expect it, and the recogniser's name."""
        assert isinstance(found, RealFace)
        return found.embedding[None].astype(np.float32), self.reader.name

    # ------------------------------------------------------------------------------------------ pictures

    def scheduler(self, solver: str) -> Any:
        """A fresh solver with the base's noise schedule and its own way to spread the steps."""
        return scheduler_of(read_json(self.folders.base / "scheduler" / "scheduler_config.json"), solver)

    def tell(self, prompts: Sequence[str], against: Sequence[str], request: Request, words: Sequence[LearnedWords] = ()) -> tuple[Told, Told]:
        """Prompts for this base, learned words in them, weights in brackets, of any length.

        Raises:
            ValueError: SDXL rows whose prompts differ in length.
        """
        key = (tuple(prompts), tuple(against), request.size, tuple(w.digest for w in words))
        if self._said is None or self._said[0] != key:  # several pictures of one request are told the same
            with self._used("encoders") as encoders:
                self._said = key, self._told(self.tokenizer, encoders, prompts, against, request, vectors_of(words))
        return self._said[1]

    def _told(
        self, tokenizer: Any, encoders: Sequence[Any], prompts: Sequence[str], against: Sequence[str], request: Request, words: dict[str, tuple[Tensor, ...]]
    ) -> tuple[Told, Told]:
        if not self.is_xl:
            vectors = {name: towers[0] for name, towers in words.items()}
            said, not_said = encode_windows(tokenizer, encoders[0], prompts, against, vectors)
            return Told(said), Told(not_said)
        both = [encode_weighted(tokenizer, encoders, a, b, words) for a, b in zip(prompts, against, strict=True)]
        ids = torch.tensor([[request.height, request.width, 0, 0, request.height, request.width]] * len(prompts), device=self.device, dtype=self.dtype)
        told, not_told = ((torch.cat([p[k].encoder_hidden_states for p in both]), torch.cat([p[k].pooled for p in both])) for k in (0, 1))
        if self._zero_negative:  # of rows that say nothing against, whatever the others of the batch say
            says = torch.tensor([bool(text) for text in against], device=self.device, dtype=self.dtype)
            not_told = not_told[0] * says[:, None, None], not_told[1] * says[:, None]
        return Told(*told, ids), Told(*not_told, ids)

    def painter(self, words: Sequence[LearnedWords] = ()) -> Painter:
        """The networks and rules that paint; `words` may stand in prompts."""
        channels = int(read_json(self.folders.base / "vae" / "config.json")["latent_channels"])
        unet, instantid = (lambda speed: self.unet), (lambda: self.instantid)
        tell = partial(self.tell, words=words)
        return Painter(self.device, self.dtype, channels, unet, instantid, tell, self.scheduler, draw_kps, self.decode)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels 1 3 h w in [-1, 1] to latents."""
        with self._used("vae") as vae:
            return encode(vae, pixels).to(self.dtype)

    def decode(self, latents: Tensor) -> list[np.ndarray]:
        """Latents b c h w to pictures h w 3 uint8."""
        with self._used("vae") as vae:
            return pictures_of(vae, latents)

    def embedding(self, identity: Identity, photos: str) -> Tensor:
        """What the Resampler gets: 1 1 512 (mean of the photos) or 1 k 512 (jointly).

        Raises:
            InputError: the identity was made by another encoder.
        """
        return lent_embedding(identity, self.reader.name, photos, self.device)

    def cast(self, people: Sequence[Person], request: Request) -> Cast:
        """Who is painted by face tokens and who by words that were learned for this base.

        Raises:
            InputError: what is asked for is not in an identity, or was learned for another base.
        """
        cast = cast_of(people, request)
        if cast.words:
            check_words(cast.words, self._towers)
        if cast.faces and self.folders.instantid is None and "instantid" not in vars(self):  # said before anything large is loaded
            raise InputError(NO_INSTANTID[self.is_xl])
        return cast

    def known_faces(self, image: np.ndarray) -> tuple[list[Found], Tensor]:
        """Faces of a picture and their embeddings, n 512."""
        found = self.reader(image)
        return list(found), torch.from_numpy(np.stack([f.embedding for f in found])) if found else torch.zeros(0, 0)

    def described(self, image: np.ndarray, what: Sequence[str], *, which: int | None = None) -> str:
        """What a photo shows, in the words of a prompt: the likest phrases by CLIP ViT-L/14. Hair follows the face tokens as far as the weights let it.

        Raises:
            InputError: CLIP has not been fetched; the message says how.
        """
        x0, y0, x1, y1 = self.face(image, which=which)[0].box
        side = AROUND * max(x1 - x0, y1 - y0)  # hat and collar are in it
        around = Window(round((y0 + y1 - side) / 2 + 0.1 * side), round((x0 + x1 - side) / 2), max(1, round(side)))
        return phrases_for(self.clip, around.crop(image, 255), what)

    @cached_property
    def clip(self) -> Any:
        from selfsame.perception.similarity import StockClip

        return StockClip(local(CATALOGUE["clip-vit-l14"]))

    def view(self, yaw_deg: float, pitch_deg: float = 0.0, roll_deg: float = 0.0) -> Pose:
        """Key points of an average human head in a view: yaw to image right, pitch up, roll with the image-right side up."""
        return Pose(head_kps(yaw_deg, pitch_deg, roll_deg, self.limits.side), self.limits.side, self.limits.side)

    def sized(self, request: Request, people: Sequence[Person]) -> Request:
        """Without a size pictures have the shape of the photo that lends the first key points, as officially."""
        if people and people[0].identity.num_photos and not request.height and not request.width:
            pose, longest = people[0].pose or Pose.of(people[0].identity), LONGEST[self.limits.side]
            height, width = pose.height, pose.width
            if people[0].pose is None and max(height, width) != longest:  # a file that says who was read for another base
                width, height = official_size(width, height, max_side=longest, min_side=longest * 4 // 5)
            request = replace(request, height=height, width=width)
        if request.speed == "turbo" and not self.loras:
            name = LCM[self.is_xl]
            raise InputError(
                f"speed turbo paints with LCM-LoRA: add --lora {name} (selfsame models fetch {name}); a base that holds one already needs --solver lcm"
            )
        self.planned(request, len(people))  # before anything is loaded
        return request.sized(self.limits)
