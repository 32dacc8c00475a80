"""Models of transformers from their own folders, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from selfsame.images.files import InputError, read_json

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
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": safe, "torch_dtype": torch.float32, "output_loading_info": True}
    try:
        model, about = kind.from_pretrained(folder, **options)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder}: {what} cannot be loaded ({' '.join(str(error).split())[:160]}); fetch it again") from None
    missing = [k for k in (*about["missing_keys"], *(k[0] for k in about["mismatched_keys"])) if not k.startswith(SPARED)]
    if missing:
        raise InputError(f"{folder}: not the whole of {what}, {len(missing)} keys are missing or of another shape: {', '.join(sorted(missing)[:3])}")
    return model.eval().requires_grad_(False)
