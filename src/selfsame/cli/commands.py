"""The commands as typed values: fields are flags, docstrings are the help. Heavy imports wait until `run`."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from selfsame.cli.say import warn
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

        studio = load(device=self.device)
        people = [read_identity(p) for p in self.identity]
        if images:
            for path, image in zip(self.face, images, strict=True):
                _, notes = studio.face(image, which=self.which, name=str(path))
                for note in notes:
                    warn(note)
            people = [studio.identity(*self.face, which=self.which)]
        sources = [s for who in people for s in who.sources]
        if self.like and people:
            _warn_if_changed(self.like, sources)
        pose = None
        if self.pose:
            for note in studio.face(read_image(self.pose), name=str(self.pose))[1]:
                warn(note)
            pose = studio.pose_of(self.pose)
        about = {
            "faces": [str(p.resolve()) for p in self.face],
            "sources": sources,
            "identity": [str(p.resolve()) for p in self.identity],
            "pose": str(self.pose.resolve()) if self.pose else None,
            "which": self.which,
            "model": "mannequin",
        }
        with _bar("painting", studio.num_calls(request) * -(-request.num_images // 4)) as tick:
            for i, made in enumerate(studio.generate_each(request, people, pose=pose, on_step=lambda _: tick(1))):
                path = out if request.num_images == 1 else out.with_name(f"{out.stem}-{i + 1}{out.suffix}")
                write_image(path, made.pixels, {"request": made.request.to_json(), **about})
                for note in made.notes if i == 0 else ():
                    warn(note)
                line = f"{path}"
                if self.score and images:
                    likeness = studio.likeness(made.pixels, images[0], which=self.which)
                    line += "  no face found in it" if likeness is None else f"  identity {likeness:.2f} (the judge's cosine)"
                print(f"{line}  {time.monotonic() - began:.1f} s")
        return 0


def _warn_if_changed(like: Path, sources: list[str]) -> None:
    from selfsame.images.files import read_metadata

    recorded = read_metadata(like).get("sources", [])
    if recorded != sources:
        warn(f"{like} was made from other photos than those given now; the person will differ")


@dataclass(frozen=True)
class Learn:
    """Learn a person as two words, from one photo or several, in minutes.

    Examples:
      selfsame learn --face ada.png --out ada.safetensors
      selfsame generate --identity ada.safetensors --prompt "a photo of <ada> in a spacesuit"
    """

    face: tuple[Path, ...] = ()
    """Photos of one person, one or more."""
    people: Path | None = None
    """Instead: a folder with a picture or a folder of pictures for each person. A bad one is reported and skipped."""
    out: Path = Path("person.safetensors")
    """The identity file to write; with --people a folder."""
    name: str = ""
    """What stands for the person in prompts: ada for <ada>. Default: the name of --out."""
    steps: int = 450
    """Steps of learning."""
    batch_size: int = 4
    """Samples a step."""
    learning_rate: float = 1e-3
    """Of AdamW, constant."""
    seed: int = 0
    """Of everything that is drawn."""
    method: Literal["stableidentity", "textual-inversion"] = "stableidentity"
    """textual-inversion trains the words freely: the baseline."""
    features: Literal["mean", "one"] = "mean"
    """Several photos: the mean of their features, or one photo's a sample."""
    patience: int = 0
    """End after so many looks (one in 150 steps) without a lower loss on fixed samples; 0: never early."""
    show_batch: Path | None = None
    """Also write a sheet of the augmented pictures and their masks (face red, hair green)."""
    overwrite: bool = False
    """Replace an output that exists."""
    base: Path | None = None
    """A Stable Diffusion 1 or 2 folder to learn for instead of the miniature; it needs the next three."""
    face_vit: Path | None = None
    """Folder of a face transformer, such as jayanta/vit-base-patch16-224-in21k-face-recognition."""
    parser: Path | None = None
    """Folder of a SegFormer face parser, such as jonathandinu/face-parsing."""
    names: Path | None = None
    """Text file of celebrities, one two-word name a line."""
    device: str = "cpu"
    """cpu, cuda or mps; for --base."""

    def run(self) -> int:
        from selfsame.images.files import InputError, check_output

        if bool(self.face) == bool(self.people):
            raise InputError("give --face with photos of one person, or --people with a folder of people")
        if self.steps < 1 or self.batch_size < 1:
            raise InputError(f"--steps {self.steps} --batch-size {self.batch_size}: give at least 1 of each")
        if not self.learning_rate > 0:
            raise InputError(f"--learning-rate {self.learning_rate}: give a number above 0")
        if self.show_batch:
            check_output(self.show_batch)
        jobs, base, failed = self._jobs(), self._base(), 0
        for photos, out in jobs:
            try:
                self._one(base, photos, out)
            except (InputError, ValueError) as error:
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
            if self.device != "cpu":
                raise InputError(f"--device {self.device}: the miniature learns on the CPU; --device is for --base")
            return mannequin_base(load())
        if self.face_vit is None or self.parser is None or self.names is None:
            raise InputError("--base needs --face-vit, --parser and --names beside it")
        return stable_diffusion_base(self.base, self.face_vit, self.parser, self.names, device=str(checked_device(self.device)))

    def _jobs(self) -> list[tuple[list[Path], Path]]:
        from selfsame.images.files import InputError

        if self.people is None:
            if self.out.suffix != ".safetensors":
                raise InputError(f"{self.out}: identities are written as safetensors; end the name in .safetensors")
            jobs = [(list(self.face), self.out)]
        else:
            if not self.people.is_dir():
                raise InputError(f"{self.people}: no such folder; give one with a picture or a folder of pictures for each person")
            entries = sorted(p for p in self.people.iterdir() if not p.name.startswith("."))
            jobs = [(sorted(p.iterdir()) if p.is_dir() else [p], self.out / f"{p.stem}.safetensors") for p in entries]
            if not jobs:
                raise InputError(f"{self.people}: the folder is empty")
            self.out.mkdir(parents=True, exist_ok=True)
        for _, out in jobs:
            if out.exists() and not self.overwrite:
                raise InputError(f"{out}: exists already; choose another --out, or --overwrite to replace it")
            if not out.parent.is_dir():
                raise InputError(f"{out.parent}: no such folder; make it first or choose another --out")
        return jobs

    def _one(self, base: Any, photos: list[Path], out: Path) -> None:
        import re
        import shutil

        from selfsame.images.files import InputError
        from selfsame.recipes.stableidentity import Learning, learn

        began = time.monotonic()
        name = self.name if self.name and not self.people else out.stem
        placeholder = f"<{name.strip('<>').lower()}>"
        if not re.fullmatch(r"<[a-z0-9][a-z0-9_-]*>", placeholder):
            raise InputError(f"--name {name!r}: give letters, digits, - and _, such as ada")
        how = Learning(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
            method=self.method,
            features=self.features,
            patience=self.patience,
        )
        folder = out.with_name(f".{out.stem}.learning")
        with _bar(f"learning {placeholder}", 1) as tick:
            done = 0.0

            def show(p: Any) -> None:
                nonlocal done
                tick(p.step / p.max_steps - done, f"loss {p.loss:.3f}  {p.eta_s:.0f} s left")
                done = p.step / p.max_steps

            who = learn(base, photos, placeholder, folder, how, on_progress=show, on_note=warn, show_batch=self.show_batch)
        who.save(out)
        previews = sorted((folder / "samples").glob("*.png"))
        if previews:
            os.replace(previews[-1], out.with_suffix(".png"))
        shutil.rmtree(folder)
        print(f"{out}  {placeholder}  preview {out.with_suffix('.png')}  {time.monotonic() - began:.0f} s")


