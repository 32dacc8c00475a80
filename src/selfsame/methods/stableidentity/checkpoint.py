"""Learned words in and out of files: the official bare tensor, diffusers' and A1111's textual-inversion files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from selfsame.images.files import written_whole
from selfsame.values.identity import Identity, LearnedWords, is_identity
from selfsame.weights.official import read_official

FORMATS = Literal["diffusers", "a1111", "official"]
MAX_BYTES = 64_000_000
UNKNOWN_TOWER = ""  # these files do not say which text tower they were learned for
SDXL_TOWERS = ("clip_l", "clip_g")


def read_words(path: str | Path, placeholder: str | None = None) -> LearnedWords:
    """Learned words from any file that holds some.

    Understood: an `Identity` with words; StableIdentity's official `.pt` (a bare tensor 1 n d); a textual inversion of diffusers
    ({token: n d}), A1111 (`string_to_param`, or `emb_params` in safetensors) or SDXL (`clip_l`, `clip_g`).

    Args:
        placeholder: what is to stand for them in prompts; by default the file's own token, or its name: ada.pt is `<ada>`.

    Raises:
        ValueError: no such file, too large, damaged, holding code, or no words; the message names it and the remedy.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and path.is_file() and is_identity(path):
        words = Identity.load(path).words
        if words is None:
            raise ValueError(f"{path}: an identity without learned words; learn them with `selfsame learn`")
        return words if placeholder is None else replace(words, placeholder=placeholder)
    return words_of(read_official(path, "learned words", MAX_BYTES), path, placeholder)


def words_of(values: Any, path: Path, placeholder: str | None = None) -> LearnedWords:
    """Learned words from what a file of another program holds; `placeholder` as of `read_words`.

    Raises:
        ValueError: it holds none.
    """
    token, vectors = _understood(values, path)
    name = placeholder or placeholder_of(token) or placeholder_of(path.stem) or "<person>"
    return LearnedWords(tuple(v.detach().float().cpu().numpy() for v in vectors), name, UNKNOWN_TOWER, {"from": path.name})


def _understood(values: Any, path: Path) -> tuple[str, list[Tensor]]:
    """The file's own token ("" when it has none) and the vectors n d of each text tower."""
    token = ""
    if isinstance(values, Tensor):
        found = [values]
    elif isinstance(values, Mapping) and isinstance(values.get("string_to_param"), Mapping) and values["string_to_param"]:
        found, token = [next(iter(values["string_to_param"].values()))], str(values.get("name") or "")
    elif isinstance(values, Mapping) and set(SDXL_TOWERS) <= values.keys():
        found = [values[k] for k in SDXL_TOWERS]
    elif isinstance(values, Mapping) and len(values) == 1:
        token, vector = next(iter(values.items()))
        found, token = [vector], "" if token == "emb_params" else str(token)
    else:
        found = []
    if not found or not all(isinstance(v, Tensor) and v.is_floating_point() for v in found):
        raise ValueError(f"{path}: holds no learned words; give an identity, a textual-inversion file or StableIdentity's .pt")
    shaped = [v[0] if v.ndim == 3 and len(v) == 1 else v[None] if v.ndim == 1 else v for v in found]
    if not all(v.ndim == 2 and v.numel() for v in shaped):
        raise ValueError(f"{path}: tensors of shape {[tuple(v.shape) for v in found]} are no words; (n, d) or (1, n, d) is")
    return token, shaped


def placeholder_of(name: str) -> str:
    """A file's or token's name as a placeholder, "" when nothing of it can be used."""
    kept = "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "-" for c in name.strip("<>*").lower()).strip("-_")
    return f"<{kept}>" if kept else ""


def write_words(words: LearnedWords, path: str | Path, form: FORMATS = "diffusers") -> Path:
    """Learned words as other programs read them, atomically.

    `diffusers` is what `load_textual_inversion` takes, `a1111` what A1111 and ComfyUI take as an embedding, `official` StableIdentity's
    bare tensor. Words of two text towers are written as `clip_l` and `clip_g`, as user interfaces share SDXL's, in the diffusers form only
    (diffusers itself takes each by its own call; `words_added` does that).

    Raises:
        ValueError: the file's ending does not fit, or the form cannot hold two towers.
    """
    path = Path(path)
    if form not in get_args(FORMATS):
        raise ValueError(f"form {form!r}: choose from {', '.join(get_args(FORMATS))}")
    ending = ".safetensors" if form == "diffusers" else ".pt"
    if path.suffix != ending:
        raise ValueError(f"{path}: the {form} form is written as {ending}; name it {path.with_suffix(ending).name}")
    vectors = [torch.from_numpy(v.copy()) for v in words.vectors]
    if len(vectors) > 1 and form != "diffusers":
        raise ValueError(f"{path}: the {form} form holds words of one text tower, these have {len(vectors)}; choose diffusers")
    name = words.placeholder.strip("<>")
    with written_whole(path) as partial:
        if form == "diffusers":
            keys = (words.placeholder,) if len(vectors) == 1 else SDXL_TOWERS
            named: dict[str, torch.Tensor] = dict(zip(keys, vectors, strict=True))
            save_file(named, partial, metadata={"format": "pt"})
        elif form == "a1111":
            step = int(words.about.get("steps", 0))
            torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors[0]}, "name": name, "step": step}, partial)
        else:
            torch.save(vectors[0][None], partial)
    return path
