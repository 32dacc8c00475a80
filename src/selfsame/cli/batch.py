"""`selfsame batch`: many pictures from a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from selfsame.cli.say import bar, warn


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Paint all lines of a manifest: a JSON object a line (.jsonl), or a table with a header (.csv).

    Fields are the flags of `selfsame generate` with _ for -, and `id`, which names the pictures:
      {"id": "ada-1", "face": "ada.png", "prompt": "a photo of a person on a beach", "seed": 3}
      {"id": "two", "people": ["ada.png", "ben.png"], "width": 192, "prompt": "a photo of two people"}
    Paths start from the manifest's folder. Pictures and results.jsonl (status, error, seconds, scores, files, parameters) go to --out.
    A bad line is reported and the rest goes on; run the same command again to go on where it was stopped.
    """

    manifest: Annotated[Path, tyro.conf.Positional]
    """The manifest."""
    out: Path = Path("batch")
    """Folder for pictures and results; it is made when missing."""
    model: str = "mannequin"
    """mannequin, instantid-sdxl or instantid-sd15."""
    base: Path | None = None
    """For photographs: a diffusers folder instead of the fetched base."""
    instantid: Path | None = None
    """For photographs: a folder of InstantID's layout instead of the fetched one."""
    face_models: Path | None = None
    """For photographs: a folder of face models instead of antelopev2."""
    device: str = "cpu"
    """cpu, cuda or mps."""
    memory: str = "auto"
    """For photographs: high, medium, low or auto."""
    score: bool = True
    """Let the judge look at each picture with one person."""

    def run(self) -> int:
        from selfsame.images.files import InputError
        from selfsame.studio.batches import RESULTS, read_manifest, run_batch
        from selfsame.studio.studio import load

        lines = read_manifest(self.manifest)
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out}: is a file; give a folder")
        self.out.mkdir(parents=True, exist_ok=True)
        studio = load(self.model, device=self.device, base=self.base, instantid=self.instantid, face_models=self.face_models, memory=self.memory)
        counts = {"made": 0, "kept": 0, "failed": 0}
        pictures = sum(line.order.num_images if line.order else 1 for line in lines)
        with bar("painting", pictures) as tick:
            for result in run_batch(studio, lines, self.out, score=self.score, on_picture=tick):
                counts[result.status] += 1
                if result.error:
                    warn(f"{self.manifest}, {result.error}")
        print(f"{', '.join(f'{n} {name}' for name, n in counts.items())}; {self.out / RESULTS}")
        return 1 if counts["failed"] else 0
