"""The flags that choose a model, the same for every command that paints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """For photographs: LoRAs of the base, each FILE or FILE:WEIGHT, as in style.safetensors:0.8. With a few-step one: --solver lcm --num-steps 8
    --guidance-scale 1."""
    device: str = "cpu"
    """cpu, cuda or mps."""
    memory: str = "auto"
    """For photographs: high keeps everything loaded, medium lets text encoders and VAE leave, low also keeps the base in 8 bits; auto: what fits."""

    def studio(self) -> Any:
        from selfsame.studio.studio import load

        folders = {name: getattr(self, name) for name in FOLDERS}
        return load(self.model, device=self.device, memory=self.memory, loras=self.lora, **folders)

    def made_by(self, studio: Any, request: Any) -> dict[str, Any]:
        """What of the model decides about pictures; says what memory a picture will need, where that is worth saying."""
        import sys

        memory = "auto"
        if self.model != "mannequin":
            plan, peak = studio.planned(request)
            print(f"memory {plan.name}: about {peak / 2**30:.1f} GB at the peak", file=sys.stderr)
            memory = plan.name if plan.fp8 else "auto"  # the others paint the same pictures
        folders = [str(p.resolve()) if p else None for p in (getattr(self, name) for name in FOLDERS)]
        return {"model": self.model, "folders": folders, "memory": memory, "loras": [str(lora) for lora in getattr(studio, "loras", ())]}
