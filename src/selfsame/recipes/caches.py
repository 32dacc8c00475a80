"""Everything that stays the same over a training run, computed once: latents, text states, face embeddings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from selfsame.data.tables import Table
from selfsame.images.draw import draw_kps_small
from selfsame.images.files import folder_written_whole, written_whole
from selfsame.mannequins import paint
from selfsame.models.latents import encode
from selfsame.models.text import encode_prompts
from selfsame.perception.embedders import ENCODER_CROP, CropSpec, embed, to_crops
from selfsame.recipes.common import compute_device, fingerprint_of, to_pixels

T = TypeVar("T")
FACE_LABELS = (paint.SKIN, paint.HAIR, paint.EYES, paint.BROWS, paint.NOSE, paint.MOUTH, paint.EARS, paint.GLASSES)


def fingerprint(module: nn.Module, table: Table) -> str:
    """Of a module and a table's records."""
    return fingerprint_of([module], table.digest)


def cached(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array at `path`, made and written atomically when it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make()
        with written_whole(path) as partial, open(partial, "wb") as file:
            np.save(file, made)
    return np.load(path, mmap_mode="r")


def cached_folder(folder: Path, fill: Callable[[Path], None]) -> dict[str, np.ndarray]:
    """Arrays by name in a folder of their own, which `fill` fills when it is not there; atomically."""
    if not folder.exists():
        with folder_written_whole(folder) as partial:
            fill(partial)
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def fill_maps(folder: Path, parts: Iterable[dict[str, np.ndarray]], count: int) -> None:
    """Parts of `count` rows in all, by name, one after the other into memory maps in a folder: for what does not fit into memory."""
    maps: dict[str, np.memmap] = {}
    at = 0
    for part in parts:
        for name, value in part.items():
            if name not in maps:
                path = folder / f"{name}.npy"
                maps[name] = np.lib.format.open_memmap(path, mode="w+", dtype=value.dtype, shape=(count, *value.shape[1:]))
                with open(path, "r+b") as file:  # where the system can: a full disk is an error now, and not the end of the process at some later page
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            maps[name][at : at + len(value)] = value
        at += len(value)
    assert at == count, f"{at} rows came, {count} were announced"
    for values in maps.values():
        values.flush()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Runs of at most `size` items."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


@contextmanager
def computing(module: nn.Module) -> Iterator[torch.device]:
    """A module where recipes compute, and on the CPU again."""
    device = compute_device()
    try:
        module.to(device)
        yield device
    finally:
        module.to("cpu")


def _chunks(count: int, size: int) -> Iterable[slice]:
    return (slice(a, min(a + size, count)) for a in range(0, count, size))


@torch.no_grad()
def latents_of(vae: AutoencoderKL, table: Table, folder: Path, name: str, shrink: int = 1) -> np.ndarray:
    """Posterior means of all rows, n c h w float16, scaled by the VAE's scaling_factor; of pictures shrunk so many times."""

    def make() -> np.ndarray:
        with computing(vae) as device:
            chunks = _chunks(len(table), 32 if device.type == "cpu" else 512)
            return torch.cat([encode(vae, F.avg_pool2d(to_pixels(table.images[rows]), shrink)).half().cpu() for rows in chunks]).numpy()

    assert vae.quant_conv is not None
    encoding = nn.ModuleList([vae.encoder, vae.quant_conv])  # another decoder gives the same latents
    return cached(folder / f"{name}.latents.{fingerprint(encoding, table)}.npy", make)


def text_of(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, table: Table, folder: Path, name: str) -> np.ndarray:
    """Text states of the captions of all rows, n t c float16."""

    def make() -> np.ndarray:
        with computing(text_encoder):
            states = [
                encode_prompts(tokenizer, text_encoder, part).encoder_hidden_states.half().cpu()
                for part in batched((r["caption"] for r in table.records), 1024)
            ]
        return torch.cat(states).numpy()

    return cached(folder / f"{name}.text.{fingerprint(text_encoder, table)}.npy", make)


def faces_of(encoder: nn.Module, table: Table, rows: np.ndarray, folder: Path, name: str, spec: CropSpec = ENCODER_CROP) -> np.ndarray:
    """Raw (not normalised) embeddings of the first face of rows, n d float32; other rows are zero."""

    def read(crops: Tensor) -> Tensor:
        with computing(encoder):
            return embed(encoder, crops)

    kind = "faces" if spec == ENCODER_CROP else f"faces{spec.size}"
    return cached(folder / f"{name}.{kind}.{fingerprint(encoder, table)}.npy", lambda: _read_faces(read, table, rows, spec))


def clip_faces_of(tower: nn.Module, table: Table, rows: np.ndarray, folder: Path, name: str) -> np.ndarray:
    """CLIP's image features of the encoder's crops of faces of rows, n d float32; other rows are zero."""
    path = folder / f"{name}.clip-faces.{fingerprint(tower, table)}.npy"
    return cached(path, lambda: _read_faces(lambda crops: clip_features(tower, crops), table, rows, ENCODER_CROP))


def _read_faces(read: Callable[[Tensor], Tensor], table: Table, rows: np.ndarray, spec: CropSpec) -> np.ndarray:
    """What is read of the first face of rows, n d float32; other rows are zero."""
    parts = [part for part in np.array_split(rows, max(1, len(rows) // 256)) if len(part)]
    seen = torch.cat([read(to_crops([np.asarray(table.images[i]) for i in part], [table.kps[i] for i in part], spec)) for part in parts]).numpy()
    out = np.zeros((len(table), seen.shape[1]), np.float32)
    out[rows] = seen
    return out


@torch.no_grad()
def clip_features(tower: Any, crops: Tensor) -> Tensor:
    """CLIP's image features of crops b 3 s s in [-1, 1], b d, as long as a face encoder's embeddings are."""
    seen = F.normalize(tower(crops).image_embeds.float(), dim=1)
    return seen * seen.shape[1] ** 0.5


def face_shares_of(table: Table, folder: Path, name: str, cell: int = 8) -> np.ndarray:
    """How much of each latent cell is face or hair, n h w float16 in [0, 1]."""
    on_face = np.isin(np.arange(256), FACE_LABELS)

    def make() -> np.ndarray:
        n, height, width = table.labels.shape
        out = np.zeros((n, height // cell, width // cell), np.float16)
        for rows in _chunks(n, 512):
            out[rows] = on_face[table.labels[rows]].reshape(-1, height // cell, cell, width // cell, cell).mean((2, 4))
        return out

    return cached(folder / f"{name}.face{cell}.{table.digest[:12]}.npy", make)


def as_tensor(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(rows)).float()


def drawings_of(table: Table, rows: np.ndarray, kps: Callable[[int], np.ndarray], folder: Path, name: str) -> np.ndarray:
    """Drawings of each row's key points (5 2, or 68 2), n h w 3 uint8; other rows are black."""

    def make() -> np.ndarray:
        out = np.zeros((len(table), 128, 128, 3), np.uint8)

        def draw(i: int) -> None:
            out[i] = draw_kps_small(128, 128, kps(i))

        with ThreadPoolExecutor(os.cpu_count()) as threads:  # OpenCV lets the others work meanwhile
            for _ in threads.map(draw, rows, chunksize=64):
                pass
        return out

    return cached(folder / f"{name}.kps.{table.digest[:12]}.npy", make)
