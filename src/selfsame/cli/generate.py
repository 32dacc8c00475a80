"""`selfsame generate`: a face or learned words in, pictures out."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsame.cli.say import bar, warn
from selfsame.studio.orders import Order


@dataclass(frozen=True, kw_only=True)
class Generate(Order):
    """Paint the person of a photo anew; or several people, somebody between two others, a view, a picture changed.

    Examples:
      selfsame generate --face ada.png --prompt "a watercolour of a person laughing on a beach" --out out.png
      selfsame generate --face ada.png --view right --keep glasses --prompt "a comic of a person in a city"
      selfsame generate --people ada.png ben.png --width 192 --prompt "a photo of two people in a garden" --retries 3
      selfsame generate --mix ada.png:0.3 ben.png:0.7 --prompt "a photo of a person"          --mix ada.png ben.png --mix-steps 5: a strip
      selfsame generate --face ada.png --start room.png --start-strength 0.7 --prompt "a photo of a person"
    """

    out: Path = Path("out.png")
    """The PNG to write; several pictures get -1, -2 ... before the ending."""
    like: Path | None = None
    """Repeat the picture in this PNG; other flags change it."""
    model: str = "mannequin"
    """mannequin, or for photographs instantid-sdxl or instantid-sd15 (`selfsame models` lists what they need)."""
    base: Path | None = None
    """For photographs: your own fine-tune instead of the fetched base, a diffusers folder or one .safetensors file."""
    instantid: Path | None = None
    """For photographs: a folder of InstantID's layout instead of the fetched one."""
    face_models: Path | None = None
    """For photographs: a folder of face models instead of antelopev2."""
    device: str = "cpu"
    """cpu, cuda or mps."""
    memory: str = "auto"
    """For photographs: high keeps everything loaded, medium lets text encoders and VAE leave, low also keeps the base in 8 bits; auto: what fits."""
    score: bool = True
    """Print how alike the judge finds the result and the photo."""

    @staticmethod
    def like_defaults(args: list[str]) -> Generate:
        """Defaults from the picture given with --like, before the other flags are read."""
        from selfsame.images.files import InputError, read_metadata
        from selfsame.studio.request import Request

        value = ""
        for a, b in zip(args, [*args[1:], ""], strict=True):
            if a == "--like":
                value = b
            elif a.startswith("--like="):
                value = a.removeprefix("--like=")
        if not value or value.startswith("--"):
            raise InputError("--like needs the path of a PNG that selfsame wrote")
        content = read_metadata(value)
        request = Request.from_json(content.get("request", {}))
        order = Order.of(request.to_json() | content.get("order", {}))
        folders = {n: Path(p) for n, p in zip(("base", "instantid", "face_models"), content.get("folders") or (), strict=False) if p}
        return Generate(like=Path(value), model=content.get("model", "mannequin"), **vars(order), **folders)

    def run(self) -> int:
        from selfsame.images.draw import beside
        from selfsame.images.files import check_output, write_image
        from selfsame.studio.ready import jobs_of
        from selfsame.studio.studio import load

        began = time.monotonic()
        _ = self.request  # checks itself
        out = check_output(self.out)
        studio = load(self.model, device=self.device, base=self.base, instantid=self.instantid, face_models=self.face_models, memory=self.memory)
        jobs, notes, photos = jobs_of(self, studio)
        for note in notes:
            warn(note)
        sources = [s for p in jobs[0].people for s in p.identity.sources]
        if self.like:
            _warn_if_changed(self.like, sources)
        folders = [str(p.resolve()) if p else None for p in (self.base, self.instantid, self.face_models)]
        if self.model != "mannequin":
            plan, peak = studio.planned(jobs[0].request)
            print(f"memory {plan.name}: about {peak / 2**30:.1f} GB at the peak", file=sys.stderr)
        extras = {k: v for k, v in self.extras.items() if k not in ("keep", "style_sheet")}  # by now the prompt says it
        about = {"order": extras, "sources": sources, "model": self.model, "folders": folders}
        calls = studio.num_calls(self.request, has_start=self.start is not None) * -(-len(jobs) // studio.together)
        with bar("painting", calls) as tick:
            strip: dict[int, Any] = {}
            for i, made in studio.paint_jobs(jobs, retries=self.retries, refine=self.refine_faces, on_step=lambda _: tick(1)):
                if self.mix_steps:
                    strip[i] = made.pixels
                path = out if len(jobs) == 1 else out.with_name(f"{out.stem}-{i + 1}{out.suffix}")
                write_image(path, made.pixels, {"request": made.request.to_json(), **about})
                for note in made.notes if i == 0 else ():
                    warn(note)
                print("  ".join([str(path), *self._found(studio, made, photos), f"{time.monotonic() - began:.1f} s"]))
            if strip:
                print(write_image(out, beside([strip[i] for i in sorted(strip)]), {"request": self.request.to_json(), **about}))
        return 0

    def _found(self, studio: Any, made: Any, photos: list[Any]) -> list[str]:
        """What is said of who is in a picture."""
        if made.matches:
            return [match.told(_short(path)) for match, path in zip(made.matches, self.people or self.face, strict=False)]
        if not (self.score and photos and studio.judges):
            return []
        likeness = studio.likeness(made.pixels, photos[0], which=self.which)
        return ["no face found in it" if likeness is None else f"identity {likeness:.2f} (the judge's cosine)"]


def _short(path: Path) -> str:
    return path.stem


def _warn_if_changed(like: Path, sources: list[str]) -> None:
    from selfsame.images.files import read_metadata

    recorded = read_metadata(like).get("sources", [])
    if recorded != sources:
        warn(f"{like} was made from other photos than those given now; the person will differ")