class _bar:
    """A progress bar on stderr when somebody is looking; calls add to it."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total

    def __enter__(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self.progress.start()
        task = self.progress.add_task(self.what, total=self.total, note="")

        def tick(count: float, note: str = "") -> None:
            self.progress.update(task, advance=count, note=note)

        return tick

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


@dataclass(frozen=True)
class Faces:
    """Say which faces a picture shows and which one would be used.

    Example: selfsame faces photo.png
    """

    picture: Positional[Path]
    """The picture to look at."""
    out: Path | None = None
    """A PNG with boxes and key points drawn in."""

    def run(self) -> int:
        import cv2

        from selfsame.images.files import InputError, check_output, read_image, write_image
        from selfsame.studio.studio import load

        image = read_image(self.picture)
        if self.out:
            check_output(self.out)
        studio = load()
        found = studio.faces(image)
        if not found:
            raise InputError(f"{self.picture}: no face was found; use a picture in which the face is upright, whole and larger than a tenth of the picture")
        drawn = image.copy()
        ordered = sorted(found, key=lambda f: float(f.box[0] + f.box[2]))
        for i, face in enumerate(ordered):
            x0, y0, x1, y1 = (round(float(v)) for v in face.box)
            used = "  <- used" if face is found[0] else ""
            print(f"{i}: box {x0},{y0} to {x1},{y1}  {x1 - x0} x {y1 - y0} px  score {face.score:.2f}{used}")
            cv2.rectangle(drawn, (x0, y0), (x1, y1), (255, 220, 0), 1)
            for x, y in face.kps:
                cv2.circle(drawn, (round(float(x)), round(float(y))), 1, (255, 0, 0), -1)
        if self.out:
            print(write_image(self.out, drawn))
        return 0


@dataclass(frozen=True)
class Render:
    """Draw people of the world: a contact sheet, one person, or a dataset.

    Examples:
      selfsame render --out sheet.png                     people x views x styles
      selfsame render --person 300007 --out ada.png       one neutral portrait
      selfsame render --dataset data/world2 --count 16000 --pack
    """

    out: Path = Path("sheet.png")
    """The PNG of the sheet or portrait."""
    person: int | None = None
    """Draw this one person (a seed; 300000 and above were never trained on)."""
    name: str | None = None
    """Draw this named person, such as "ada fox"."""
    people: int = 8
    """Rows of the sheet."""
    first: int = 300000
    """Seed of the sheet's first person."""
    dataset: Path | None = None
    """A folder for WebDataset shards instead of a sheet."""
    split: Literal["train", "judge", "validation", "test"] = "train"
    """Whose pictures."""
    count: int = 1000
    """How many samples the dataset holds in all."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that draw; the bytes are the same for any number."""
    device: str = "cpu"
    """cpu, or cuda to draw in batches."""
    pack: bool = False
    """Also unpack the shards into memory maps for training."""

    def run(self) -> int:
        if self.dataset:
            return self._dataset(self.dataset)
        from selfsame.images.files import InputError, check_output, write_image
        from selfsame.mannequins.people import FIRST_NAMES, LAST_NAMES, person_named, person_of
        from selfsame.mannequins.render import draw
        from selfsame.mannequins.sheets import people_sheet
        from selfsame.mannequins.world import neutral_scene

        out = check_output(self.out)
        if self.person is not None and self.name:
            raise InputError("give --person or --name, not both")
        if self.person is not None or self.name:
            if self.name:
                words = self.name.lower().split()
                if len(words) != 2 or words[0] not in FIRST_NAMES or words[1] not in LAST_NAMES:
                    raise InputError(
                        f"--name {self.name!r}: give a first and a last name of the world, such as 'ada fox' ({len(FIRST_NAMES)} x {len(LAST_NAMES)} names)"
                    )
                person = person_named(words[0], words[1])
            else:
                assert self.person is not None
                if self.person < 0:
                    raise InputError(f"--person {self.person}: give a seed from 0")
                person = person_of(self.person)
            print(write_image(out, draw([neutral_scene(person)])[0].image))
            return 0
        if not 1 <= self.people <= 100:
            raise InputError(f"--people {self.people}: give 1 to 100")
        with _bar("drawing", self.people) as tick:
            sheet = people_sheet(self.first, self.people, on_row=lambda: tick(1))
        print(write_image(out, sheet))
        return 0

    def _dataset(self, folder: Path) -> int:
        from selfsame.data.shards import RenderJob, render_dataset
        from selfsame.data.tables import pack
        from selfsame.studio.studio import checked_device

        checked_device(self.device)

        began = time.monotonic()
        done = 0
        with _bar("rendering", self.count) as tick:
            for n in render_dataset(RenderJob(folder, self.split, self.count, self.device), self.processes):
                done += n
                tick(n)
        print(f"{folder}: {done} samples of split {self.split}, {time.monotonic() - began:.0f} s")
        if self.pack:
            with _bar("packing", done) as tick:
                for _ in pack(folder, self.split):
                    tick(1)
        return 0


