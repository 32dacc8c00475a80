"""Files of other programs, read safely: tensors and plain values only, nothing in them is executed."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfsame.images.files import InputError, written_whole
from selfsame.weights.mannequin import quietly


def read_official(path: str | Path, what: str = "weights", max_bytes: int = 0) -> Any:
    """A `.safetensors` file as a flat dict, or a torch pickle (`.bin`, `.pt`, `.pth`, `.ckpt`) with whatever plain values it holds.

    Args:
        what: what the file should be, for messages.
        max_bytes: 0: any size.

    Raises:
        InputError: no such file, too large, damaged, cut off, or holding code; the message names it and the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    if max_bytes and path.stat().st_size > max_bytes:
        raise InputError(f"{path}: {path.stat().st_size / 1e6:.0f} MB is too large for {what}; is it a whole model?")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged or no safetensors file ({error}); make or download it anew") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        with open(path, "rb") as f:
            head = f.read(32).lstrip()
        if head.startswith(b"version https://git-lfs"):
            raise InputError(f"{path}: only a pointer of git-lfs; fetch the file itself (`git lfs pull`, or `selfsame models fetch`)") from None
        if head.startswith(b"<"):
            raise InputError(f"{path}: a web page, not {what}; the download went wrong, fetch it again") from None
        raise InputError(f"{path}: holds more than tensors, perhaps code, and is not opened; ask for a safetensors file") from None
    except Exception as error:  # torch's reader lets any error through on damaged bytes: struct.error, UnicodeDecodeError ...
        raise InputError(f"{path}: damaged, or no file of {what} ({type(error).__name__}); make or download it anew") from None


def variant_of(folder: Path) -> dict[str, Any]:
    """What `from_pretrained` must be told of a model's folder that holds half precision under a name of its own."""
    return {"variant": "fp16"} if any(folder.glob("*.fp16.safetensors")) else {}


def read_stock_model(kind: Any, folder: Path, what: str, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """A diffusers or transformers model from its own folder, and what the library says of its keys; nothing in the files is executed.

    Args:
        what: it is, for messages.
        options: of `from_pretrained`.

    Raises:
        InputError: it cannot be loaded; the message says what the files look like where they are no weights.
    """
    talk = logging.getLogger("transformers")
    level = talk.level
    talk.setLevel(logging.ERROR)  # its table of keys is for the message to say
    try:
        with quietly():
            return kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        if not any(folder.glob("*.safetensors")):
            for path in sorted(folder.glob("*.bin")):
                read_official(path, what)
        raise InputError(f"{folder}: {what} cannot be loaded ({' '.join(str(error).split())[:160]}); fetch it again") from None
    finally:
        talk.setLevel(level)


def read_whole(kind: Any, folder: Path, what: str, *, spared: tuple[str, ...] = (), **options: Any) -> Any:
    """`read_stock_model`, whole and frozen: weights that a file does not hold would be random ones.

    Args:
        spared: how keys begin that may be missing.

    Raises:
        InputError: it cannot be loaded, or lacks keys; the message names three.
    """
    model, about = read_stock_model(kind, folder, what, **options)
    missing = [k for k in (*about["missing_keys"], *(k[0] for k in about["mismatched_keys"])) if not k.startswith(spared)]
    if missing:
        some = ", ".join(sorted(missing)[:3])
        extra = f"; it holds {', '.join(sorted(about['unexpected_keys'])[:3])} instead" if about["unexpected_keys"] else ""
        raise InputError(f"{folder}: not the whole of {what}, {len(missing)} keys are missing or of another shape: {some}{extra}")
    return model.eval().requires_grad_(False)


def tensors_under(values: Any, prefix: str) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint: nested under its name, or flattened with the name and a dot before every key; empty when it is not there."""
    if not isinstance(values, Mapping):
        return {}
    nested = values.get(prefix)
    if isinstance(nested, Mapping):
        return {k: v for k, v in nested.items() if isinstance(v, Tensor)}
    return {k.removeprefix(f"{prefix}."): v for k, v in values.items() if isinstance(k, str) and k.startswith(f"{prefix}.") and isinstance(v, Tensor)}


def write_tensors(path: Path, parts: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, str] | None = None) -> Path:
    """Parts of a checkpoint: nested in a torch file (`.bin`, `.pt`), flattened with their names before the keys in `.safetensors`; atomically.

    Args:
        about: notes that a safetensors file carries.

    Raises:
        InputError: another ending.
    """
    plain = {part: {k: v.detach().contiguous().cpu() for k, v in values.items()} for part, values in parts.items()}
    with written_whole(path) as partial:
        if path.suffix == ".safetensors":
            save_file({f"{part}.{k}": v for part, values in plain.items() for k, v in values.items()}, partial, metadata={"format": "pt", **(about or {})})
        elif path.suffix in (".bin", ".pt"):
            torch.save(plain, partial)
        else:
            raise InputError(f"{path}: end the name in .safetensors or .bin")
    return path
