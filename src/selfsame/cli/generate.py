"""`selfsame generate`: a face or learned words in, pictures out."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from selfsame.cli.say import bar, warn
from selfsame.studio.request import Request


@dataclass(frozen=True, kw_only=True)
class Generate(Request):
    """Paint the person of a photo anew.

    Example: selfsame generate --face ada.png --prompt "a watercolour of a person laughing on a beach" --out out.png
    """

    face: tuple[Path, ...] = ()
    """Photos of one person, one or more. Without any the base model paints somebody."""
    identity: tuple[Path, ...] = ()
    """Identity files instead of photos, or learned words (textual inversions, StableIdentity's .pt), each named in the prompt by its placeholder."""
    out: Path = Path("out.png")
    """The PNG to write; several pictures get -1, -2 ... before the ending."""
    pose: Path | None = None
    """Another picture whose face lends the key points."""
    which: int | None = None
    """Which face of a photo with several, counted from the left, from 0; default: the largest."""
    like: Path | None = None
    """Repeat the picture in this PNG; other flags change it."""
    model: str = "mannequin"
    """mannequin, or for photographs instantid-sdxl or instantid-sd15 (`selfsame models` lists what they need)."""
    base: Path | None = None
    """For photographs: a diffusers folder, such as your own fine-tune, instead of the fetched base."""
    instantid: Path | None = None
    """For photographs: a folder of InstantID's layout instead of the fetched one."""
    face_models: Path | None = None
    """For photographs: a folder of face models instead of antelopev2."""
    device: str = "cpu"
    """cpu, cuda or mps."""
    score: bool = True
    """Print how alike the judge finds the result and the photo."""

    def check(self) -> None:
        """Flags are checked when the command runs, so that errors read as ours and not as the parser's."""

    @property
    def request(self) -> Request:
        """What is asked of the picture, checked."""
        return Request(**{f.name: getattr(self, f.name) for f in fields(Request)})

    @staticmethod
    def like_defaults(args: list[str]) -> Generate:
        """Defaults from the picture given with --like, before the other flags are read."""
        from selfsame.images.files import InputError, read_metadata

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
        known: dict[str, Any] = {"which": content.get("which"), "pose": Path(content["pose"]) if content.get("pose") else None}
        known["model"] = content.get("model", "mannequin")
        known |= {n: Path(p) for n, p in zip(("base", "instantid", "face_models"), content.get("folders") or (), strict=False) if p}
        known["identity"] = tuple(Path(p) for p in content.get("identity") or ())
        return Generate(face=tuple(Path(p) for p in content.get("faces", ())), like=Path(value), **request.to_json(), **known)

    def run(self) -> int:
        from selfsame.images.files import InputError, check_output, read_image, write_image
        from selfsame.studio.people import read_identity

        began = time.monotonic()
        request = self.request
        out = check_output(self.out)
        if self.identity and self.face:
            raise InputError("give --face or --identity, not both")
        images = [read_image(p) for p in self.face]
        if self.pose:
            read_image(self.pose)
        from selfsame.studio.studio import load

        studio = load(self.model, device=self.device, base=self.base, instantid=self.instantid, face_models=self.face_models)
        request.sized(studio.limits)  # refuses a size before any work
        people = [read_identity(p) for p in self.identity]
        if images:
            for path, image in zip(self.face, images, strict=True):
                _, notes = studio.face(studio.as_read(image), which=self.which, name=str(path))
                for note in notes:
                    warn(note)
            people = [studio.identity(*self.face, which=self.which)]
        sources = [s for who in people for s in who.sources]
        if self.like and people:
            _warn_if_changed(self.like, sources)
        pose = None
        if self.pose:
            for note in studio.face(studio.as_read(read_image(self.pose)), name=str(self.pose))[1]:
                warn(note)
            pose = studio.pose_of(self.pose)
        about = {
            "faces": [str(p.resolve()) for p in self.face],
            "sources": sources,
            "identity": [str(p.resolve()) for p in self.identity],
            "pose": str(self.pose.resolve()) if self.pose else None,
            "which": self.which,
            "model": self.model,
            "folders": [str(p.resolve()) if p else None for p in (self.base, self.instantid, self.face_models)],
        }
        with bar("painting", studio.num_calls(request) * -(-request.num_images // studio.together)) as tick:
            for i, made in enumerate(studio.generate_each(request, people, pose=pose, on_step=lambda _: tick(1))):
                path = out if request.num_images == 1 else out.with_name(f"{out.stem}-{i + 1}{out.suffix}")
                write_image(path, made.pixels, {"request": made.request.to_json(), **about})
                for note in made.notes if i == 0 else ():
                    warn(note)
                line = f"{path}"
                if self.score and images and studio.judges:
                    likeness = studio.likeness(made.pixels, images[0], which=self.which)
                    line += "  no face found in it" if likeness is None else f"  identity {likeness:.2f} (the judge's cosine)"
                print(f"{line}  {time.monotonic() - began:.1f} s")
        return 0


def _warn_if_changed(like: Path, sources: list[str]) -> None:
    from selfsame.images.files import read_metadata

    recorded = read_metadata(like).get("sources", [])
    if recorded != sources:
        warn(f"{like} was made from other photos than those given now; the person will differ")