@dataclass(frozen=True)
class Train:
    """Train one of the models; a run that was stopped goes on where it was.

    Example: selfsame train instantid --smoke
    """

    name: Positional[str]
    """encoder, judge, face_vit, detector, parser, vae, decoder, clip, reader, base or instantid; each needs those before it.
    `all` trains and installs every one in turn, --minutes shared out among them."""
    data: Path = Path("data/world2")
    """Folder with the packed dataset (selfsame render --dataset ... --pack)."""
    runs: Path = Path("runs")
    """Folder for checkpoints, curves and caches."""
    steps: int = 0
    """Steps in all; 0: the recipe's own number."""
    accumulate: int = 1
    """Parts in which a step's batch is worked through, one after the other: less memory."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: far less memory, a third slower."""
    minutes: float = 0.0
    """Stop after this many minutes; 0: when the steps are done."""
    batch_size: int = 0
    """Samples a step; 0: the recipe's own number."""
    learning_rate: float = 0.0
    """Peak learning rate; 0: the recipe's own."""
    warm: bool = False
    """Start a new run from the installed weights. A stopped run goes on where it was, whatever this says."""
    smoke: bool = False
    """Two steps, to see that everything is in place."""
    ship: bool = False
    """Install the trained weights into the package."""

    def run(self) -> int:
        from selfsame.recipes.catalogue import SHARES
        from selfsame.studio.request import nearest

        nearest(self.name, (*SHARES, "all"), "recipe")
        if self.name != "all":
            self._train(self.name, self.minutes, self.ship)
            return 0
        for name, share in SHARES.items():
            self._train(name, self.minutes * share, not self.smoke)
        return 0

    def _train(self, name: str, minutes: float, ship: bool) -> None:
        from selfsame.recipes import catalogue
        from selfsame.recipes.common import Options
        from selfsame.recipes.curves import draw_curve

        with _bar(f"training {name}", 1) as tick:
            done = 0.0

            def show(p: Any) -> None:
                nonlocal done
                share = p.step / p.max_steps
                tick(share - done, f"loss {p.loss:.4f}  {p.samples_per_s:.0f} samples/s  {p.eta_s:.0f} s left")
                done = share
                if not sys.stderr.isatty():
                    parts = "  ".join(f"{k} {v:.4g}" for k, v in p.parts.items())
                    print(f"{name} step {p.step}/{p.max_steps}  loss {p.loss:.4f}  {parts}  {p.samples_per_s:.1f}/s  eta {p.eta_s:.0f} s", flush=True)

            options = Options(
                data=self.data,
                runs=self.runs,
                steps=self.steps,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                accumulate=self.accumulate,
                gradient_checkpointing=self.gradient_checkpointing,
                minutes=minutes,
                warm=self.warm,
                smoke=self.smoke,
                on_progress=show,
            )
            try:
                trained = catalogue.recipes()[name](options)
            finally:  # also after Ctrl-C: the curve so far
                if (log := options.folder(name) / "log.csv").exists():
                    draw_curve(log, log.with_name("curve.png"), name)
        if not trained.is_main:
            return
        print(f"{name}: " + "  ".join(f"{k} {v:.4g}" for k, v in trained.figures.items()))
        print(trained.folder / "curve.png")
        if ship:
            from selfsame.recipes.ship import ship_trained

            ship_trained(name, trained)
            print(f"{name} installed into the package")


