"""`selfsame convert`: learned people and adapters in the files of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Convert:
    """Write a learned person as other programs read one, InstantID's adapter in ComfyUI's form and back, MimicBrush's official files as stock folders.

    Examples:
      selfsame convert me.safetensors --out me.pt                                an embedding for A1111 (prompt: me) and ComfyUI (prompt: embedding:me)
      selfsame convert me.safetensors --out me-words.safetensors                 what diffusers' load_textual_inversion takes; of SDXL clip_l and clip_g
      selfsame convert me.pt --form official --out me-bare.pt                    StableIdentity's bare tensor
      selfsame convert InstantID/ip-adapter.bin --out ip-adapter.safetensors     ComfyUI's flat file; a name in .bin leads back
      selfsame convert runs/mine --base SDXL --out mine                          an InstantID of selfsame's own form as the official layout
      selfsame convert MimicBrush --out MimicBrush-stock                         folders of safetensors for diffusers, transformers and `edit --weights`
    """

    source: Positional[Path]
    """An identity with learned words, a textual inversion, StableIdentity's .pt, InstantID's adapter, or a folder of InstantID or of MimicBrush's official
    layout."""
    out: Path
    """The file to write; of a folder the folder."""
    form: Literal["auto", "diffusers", "a1111", "official", "comfyui", "selfsame"] = "auto"
    """Of learned words diffusers, a1111 or official (auto: diffusers for .safetensors, a1111 for .pt); of a folder of InstantID official (auto), comfyui (the
    adapter as one flat safetensors file) or selfsame (layers by name)."""
    base: Path | None = None
    """For a folder of InstantID: a diffusers folder of the base that it is for."""
    overwrite: bool = False
    """Replace an output that exists."""

    def run(self) -> int:
        from selfsame.images.files import InputError, new_output, spare_inputs
        from selfsame.methods.instantid.checkpoint import convert_adapter, halves_of, is_instantid
        from selfsame.methods.stableidentity.checkpoint import read_words, words_of, write_words
        from selfsame.values.identity import is_identity
        from selfsame.weights.official import read_official

        spare_inputs([self.out], [self.source])
        if self.source.is_dir() and is_instantid(self.source):
            print(self._instantid(new_output(self.out)))
            return 0
        if self.base is not None:
            raise InputError(f"--base belongs to a folder of InstantID, which {self.source} is not")
        if self.source.is_dir():
            from selfsame.studio.brush import BrushEditor

            if self.form != "auto" or self.overwrite:
                raise InputError(f"{self.source}: is a folder, of MimicBrush; --form is of learned words, and --overwrite of single files")
            print(BrushEditor(self.source).save(new_output(self.out)))
            return 0
        if self.form in ("comfyui", "selfsame"):
            raise InputError(f"--form {self.form} is of a folder of InstantID; an adapter's file is written in either form by the ending of --out")
        new_output(self.out, self.overwrite)
        if self.source.suffix == ".safetensors" and self.source.is_file() and is_identity(self.source):
            words = read_words(self.source)
        else:
            values = read_official(self.source, "learned words, or InstantID's adapter")
            if halves := halves_of(values):
                if self.form != "auto":
                    raise InputError(f"--form {self.form} is of learned words; the ending of --out says how an adapter is written (.bin or .safetensors)")
                print(convert_adapter(halves, self.source, self.out))
                return 0
            words = words_of(values, self.source)
        form: Any = ("diffusers" if self.out.suffix == ".safetensors" else "a1111") if self.form == "auto" else self.form
        print(f"{write_words(words, self.out, form)}  {words.placeholder}, {words.num_words} words, {form}")
        return 0

    def _instantid(self, out: Path) -> Path:
        """A folder of InstantID in another form."""
        from accelerate import init_empty_weights
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        from selfsame.images.files import InputError, read_json
        from selfsame.methods.instantid.checkpoint import dtypes_of, instantid_from_official, instantid_to_official

        if self.overwrite:
            raise InputError("--overwrite is of single files: choose another folder for a folder")
        if self.form in ("diffusers", "a1111"):
            raise InputError(f"--form {self.form} is of learned words; a folder of InstantID is written as official, comfyui or selfsame")
        if self.base is None or not (self.base / "unet" / "config.json").is_file():
            raise InputError("a folder of InstantID needs --base, the diffusers folder of the base that it is for: its layers are numbered by it")
        with init_empty_weights():  # the layers' names and widths alone are needed
            unet: Any = UNet2DConditionModel.from_config(read_json(self.base / "unet" / "config.json"))
        adapter, net = dtypes_of(self.source)
        method: Any = instantid_from_official(self.source, unet, dtype=adapter)
        method.identity_net.to(dtype=net)
        if self.form == "selfsame":
            method.save_pretrained(out)
            return out
        return instantid_to_official(method, out, form="safetensors" if self.form == "comfyui" else "official")
