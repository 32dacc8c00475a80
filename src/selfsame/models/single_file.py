"""Fine-tunes in one file, as most people share them, laid out once as a diffusers folder."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from selfsame.images.files import InputError, disk_is_full, folder_written_whole, write_json

KINDS = (  # a key's beginning that only such a file has
    ("conditioner.embedders.1.", "sdxl"),
    ("cond_stage_model.transformer.", "sd15"),
    ("cond_stage_model.model.", "sd21-base"),
)
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SEEN = "selfsame-source.json"  # in a folder: which file it was made of
LARGEST_HEADER = 100_000_000


def header_of(path: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors, without reading them.

    Raises:
        InputError: it is none, or damaged.
    """
    try:
        with open(path, "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(min(length, LARGEST_HEADER)))
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"{path}: damaged or no safetensors file ({error}); fetch it again") from None
    return {k: v for k, v in header.items() if k != "__metadata__"}


def kind_of(path: Path) -> str:
    """Which base a checkpoint in one file is a fine-tune of: sdxl, sd15 or sd21-base.

    Raises:
        InputError: a pickle, damaged, or no whole checkpoint.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a checkpoint in one file must be .safetensors; a .ckpt may hold code and is not opened")
    keys = header_of(path)
    kind = next((name for part, name in KINDS if any(k.startswith(part) for k in keys)), None)
    if kind is None or not all(any(k.startswith(part) for k in keys) for part in ("model.diffusion_model.", "first_stage_model.")):
        some = ", ".join(sorted(keys)[:2])
        lacks = " without a VAE" if kind is not None and not any(k.startswith("first_stage_model.") for k in keys) else ""
        raise InputError(
            f"{path}: no whole Stable Diffusion checkpoint{lacks} (it holds {some} ...); give one with text encoder and VAE, no LoRA or U-Net alone"
        )
    return kind


def prediction_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its prediction where that is not its base's: the keys `v_pred` and `ztsnr`, which ComfyUI reads too."""
    keys = header_of(path)
    said = {"prediction_type": "v_prediction"} if "v_pred" in keys else {}
    return said | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in keys else {})


def _seen(path: Path) -> dict[str, Any]:
    """By which a file is known again without reading it."""
    stat = path.stat()
    return {"file": str(path.resolve()), "size": stat.st_size, "changed": stat.st_mtime_ns}


def _folder_of(path: Path, into: Path) -> Path:
    """Where a file's folder lies, named after the hash of all that it holds; a file that has not changed since is not read again."""
    seen = _seen(path)
    for known in sorted(into.glob(f"{glob.escape(path.stem)}-*/{SEEN}")):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(known.read_text()) == seen:
                return known.parent
    with open(path, "rb") as f:
        folder = into / f"{path.stem}-{hashlib.file_digest(f, 'sha256').hexdigest()[:12]}"
    if (folder / "model_index.json").exists():  # moved, or touched
        with contextlib.suppress(OSError):
            write_json(folder / SEEN, seen)
    return folder


def unpacked(path: Path, config: Path, into: Path) -> Path:
    """The diffusers folder of a checkpoint in one file; made once, then found again by what the file holds.

    Args:
        config: a diffusers folder of the same base, whose configs and tokenizers are used.
        into: where such folders are kept.

    Raises:
        InputError: the file does not fit the configs.
    """
    folder = _folder_of(path, into)
    if (folder / "model_index.json").exists():
        return folder
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    kind: Any = StableDiffusionXLPipeline if (config / "text_encoder_2").is_dir() else StableDiffusionPipeline
    without: dict[str, Any] = {"feature_extractor": None, "image_encoder": None} | ({} if kind is StableDiffusionXLPipeline else {"safety_checker": None})
    dtype = next((DTYPES[v["dtype"]] for k, v in header_of(path).items() if k.startswith("model.diffusion_model.") and v["dtype"] in DTYPES), torch.float32)
    try:
        pipe = kind.from_single_file(str(path), config=str(config), local_files_only=True, torch_dtype=dtype, **without)
        if said := prediction_of(path):
            pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **said)  # which knows of zero SNR; others drop it
        with folder_written_whole(folder) as partial:
            pipe.save_pretrained(partial)
            write_json(partial / SEEN, _seen(path))
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, SafetensorError, SingleFileComponentError) as error:
        if disk_is_full(error):
            raise InputError(f"{into}: the disk is full; reading {path.name} needs as much room as it takes itself") from None
        if not isinstance(error, OSError):
            raise InputError(f"{path}: cannot be read as a checkpoint of {config.name}'s kind ({' '.join(str(error).split())[:160]})") from None
        if not (folder / "model_index.json").exists():
            raise InputError(f"{path}: cannot be laid out as a folder ({error})") from None
    return folder
