"""The flags that choose a model, the same for every command that paints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

FOLDERS = ("base", "instantid", "face_models")


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model paints, and where."""

    model: str = "mannequin"
    """mannequin, or for photographs instantid-sdxl or instantid-sd15 (`selfsame models` lists what they need)."""
    base: Path | None = None
    """For photographs: your own fine-tune instead of the fetched base, a diffusers folder or one .safetensors file."""
    instantid: Path | None = None
    """For photographs: a folder of InstantID's layout instead of the fetched one."""
    face_models: Path | None = None
    """For photographs: a folder of face models instead of antelopev2."""
    lora: tuple[str, ...] = ()
    """For photographs: LoRAs of the base, each FILE or FILE:WEIGHT, as in style.safetensors:0.8. With LCM-LoRA: --speed turbo."""
    device: str = "cpu"
    """cpu, cuda or mps."""
    memory: str = "auto"
    """For photographs: high keeps everything loaded, medium lets text encoders and VAE leave, low also keeps the base in 8 bits; auto: what fits."""

    precision: str = "auto"
    """For photographs: fp32, fp16 or bf16; auto: fp16 on a GPU, fp32 on a CPU, where --speed fast takes bf16 if that is faster."""

    licence: Annotated[Literal["any", "commercial"], arg(aliases=["--license"])] = "any"
    """commercial: only weights that may be used so; others are refused, with what to use instead. Folders of your own are yours to judge, unless they bear a
    known model's name."""

    def studio(self, orders: Sequence[Any] = ()) -> Any:
        from selfsame.studio.studio import load

        self.check_licence(orders)
        folders = {name: getattr(self, name) for name in FOLDERS}
        return load(self.model, device=self.device, memory=self.memory, precision=self.precision, loras=self.lora, **folders)

    def check_licence(self, orders: Sequence[Any] = ()) -> None:
        """Refuse weights that the licence asked for does not allow.

        Args:
            orders: what will be painted, where that is known; without any, whatever the model can need.

        Raises:
            InputError: one of the catalogue's models among them.
        """
        if self.licence == "any" or self.model == "mannequin":
            return
        from selfsame.weights.catalogue import CATALOGUE, must_be_commercial

        if self.model == "mimicbrush":
            own: Path | None = getattr(self, "weights", None)
            if own is None or own.resolve().name == "mimicbrush":
                must_be_commercial(CATALOGUE["mimicbrush"])
            return
        usual = {"base": "sd15"} if self.model == "instantid-sd15" else {"base": "sdxl", "instantid": "instantid"}
        if orders and not any(order.shows_people for order in orders):
            usual.pop("instantid", None)
        elif self.instantid or "instantid" in usual:  # else words alone paint, and no face is read
            usual |= {"face_models": "antelopev2"}
        if any(order.keep for order in orders):
            usual |= {"clip": "clip-vit-l14"}
        given = {name: path for name in FOLDERS if (path := getattr(self, name))}
        names = (usual | {name: path.resolve().name for name, path in given.items()}).values()
        for name in (*names, *(text.split(":")[0] for text in self.lora)):
            if name in CATALOGUE:
                must_be_commercial(CATALOGUE[name])

    def made_by(self, studio: Any, request: Any, people: int = 1) -> dict[str, Any]:
        """What of the model decides about pictures; says what memory a picture will need, where that is worth saying."""
        import sys

        if self.model != "mannequin":
            plan, peak = studio.planned(request, people)
            print(f"memory {plan.name}: about {peak / 2**30:.1f} GB at the peak", file=sys.stderr)
        folders = [str(p.resolve()) if p else None for p in (getattr(self, name) for name in FOLDERS)]
        return {
            "model": self.model,
            "folders": folders,
            "precision": self.precision,
            "loras": [str(lora) for lora in getattr(studio, "loras", ())],
            "weights": self.weights_digest(studio),
            **({} if self.model == "mannequin" else {"memory": self.memory}),  # in the file of a picture, what it came to
        }

    def weights_digest(self, studio: Any) -> str:
        """Short hash of the weights that paint: of the miniature's own hashes, else of the files' names, sizes and dates.

        Args:
            studio: or, of MimicBrush, its editor.
        """
        import hashlib
        import json

        from selfsame.weights.mannequin import manifest

        if self.model == "mannequin":
            said: Any = manifest()["files"]
        else:
            own = [studio.folder] if self.model == "mimicbrush" else [*vars(studio.folders).values(), *(lora.path for lora in studio.loras)]
            roots = [p for p in own if isinstance(p, Path)]
            files = [f for root in roots for f in (sorted(root.rglob("*")) if root.is_dir() else [root]) if f.is_file()]
            said = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