@dataclass(frozen=True)
class Evaluate:
    """Measure identity, prompt and pose by pinned protocols, or the figure of each small model.

    Example: selfsame evaluate identity --out report
    """

    what: Positional[Literal["identity", "words", "models"]]
    """identity: InstantID on held-out people. words: people learned as words. models: each small model's figure."""
    out: Path = Path("out/evaluation")
    """Folder for report.json and report.html."""
    people: int = 0
    """Only this many of the protocol's people (for a quick look; the report says so). 0: all."""
    rows: tuple[str, ...] = ()
    """Only these rows of the table."""
    data: Path = Path("data/world2")
    """Folder with the packed dataset, for `models`."""
    device: str = "cpu"
    """cpu, cuda or mps."""

    def run(self) -> int:
        from selfsame.images.files import InputError
        from selfsame.recipes.measure.identity import identity
        from selfsame.recipes.measure.models import models
        from selfsame.recipes.measure.words import words

        if self.what == "words" and self.device != "cpu":
            raise InputError(f"--device {self.device}: people are learned on the CPU here")
        self.out.mkdir(parents=True, exist_ok=True)
        if self.what == "models":
            return models(self.data, self.out, device=self.device)
        with _bar("measuring", 1) as tick:
            if self.what == "words":
                report = words(self.out, people=self.people, only=self.rows, on_progress=tick)
            else:
                report = identity(self.out, people=self.people, only=self.rows, device=self.device, on_progress=tick)
        print(report)
        return 0
