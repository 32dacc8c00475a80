"""LoRAs of a base: style and few-step files as people share them, applied once to U-Net and text encoders.

What diffusers reads is read: its own keys, peft's, kohya's and A1111's. The additions are fused into the weights, so that nothing is slower.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from selfsame.images.files import InputError, path_and_share
from selfsame.models.single_file import header_of
from selfsame.weights.catalogue import CATALOGUE
from selfsame.weights.fetch import local

STRONGEST = 4.0
LORA = re.compile(r"[._]lora[._]")  # ends a layer's name in a key
TOWERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Lora:
    """A file and how strongly it acts."""

    path: Path
    weight: float = 1.0

    @classmethod
    def read(cls, text: str) -> Lora:
        """From `FILE` or `FILE:WEIGHT`; a file may be called by its name in the catalogue.

        Raises:
            InputError: no such file, a pickle, a weight that cannot be used, or one of the catalogue that was not fetched.
        """
        name, weight = path_and_share(text)
        path = Path(name)
        try:
            number = float(weight or 1)
        except ValueError:
            raise InputError(f"LoRA {text!r}: {weight!r} is no number; write FILE:WEIGHT, as in style.safetensors:0.8") from None
        if not math.isfinite(number) or abs(number) > STRONGEST:
            raise InputError(f"LoRA {text!r}: give a weight from {-STRONGEST:g} to {STRONGEST:g}")
        if not path.exists() and str(path) in CATALOGUE:
            known = CATALOGUE[str(path)]
            path = local(known) / known.parts[0].files[0]
        if not path.is_file():
            raise InputError(f"{path}: no such file; give a LoRA's .safetensors file, or a name such as lcm-lora-sdxl")
        if path.suffix != ".safetensors":
            raise InputError(f"{path}: a LoRA must be a .safetensors file; other kinds may hold code and are not opened")
        header_of(path)
        return cls(path, number)

    def __str__(self) -> str:
        return f"{self.path.resolve()}:{self.weight:g}"


def fuse_unet(loras: Sequence[Lora], unet: Any, *, is_xl: bool) -> None:
    """Add LoRAs to a U-Net's weights.

    Raises:
        InputError: one is for another base, or is no LoRA.
    """
    for lora in loras:
        _fuse(lora, unet, "unet", is_xl, unet.config)


def fuse_text(loras: Sequence[Lora], encoders: Sequence[Any], *, is_xl: bool) -> None:
    """Add what LoRAs say of the text encoders to their weights; many say nothing of them.

    Raises:
        InputError: one is for another base.
    """
    for lora in loras:
        for name, encoder in zip(TOWERS, encoders, strict=False):
            _fuse(lora, encoder, name, is_xl, None)


def _fuse(lora: Lora, model: Any, prefix: str, is_xl: bool, config: Any) -> None:
    """Load what a file says under a prefix, see that all of it found its layer, and add it to the weights."""
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
    from diffusers.utils import recurse_remove_peft_layers
    from peft.tuners.lora import LoraLayer

    if any("dora_scale" in k for k in header_of(lora.path)):
        raise InputError(f"{lora.path}: a DoRA, whose magnitudes cannot be added to the weights here; ask for a plain LoRA")
    loader: Any = StableDiffusionXLLoraLoaderMixin if is_xl else StableDiffusionLoraLoaderMixin
    try:
        values, alphas, about = loader.lora_state_dict(
            str(lora.path), unet_config=config, local_files_only=True, use_safetensors=True, return_lora_metadata=True
        )
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{lora.path}: not a LoRA that can be read ({' '.join(str(error).split())[:160]})") from None
    if not any(LORA.search(k) for k in values):
        raise InputError(f"{lora.path}: holds no LoRA; its keys are {', '.join(sorted(values)[:3])}")
    if not any(k.startswith(tuple(f"{part}." for part in ("unet", *TOWERS))) for k in values):
        raise InputError(f"{lora.path}: a LoRA for another kind of model; its keys are {', '.join(sorted(values)[:3])}")
    wanted = {LORA.split(k)[0] for k in values if k.startswith(f"{prefix}.") and LORA.search(k)}
    if not wanted:
        return
    other = f"{lora.path}: a LoRA for another base than this one"
    try:
        if prefix == "unet":
            loader.load_lora_into_unet(values, alphas, model, "lora", metadata=about)
        else:
            loader.load_lora_into_text_encoder(values, alphas, model, prefix=prefix, adapter_name="lora", metadata=about)
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{other} ({' '.join(str(error).split())[:160]})") from None
    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer) and "lora" in m.lora_A]
    if len(layers) != len(wanted):
        raise InputError(f"{other}: {len(layers)} of its {len(wanted)} layers are here; it names {sorted(wanted)[0]}")
    for layer in layers:
        layer.set_scale("lora", lora.weight)
        layer.merge(safe_merge=True, adapter_names=["lora"])
    recurse_remove_peft_layers(model)
    model._hf_peft_config_loaded = False
    if hasattr(model, "peft_config"):
        del model.peft_config
