"""`selfsame convert`: learned people and adapters in the files of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Convert:
    """Write a learned person or InstantID's adapter as other programs read them, and back.

    Examples:
      selfsame convert me.safetensors --out me.pt                                an embedding for A1111 and ComfyUI: write "me" in the prompt
      selfsame convert me.safetensors --out me-words.safetensors                 what diffusers' load_textual_inversion takes; SDXL's two towers too
      selfsame convert me.pt --form official --out me-bare.pt                    StableIdentity's bare tensor
      selfsame convert InstantID/ip-adapter.bin --out ip-adapter.safetensors     ComfyUI's flat file; a name in .bin leads back
    """

    source: Positional[Path]
    """An identity with learned words, a textual inversion, StableIdentity's .pt, or InstantID's adapter."""
    out: Path
    """The file to write."""
    form: Literal["auto", "diffusers", "a1111", "official"] = "auto"
    """Of learned words; auto: diffusers for .safetensors, a1111 for .pt."""
    overwrite: bool = False
    """Replace an output that exists."""

    def run(self) -> int:
        from selfsame.images.files import InputError, spare_inputs
        from selfsame.methods.instantid.checkpoint import convert_adapter, is_adapter
        from selfsame.methods.stableidentity.checkpoint import read_words, write_words

        spare_inputs([self.out], [self.source])
        if not self.source.is_file():
            raise InputError(f"{self.source}: no such file; give an identity, a file of learned words or InstantID's adapter")
        if not self.out.parent.is_dir():
            raise InputError(f"{self.out.parent}: no such folder; make it first or choose another --out")
        if self.out.exists() and not self.overwrite:
            raise InputError(f"{self.out}: exists already; choose another --out, or --overwrite to replace it")
        if is_adapter(self.source):
            if self.form != "auto":
                raise InputError(f"--form {self.form} is of learned words; the ending of --out says how an adapter is written (.bin or .safetensors)")
            print(convert_adapter(self.source, self.out))
            return 0
        words = read_words(self.source)
        form = ("diffusers" if self.out.suffix == ".safetensors" else "a1111") if self.form == "auto" else self.form
        print(f"{write_words(words, self.out, form)}  {words.placeholder}, {words.num_words} words, {form}")
        return 0
