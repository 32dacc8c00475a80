"""`selfsame generate`: a face or learned words in, pictures out."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from selfsame.cli.model_flags import FOLDERS, ModelFlags
from selfsame.cli.say import bar, warn
from selfsame.studio.orders import Order

TURNED = ("pose", "view", "yaw", "pitch", "roll")
PLACED = ("people", "regions", "poses", "scales")
MIXED = ("mix", "mix_steps")
# With --like: flags that are typed, and what of the picture's own order they take the place of.
INSTEAD: dict[tuple[str, ...], tuple[str, ...]] = {
    ("pose",): TURNED, ("view",): TURNED, ("yaw", "pitch", "roll"): ("pose", "view"),
    ("face",): (*PLACED, *MIXED, "identity", "which", "use"), ("identity",): (*PLACED, *MIXED),
    ("people",): ("face", "identity", "which", "keep", *MIXED, *TURNED),
    ("mix",): ("face", "identity", "which", "keep", "mix_steps", *PLACED),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Generate(ModelFlags, Order):
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
    """Repeat the picture in this PNG, NAME.png as NAME-again.png in this folder unless --out says otherwise; other flags change it."""
    score: bool = True
    """Print how alike the judge finds the result and the photo."""

    @staticmethod
    def like_defaults(args: list[str]) -> Generate:
        """Defaults from the picture given with --like, before the other flags are read."""
        from selfsame.images.files import InputError, read_metadata
        from selfsame.studio.request import Request

        value = _value_of(args, "--like")
        if not value or value.startswith("--"):
            raise InputError("--like needs the path of a PNG that selfsame wrote")
        content = read_metadata(value)
        if "order" not in content:
            raise InputError(f"{value}: was written before orders were kept in pictures, or by another command; give its flags again")
        order = Order.of(Request.from_json(content.get("request", {})).to_json() | content["order"])
        known: dict[str, Any] = dict(vars(order))
        speed = _value_of(args, "--speed") or order.speed
        solver = _value_of(args, "--solver") or order.solver
        if "turbo" in (speed, order.speed) and speed != order.speed:  # whose steps, guidance and solver are its own
            known |= {name: getattr(Request(), name) for name in ("num_steps", "guidance_scale", "solver")}
        elif "lcm" in (solver, order.solver) and solver != order.solver:  # whose steps and guidance are
            known |= {name: getattr(Request(), name) for name in ("num_steps", "guidance_scale")}
        for typed, rivals in INSTEAD.items():  # who is shown, and how the head is turned, is said in one way
            if any(_value_of(args, f"--{name}") for name in typed):
                known |= {f.name: f.default for f in fields(Order) if f.name in rivals}
        known |= {n: Path(p) for n, p in zip(FOLDERS, content.get("folders") or (), strict=False) if p}
        return Generate(
            like=Path(value),
            out=Path(f"{Path(value).stem}-again.png"),
            model=content.get("model", "mannequin"),
            memory=content.get("memory", "auto"),
            lora=tuple(content.get("loras", ())),
            precision=content.get("precision", "auto"),
            **known,
        )

    def run(self) -> int:
        from selfsame.images.draw import beside
        from selfsame.images.files import check_output, numbered, read_image, spare_inputs, write_image
        from selfsame.studio.ready import about_picture, files_digest, jobs_of

        began = time.monotonic()
        _ = self.request  # checks itself
        self.check_together()
        out = check_output(self.out)
        paths = numbered(out, self.count)
        spare_inputs([*paths, *([out] if self.mix_steps else [])], [*self.files, self.like])
        studio = self.studio([self])
        jobs, notes, photos = jobs_of(self, studio)
        photo = read_image(photos[0]) if self.score and photos and studio.judges else None
        sources = [s for p in jobs[0].people for s in p.identity.sources]
        made_by, files = self.made_by(studio, jobs[0].request, len(jobs[0].people)), files_digest(self)
        if self.like:
            _warn_if_changed(self.like, made_by | {"sources": sources, "files": files})
        calls = studio.num_calls(self.request, has_start=self.start is not None) * -(-len(jobs) // studio.together)
        said, strip = set(), {}
        with bar("painting", calls) as tick:
            for i, made in studio.paint_jobs(jobs, retries=self.retries, refine=self.refine_faces, on_step=lambda _: tick(1)):
                path = paths[i]
                write_image(path, made.pixels, about_picture(self, jobs[i], made, files) | made_by | {"memory": studio.preset})
                if self.mix_steps:
                    strip[i] = made.pixels
                for note in (*notes, *made.notes):
                    if note not in said:
                        warn(note)
                    said.add(note)
                print("  ".join([str(path), *self._found(studio, made, photo), f"{time.monotonic() - began:.1f} s"]))
            if strip:
                encoder = jobs[0].people[0].identity.encoder
                whole = {"request": self.request.to_json(), "order": self.extras, "sources": sources, "encoder": encoder}
                print(write_image(out, beside([strip[i] for i in sorted(strip)]), whole | made_by | {"memory": studio.preset}))
        return 0

    def _found(self, studio: Any, made: Any, photo: Any) -> list[str]:
        """What is said of who is in a picture, beside the photo that it was made from."""
        said = [match.told() for match in made.matches] if len(made.matches) > 1 else []
        if photo is not None:
            likeness = studio.likeness(made.pixels, photo, which=self.which)
            said.append("no face found in it" if likeness is None else f"identity {likeness:.2f} (the judge's cosine)")
        return said


def _value_of(args: list[str], flag: str) -> str:
    """What a flag is given on a command line that is not parsed yet; "" without it."""
    value = ""
    for a, b in zip(args, [*args[1:], ""], strict=True):
        if a == flag:
            value = b
        elif a.startswith(f"{flag}="):
            value = a.removeprefix(f"{flag}=")
    return value


def _warn_if_changed(like: Path, now: dict[str, Any]) -> None:
    from selfsame.images.files import read_metadata

    recorded = read_metadata(like)
    if recorded.get("sources", []) != now["sources"]:
        warn(f"{like} was made from other photos than those given now; the person will differ")
    elif recorded.get("files", now["files"]) != now["files"]:
        warn(f"{like} was made from other files (a start, a pose, a mask, words) than those given now; the picture will differ")
    if recorded.get("weights", now["weights"]) != now["weights"]:
        warn(f"{like} was made by other weights than those here now; the picture will differ")
