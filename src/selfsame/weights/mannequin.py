"""The weights that ship inside the package: where they lie, their hashes, how they are read and replaced."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from selfsame.images.files import written_whole

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

FOLDER = Path(__file__).parent / "mannequin_files"
MANIFEST = "manifest.json"


class WeightsError(RuntimeError):
    """Weights are missing or are not what the manifest says."""


def sha256(path: Path) -> str:
    """Hash of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def manifest(folder: Path | None = None) -> dict[str, Any]:
    """What ships: file -> sha256, and for each model its provenance.

    Raises:
        WeightsError: the manifest is missing.
    """
    path = (folder or FOLDER) / MANIFEST
    if not path.exists():
        raise WeightsError(f"{path} is missing: reinstall selfsame, or train the model with `selfsame train` and ship it")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise WeightsError(f"{path} is damaged ({error}): reinstall selfsame") from None


@cache
def _checked(name: str, folder: Path) -> Path:
    path = folder / name
    if not path.exists():
        raise WeightsError(f"{path} is missing: reinstall selfsame")
    expected = manifest(folder)["files"].get(name)
    if expected is None:
        raise WeightsError(f"{path} is not in the manifest: reinstall selfsame, or ship it with `selfsame train ... --ship`")
    actual = sha256(path)
    if actual != expected:
        raise WeightsError(f"{path} has sha256 {actual[:12]}..., the manifest says {expected[:12]}...: reinstall selfsame")
    return path


def digest_of(names: Sequence[str]) -> str:
    """Short hash of shipped files or folders, as the manifest knows them; "" for none, or before any are installed."""
    known = manifest()["files"] if names else {}
    mine = sorted((file, digest) for file, digest in known.items() if any(file == n or file.startswith(f"{n}/") for n in names))
    return hashlib.sha256(json.dumps(mine).encode()).hexdigest()[:12] if mine else ""


def checked(name: str, folder: Path | None = None) -> Path:
    """A shipped file whose hash is right.

    Raises:
        WeightsError: it is missing or has another hash; the message names the file and the remedy.
    """
    return _checked(name, folder or FOLDER)


def checked_folder(sub: str, folder: Path | None = None) -> Path:
    """A shipped folder, all of whose files are there and have the right hashes: weights, configs, vocabularies.

    Raises:
        WeightsError: a file is missing or has another hash.
    """
    root = folder or FOLDER
    names = [name for name in manifest(root)["files"] if name.startswith(f"{sub}/")]
    if not names:
        raise WeightsError(f"{root / sub} is missing: reinstall selfsame, or train and ship the model")
    for name in names:
        checked(name, root)
    return root / sub


def load_into(module: nn.Module, name: str, folder: Path | None = None) -> nn.Module:
    """Fill a module strictly from a shipped safetensors file, in float32, ready for use."""
    values = {k: v.float() if v.is_floating_point() else v for k, v in load_file(checked(name, folder)).items()}
    module.load_state_dict(values, strict=True)
    return module.eval().requires_grad_(False)


def ship(values: dict[str, torch.Tensor], name: str, provenance: dict[str, Any], folder: Path | None = None) -> Path:
    """Put weights into the package as float16 safetensors and note their hash and provenance, atomically."""
    folder = folder or FOLDER
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {k: (v.detach().half() if v.is_floating_point() else v.detach()).contiguous().cpu() for k, v in values.items()}
    with written_whole(path) as partial:
        save_file(half, partial, metadata={"format": "pt"})
    note(name, provenance, folder)
    return path


def note(name: str, provenance: dict[str, Any], folder: Path | None = None) -> None:
    """Record the hash and provenance of a shipped file; of a shipped folder, the hashes of all its files."""
    folder = folder or FOLDER
    path = folder / MANIFEST
    content = json.loads(path.read_text()) if path.exists() else {"files": {}, "provenance": {}}
    files = sorted(p for p in (folder / name).rglob("*") if p.is_file()) if (folder / name).is_dir() else [folder / name]
    content["files"] |= {p.relative_to(folder).as_posix(): sha256(p) for p in files}
    if provenance:
        content["provenance"][name] = provenance
    _write_manifest(folder, content)


def install(staged: Path, folder: Path) -> None:
    """Move the files of a staged folder, laid out as the package's and with its own manifest, into the package; hashes and provenance last."""
    new, path = json.loads((staged / MANIFEST).read_text()), folder / MANIFEST
    content = json.loads(path.read_text()) if path.exists() else {"files": {}, "provenance": {}}
    for file in sorted(p for p in staged.rglob("*") if p.is_file() and p != staged / MANIFEST):
        target = folder / file.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    _write_manifest(folder, {part: content[part] | new[part] for part in ("files", "provenance")})


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    with written_whole(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    _checked.cache_clear()


@contextmanager
def quietly() -> Iterator[None]:
    """Small models load in a blink: no library's progress bar."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _folder_model(cls: Any, sub: str, folder: Path | None) -> Any:
    root = folder or FOLDER
    checked_folder(sub, root)
    with quietly():
        model = cls.from_pretrained(root / sub, torch_dtype=torch.float32, local_files_only=True)
    return model.eval().requires_grad_(False)


def load_vae(folder: Path | None = None) -> AutoencoderKL:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return _folder_model(AutoencoderKL, "base/vae", folder)


def load_unet(folder: Path | None = None) -> UNet2DConditionModel:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return _folder_model(UNet2DConditionModel, "base/unet", folder)


def load_text(folder: Path | None = None) -> tuple[CLIPTokenizer, CLIPTextModel]:
    from transformers import CLIPTextModel, CLIPTokenizer

    root = folder or FOLDER
    text_encoder = _folder_model(CLIPTextModel, "base/text_encoder", root)
    return CLIPTokenizer.from_pretrained(checked_folder("base/tokenizer", root), local_files_only=True), text_encoder
