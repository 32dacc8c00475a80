"""`selfsame learn`: a person becomes two words."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from selfsame.cli.say import bar, warn

PREVIEW = ".preview.png"
OFFICIAL_RATE = 5e-5  # a sample's


def preview_of(out: Path) -> Path:
    """The picture beside an identity file."""
    return out.with_suffix(PREVIEW)


@dataclass(frozen=True)
class Learn:
    """Learn a person as two words, from one photo or several: at once on the miniature, whose start knows how faces are named, else in minutes.

    Examples:
      selfsame learn --face ada.png --out ada.safetensors
      selfsame generate --identity ada.safetensors --prompt "a photo of <ada> in a spacesuit"
    """

    face: tuple[Path, ...] = ()
    """Photos of one person, one or more, or a folder of them."""
    people: Path | None = None
    """Instead: a folder with a picture or a folder of pictures for each person. A bad one is reported and skipped."""
    out: Path = Path("person.safetensors")
    """The identity file to write; with --people a folder."""
    name: str = ""
    """What stands for the person in prompts: ada for <ada>. Default: the name of --out."""
    steps: int = -1
    """Steps of learning; 0: the words that it starts with, at once; -1: none from a taught start, 450 from a fresh one."""
    start: Literal["taught", "fresh"] = "taught"
    """taught: with the miniature's knowledge of how faces are named. fresh, and for your own --base always: at random, as published."""
    batch_size: int = 0
    """Samples a step; 0: 8 from a taught start, 4 from a fresh one."""
    learning_rate: float = 0.0
    """Of AdamW, constant; 0: 1e-4 from a taught start, 1e-3 from a fresh one, with --base the official 5e-5 times the batch size."""
    seed: int = 0
    """Of everything that is drawn."""
    method: Literal["stableidentity", "textual-inversion"] = "stableidentity"
    """textual-inversion trains the words freely: the baseline."""
    features: Literal["mean", "one"] = "mean"
    """Several photos: the mean of their features, or one photo's a sample."""
    look_every: int = 0
    """Steps between looks, each a row of pictures painted with the words so far and a loss on fixed samples; 0: 10 from a taught start, else 150."""
    patience: int = 0
    """End after so many looks without a lower loss on fixed samples; 0: never early."""
    show_batch: Path | None = None
    """Also write a sheet of the augmented pictures and their masks (face red, hair green)."""
    overwrite: bool = False
    """Replace an output that exists; without it --people leaves out whoever is there already."""
    base: Path | None = None
    """A Stable Diffusion 1, 2 or XL folder to learn for instead of the miniature."""
    face_vit: Path | None = None
    """With --base: folder of a face transformer (ViT) instead of the fetched face-vit."""
    parser: Path | None = None
    """With --base: folder of a SegFormer face parser instead of the fetched face-parser."""
    names: Path | None = None
    """With --base: text file of celebrities, one two-word name a line, instead of the fetched celebrity-names."""
    face_models: Path | None = None
    """With --base: folder of face models that find and align the face; without it photos should be aligned already, as FFHQ's are."""
    device: str = "cpu"
    """cpu, cuda or mps; for --base."""

    def run(self) -> int:
        from selfsame.images.files import InputError, check_output, spare_inputs

        if bool(self.face) == bool(self.people):
            raise InputError("give --face with photos of one person, or --people with a folder of people")
        if self.steps < -1 or self.batch_size < 0:
            raise InputError(f"--steps {self.steps} --batch-size {self.batch_size}: give 0 steps or more, of at least 1 sample")
        if self.look_every < 0 or self.patience < 0:
            raise InputError(f"--look-every {self.look_every} --patience {self.patience}: give at least 1 step, and 0 looks or more")
        if not self.learning_rate >= 0:
            raise InputError(f"--learning-rate {self.learning_rate}: give a number above 0, or 0 for the usual one")
        if self.people and (self.name or self.show_batch):
            raise InputError("--name and --show-batch are about one person: give --face; with --people everybody is called as the file or folder is")
        if self.show_batch:
            check_output(self.show_batch)
        jobs, failed = self._jobs(), 0
        read = [p for photos, _ in jobs for p in photos]  # of a person's folder everything
        spare_inputs([*(preview_of(out) for _, out in jobs), *([self.show_batch] if self.show_batch else [])], read)
        base = self._base()
        for photos, out in jobs:
            try:
                self._one(base, photos, out)
            except (InputError, ValueError, FloatingPointError) as error:
                if not self.people:
                    raise
                failed += 1
                warn(f"{out.stem}: {error}")
        if failed:
            print(f"{len(jobs) - failed} of {len(jobs)} people learned, {failed} skipped")
        return 1 if failed else 0

    def _base(self) -> Any:
        from selfsame.images.files import InputError
        from selfsame.recipes.bases import mannequin_base, stable_diffusion_base
        from selfsame.studio.studio import checked_device, load

        if self.base is None:
            if self.face_vit or self.parser or self.names or self.face_models:
                raise InputError("--face-vit, --parser, --names and --face-models belong to --base; the miniature brings its own")
            if self.device != "cpu":
                raise InputError(f"--device {self.device}: the miniature learns on the CPU; --device is for --base")
            return mannequin_base(load())
        from selfsame.weights.catalogue import CATALOGUE, NAMES_FILE
        from selfsame.weights.fetch import local

        device = str(checked_device(self.device))
        face_vit, parser = self.face_vit or local(CATALOGUE["face-vit"]), self.parser or local(CATALOGUE["face-parser"])
        names = self.names or local(CATALOGUE["celebrity-names"]) / NAMES_FILE
        return stable_diffusion_base(self.base, face_vit, parser, names, face_models=self.face_models, device=device)

    def _jobs(self) -> list[tuple[list[Path], Path]]:
        from selfsame.images.files import InputError, new_output
        from selfsame.studio.ready import is_picture

        if self.people is None:
            if self.out.suffix != ".safetensors":
                raise InputError(f"{self.out}: identities are written as safetensors; end the name in .safetensors")
            jobs = [(list(self.face), self.out)]
        else:
            if not self.people.is_dir():
                raise InputError(f"{self.people}: no such folder; give one with a picture or a folder of pictures for each person")
            entries = sorted(
                p for p in self.people.iterdir() if not p.name.endswith(PREVIEW) and (is_picture(p) or (p.is_dir() and not p.name.startswith(".")))
            )
            jobs = [([p], self.out / f"{p.name if p.is_dir() else p.stem}.safetensors") for p in entries]
            if not jobs:
                raise InputError(f"{self.people}: holds no pictures and no folders of pictures")
            names = [out.name for _, out in jobs]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice:
                raise InputError(f"{self.people}: two people would be written as {twice}; rename one of them")
            if self.out.exists() and not self.out.is_dir():
                raise InputError(f"{self.out}: is a file; with --people give a folder as --out")
            self.out.mkdir(parents=True, exist_ok=True)
        if self.people and not self.overwrite:
            done = [out for _, out in jobs if out.exists()]  # by a run that was stopped
            if done:
                print(f"{len(done)} of {len(jobs)} people are there already, such as {done[0]}; --overwrite learns them anew")
            jobs = [job for job in jobs if job[1] not in done]
        for _, out in jobs:
            new_output(out, self.overwrite)
            if not self.people:  # of somebody who is learned anew among others an old preview may go
                new_output(preview_of(out), self.overwrite)
        return jobs

    def _one(self, base: Any, photos: list[Path], out: Path) -> None:
        import re
        import shutil

        import numpy as np

        from selfsame.images.files import InputError, read_image, write_image
        from selfsame.methods.stableidentity.checkpoint import placeholder_of
        from selfsame.recipes.stableidentity import Learning, learn, usual
        from selfsame.studio.ready import pictures_in

        began = time.monotonic()
        placeholder = f"<{self.name.strip('<>').lower()}>" if self.name else placeholder_of(out.stem)
        if not re.fullmatch(r"<[a-z0-9][a-z0-9_-]*>", placeholder):
            raise InputError(f"--name {self.name or out.stem!r}: give letters, digits, - and _, such as ada")
        how = usual(base, Learning(method=self.method, start=self.start))
        batch_size = self.batch_size or how.batch_size
        how = replace(
            how,
            steps=how.steps if self.steps < 0 else self.steps,
            batch_size=batch_size,
            learning_rate=self.learning_rate or (OFFICIAL_RATE * batch_size if self.base else how.learning_rate),
            seed=self.seed,
            features=self.features,
            look_every=self.look_every or how.look_every,
            patience=self.patience,
        )
        folder = out.with_name(f".{out.stem}.learning")
        with bar(f"learning {placeholder}", 1) as tick:
            done = 0.0

            def show(p: Any) -> None:
                nonlocal done
                tick(p.step / p.max_steps - done, f"loss {p.loss:.3f}  {p.eta_s:.0f} s left")
                done = p.step / p.max_steps

            given = [p for photo in photos for p in (pictures_in(photo) if photo.is_dir() else [photo])]
            who = learn(base, given, placeholder, folder, how, on_progress=show, on_note=warn, show_batch=self.show_batch)
        who.save(out)
        previews = sorted((folder / "samples").glob("*.png"))
        if previews:  # a row a look: how the words came to be
            write_image(preview_of(out), np.concatenate([read_image(p) for p in previews]))
        shutil.rmtree(folder)
        print(f"{out}  {placeholder}  preview {preview_of(out)}  {time.monotonic() - began:.0f} s")
