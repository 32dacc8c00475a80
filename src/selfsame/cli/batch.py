"""`selfsame batch`: many pictures from a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from selfsame.cli.model_flags import ModelFlags
from selfsame.cli.say import bar, warn


@dataclass(frozen=True, kw_only=True)
class Batch(ModelFlags):
    """Paint all lines of a manifest: a JSON object a line (.jsonl), or a table with a header (.csv).

    Fields are the flags of `selfsame generate` with _ for -, and `id`, which names the pictures:
      {"id": "ada-beach", "face": "ada.png", "prompt": "a photo of a person on a beach", "seed": 3}
      {"id": "two", "people": ["ada.png", "ben.png"], "width": 192, "prompt": "a photo of two people"}
    Paths start from the manifest's folder; several in a table's cell have blanks between, and quotes where a name holds blanks.
    Pictures and results.jsonl (status, error, notes, seconds, scores, files, parameters) go to --out.
    A bad line is reported and the rest goes on; run the same command again to go on where it was stopped.
    """

    manifest: Annotated[Path, tyro.conf.Positional]
    """The manifest."""
    out: Path = Path("batch")
    """Folder for pictures and results; it is made when missing."""
    score: bool = True
    """Let the judge look at each picture with one person."""

    def run(self) -> int:
        from selfsame.images.files import InputError, check_folder
        from selfsame.studio.batches import RESULTS, Into, read_manifest, run_batch

        lines = read_manifest(self.manifest)
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out}: is a file; give a folder")
        self.out.mkdir(parents=True, exist_ok=True)
        check_folder(self.out)
        studio = self.studio([line.order for line in lines if line.order])
        into = Into(self.out, self.manifest.name, self._made_by(studio, [line.order.request for line in lines if line.order]), self.score)
        counts = {"made": 0, "kept": 0, "failed": 0}
        with bar("painting", sum(max(1, line.count) for line in lines)) as tick:
            for result in run_batch(studio, lines, into, tick):
                counts[result.status] += 1
                for said in (*([result.error] if result.error else ()), *(f"line {result.line}: {n}" for n in result.notes)):
                    warn(f"{self.manifest}, {said}")
        print(f"{', '.join(f'{n} {name}' for name, n in counts.items())}; {self.out / RESULTS}")
        return 1 if counts["failed"] else 0

    def _made_by(self, studio: Any, requests: list[Any]) -> dict[str, Any]:
        """As of the first request that can be painted: one that cannot fails by its line."""
        from selfsame.images.files import InputError
        from selfsame.studio.request import Request

        for request in requests:
            try:
                return self.made_by(studio, request)
            except InputError:
                continue
        return self.made_by(studio, Request())
