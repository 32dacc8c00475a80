"""Models of transformers from their own folders, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from selfsame.images.files import InputError, read_json
from selfsame.weights.official import read_whole

SPARED = ("pooler.",)  # of keys that may be missing: parts that are not looked at


def read_stock(kind: Any, folder: Path, what: str, kinds: Sequence[str]) -> Any:
    """A stock model from its own folder, whole, frozen, in full precision.

    Raises:
        InputError: no such folder, another model, or damaged; weights that were not read would be random ones.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{folder}: no config.json there; give the folder of {what} as transformers saves it")
    found = read_json(config).get("model_type")
    if found not in kinds:
        raise InputError(f"{folder}: holds a {found}, not {what}; such a folder says {' or '.join(kinds)}")
    safe = True if any(folder.glob("*.safetensors")) else None  # else a .bin, of which transformers reads tensors alone
    return read_whole(kind, folder, what, spared=SPARED, use_safetensors=safe, torch_dtype=torch.float32)
