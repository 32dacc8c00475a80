"""`selfsame train` and `selfsame evaluate`: models made and measured."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from selfsame.cli.say import bar, warn

ABLATION_STEPS = 900  # unless others are asked for
DRAWN_EVERY = 300.0  # seconds between two drawings of a run's curve


@dataclass(frozen=True)
class Train:
    """Train one of the models; a run that was stopped goes on where it was.

    Examples:
      selfsame train instantid --smoke
      selfsame train instantid --base stable-diffusion-v1-5/ --data data/portraits      for your own base and photos (selfsame prepare portraits)
      selfsame train mimicbrush --base stable-diffusion-v1-5/ --image-encoder clip/ --depth depth-anything/ --data data/pairs     likewise (prepare pairs)
    """

    name: Positional[str]
    """encoder, judge, face_vit, detector, parser, depth, vae, decoder, clip, reader, base, words, instantid, turbo or mimicbrush; each needs those before it.
    `all` trains and installs every one in turn, --minutes shared out among them."""
    data: Path = Path("data/world2")
    """Folder with the packed dataset (selfsame render --dataset ... --pack)."""
    runs: Path = Path("runs")
    """Folder for checkpoints, curves and caches."""
    base: Path | None = None
    """Your own base (diffusers) instead of the miniature. For instantid Stable Diffusion 1.5 or SDXL, --data then holds portraits; for mimicbrush Stable
    Diffusion 1.5, --data then holds pairs."""
    start: Path | None = None
    """With --base: weights to go on from, a folder of the official layout, instead of new ones."""
    image_encoder: Path | None = None
    """With --base and mimicbrush: the folder of a CLIP image tower (transformers), officially CLIP ViT-H/14."""
    depth: Path | None = None
    """With --base and mimicbrush: the folder of a Depth Anything (transformers)."""
    steps: int = 0
    """Steps in all; 0: the recipe's own number."""
    accumulate: int = 1
    """Parts in which a step's batch is worked through, one after the other: less memory."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: far less memory, a third slower."""
    minutes: float = 0.0
    """Stop after this many minutes; 0: when the steps are done."""
    fit: bool = False
    """With --minutes: let the learning rate fall to its end within them, however many steps that turn out to be."""
    batch_size: int = 0
    """Samples a step; 0: the recipe's own number."""
    learning_rate: float = 0.0
    """Peak learning rate; 0: the recipe's own."""
    warm: bool = False
    """Start a new run from the installed weights. A stopped run goes on where it was, whatever this says."""
    rehearse: bool = False
    """For the miniature's instantid, once it is trained: also paint at every step, from noise alone, and learn from how alike the face is that the encoder
    sees in the forming picture. Begins with the installed weights, in runs/instantid-rehearsed."""
    mean: float = 1.0
    """With --warm or --rehearse: each weight comes out so far on the way from the installed one to the trained one; 0.5 is their mean, which often keeps the
    most of both (arXiv:2109.01903). Figures and samples are of what comes out."""
    smoke: bool = False
    """Two steps, to see that everything is in place."""
    ship: bool = False
    """Install the trained weights into the package."""

    def run(self) -> int:
        from selfsame.images.files import InputError
        from selfsame.recipes.catalogue import SHARES
        from selfsame.studio.request import nearest

        nearest(self.name, (*SHARES, "all"), "recipe")
        if (self.base or self.start) and self.name not in ("instantid", "mimicbrush"):
            raise InputError(f"--base and --start belong to instantid and mimicbrush, not to {self.name}")
        brush = self.base is not None and self.name == "mimicbrush"
        if brush != bool(self.image_encoder and self.depth) or (not brush and (self.image_encoder or self.depth)):
            raise InputError(
                "train mimicbrush --base needs --image-encoder and --depth, which belong to it: folders of a CLIP image tower and a Depth Anything"
            )
        if self.rehearse and (self.name != "instantid" or self.base):
            raise InputError(f"--rehearse belongs to instantid of the miniature, not to {self.base or self.name}")
        if self.rehearse and self.accumulate > 1:
            raise InputError("--rehearse paints a step's pictures together: leave --accumulate out, or give a smaller --batch-size")
        if not 0 < self.mean <= 1:
            raise InputError(f"--mean {self.mean}: give a share above 0, at most 1 (the trained weights alone)")
        if self.mean < 1 and not (self.warm or self.rehearse):
            raise InputError("--mean is between the installed weights and the trained ones: it belongs to --warm and --rehearse")
        if self.smoke and self.ship:
            raise InputError("--smoke takes two steps, to see that everything is in place: they are not to be shipped")
        if self.fit and not self.minutes:
            raise InputError("--fit needs --minutes: how long the run may take")
        if self.start and not self.base:
            raise InputError("--start needs --base, the folder of the base that those weights are for")
        if self.base and (self.ship or self.warm):
            raise InputError(
                "--ship and --warm are about the miniature's own weights; with --base the result lies in the run's folder, and --start says where to begin"
            )
        if self.name != "all":
            self._train(self.name, self.minutes, self.ship)
            return 0
        done = self.runs / "all.done"  # a run that was stopped does not begin again with what it has installed: later models learn from it
        installed = done.read_text().split() if done.exists() and not self.smoke else []
        for name, share in SHARES.items():
            if name in installed:
                print(f"{name}: installed before this run was stopped; delete {done} to train it on")
                continue
            self._train(name, self.minutes * share, not self.smoke)
            if not self.smoke:
                installed.append(name)
                done.write_text("\n".join(installed) + "\n")
        if not self.smoke:
            done.unlink(missing_ok=True)
        return 0

    def _train(self, name: str, minutes: float, ship: bool) -> None:
        from selfsame.recipes import catalogue
        from selfsame.recipes.common import Options
        from selfsame.recipes.curves import draw_curve
        from selfsame.training.processes import wait_for_everyone

        with bar(f"training {name}", 1) as tick:
            done, drawn = 0.0, time.monotonic()

            def draw() -> None:
                nonlocal drawn
                if (log := options.folder(called) / "log.csv").exists():
                    draw_curve(log, log.with_name("curve.png"), called)
                drawn = time.monotonic()

            def show(p: Any) -> None:
                nonlocal done
                share = p.step / p.max_steps
                tick(share - done, f"loss {p.loss:.4f}  {p.samples_per_s:.0f} samples/s  {p.eta_s:.0f} s left")
                done = share
                if time.monotonic() - drawn > DRAWN_EVERY:
                    draw()
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
                fit=self.fit,
                warm=self.warm or self.rehearse,
                rehearse=self.rehearse,
                mean=self.mean,
                smoke=self.smoke,
                on_progress=show,
            )
            called = name if self.base is None else f"{name}-{self.base.resolve().name}"
            try:
                trained = catalogue.recipes()[name](options) if self.base is None else self._for_base(options, self.base)
            finally:  # also after Ctrl-C: the curve so far
                draw()
        if trained.is_main:
            self._told(name, trained, ship)
        wait_for_everyone()

    def _told(self, name: str, trained: Any, ship: bool) -> None:
        """Figures and curve, and what they lack; installed if it shall be."""
        from selfsame.recipes.catalogue import below_gate
        from selfsame.studio.studio import TURBO
        from selfsame.weights.mannequin import manifest

        print(f"{name}: " + "  ".join(f"{k} {v:.4g}" for k, v in trained.figures.items()))
        print(trained.folder / "curve.png")
        for lack in () if self.smoke else below_gate(name, trained.figures):
            warn(lack)
        if ship and name == "base" and self.name != "all":
            remedy = f"delete {self.runs / 'mimicbrush'}, then selfsame train mimicbrush --warm --ship"
            warn(f"MimicBrush's reference net is the base with additions and refuses another one: {remedy}")
        if ship and name in ("base", "instantid") and self.name != "all" and TURBO in manifest()["files"]:
            warn(f"speed turbo was distilled from what this replaces: delete {self.runs / 'turbo'}, then selfsame train turbo --warm --ship")
        if ship:
            from selfsame.recipes.ship import ship_trained

            ship_trained(name, trained)
            print(f"{name} installed into the package")

    def _for_base(self, options: Any, base: Path) -> Any:
        if self.name == "mimicbrush":
            from selfsame.recipes.brush import mimicbrush_of

            assert self.image_encoder is not None
            assert self.depth is not None
            trained = mimicbrush_of(options, base.resolve(), image_encoder=self.image_encoder, depth=self.depth, start=self.start)
            if trained.is_main:
                print(f"{trained.folder / 'weights'}: what `selfsame edit --model mimicbrush --weights` reads, stock folders of diffusers and transformers")
            return trained
        from selfsame.recipes.portraits import instantid_of

        trained = instantid_of(options, base.resolve(), start=self.start)
        if trained.is_main:
            print(f"{trained.folder / 'weights'}: what `selfsame generate --base {base} --instantid` reads, in the official layout")
        return trained


ASKED = ("identity", "people", "views", "mix")  # protocols whose questions any tool can answer


@dataclass(frozen=True)
class Evaluate:
    """Measure identity, prompt and pose by pinned protocols, the figure of each small model, or anybody's folder of pictures.

    Examples:
      selfsame evaluate identity --out report
      selfsame evaluate identity --ask --out asked        then, with what any tool painted into asked/painted:  --pictures asked/painted --rows both oracle
      selfsame evaluate folder --pictures made --references photos --judges judge ~/.cache/selfsame/buffalo_l
    """

    what: Positional[Literal["identity", "people", "views", "mix", "words", "edits", "restyled", "models", "folder"]]
    """identity: InstantID on held-out people. people: two and three in a picture. views: one from several sides. mix: from one to another. words: people
    learned as words. edits: MimicBrush on held-out things. restyled: InstantID, unchanged, upon a fine-tune of the base in one --style, which is made first.
    models: each small model's figure. folder: image files, whoever made them."""
    pictures: Path | None = None
    """For `folder`: the pictures to judge; ada-1.png, ada_beach.png and ada/7.png are of ada. For identity, people, views and mix: another tool's answers to
    --ask, as one more row."""
    ask: bool = False
    """For identity, people, views and mix: only write what is asked (prompts, seeds, key points in asked.json, photos/) into --out, for any tool to answer."""
    references: Path | None = None
    """For `folder`: ada.png, or ada/ with several photos, the first of which the pictures were made from."""
    judges: tuple[str, ...] = ("judge",)
    """For `folder` and, beside their own, identity, people, views and mix: judge or encoder (the miniature's), or folders of real face models; any number."""
    conditioner: str = ""
    """For --pictures: the face model that made them, by the same name; as a judge it is flagged."""
    out: Path | None = None
    """Folder for report.json and report.html; unsaid, out/evaluation and the protocol's name."""
    people: int = 0
    """Only this many of the protocol's people, or of each track's edits (for a quick look; the report says so). 0: all, and 25 with
    `identity --ablations`."""
    edit_set: Path | None = None
    """For `edits`: your own set in the layout of MimicBrush's benchmark, instead of the world's."""
    weights: Path | None = None
    """For `edits`: a folder of the official MimicBrush (`selfsame models fetch mimicbrush`) in place of the miniature's, with an --edit-set of photographs."""
    clip: Path | None = None
    """For `edits`: folder of a CLIP (transformers), such as openai/clip-vit-large-patch14, instead of the miniature's."""
    dino: Path | None = None
    """For `edits`: folder of a DINO, such as facebook/dinov2-base, as one more column."""
    rows: tuple[str, ...] = ()
    """Only these rows of the table; for `models` only these models (base needs no dataset)."""
    ablations: bool = False
    """The method against itself with one choice changed. `identity`: InstantID trained anew without one of its parts, with CLIP's image tokens, with the text
    in IdentityNet, on fewer people ...; `edits`: MimicBrush without its reference net, without image tokens, on stills alone, with gentle augmentation or
    other masks (the paper's Tables 3 and 4); `words`: StableIdentity by another loss, mask or threshold, or taught here with another landing, encoder or
    teacher, 12 people each. --steps each."""
    steps: int = ABLATION_STEPS
    """For --ablations and `restyled`: steps of each training. A run that was stopped goes on."""
    runs: Path = Path("runs")
    """For --ablations and `restyled`: folder for those trainings."""
    style: str = "watercolour"
    """For `restyled`: the style of the fine-tune."""
    data: Path = Path("data/world2")
    """Folder with the packed dataset, for `models`, and for --ablations and `restyled` to train on (`edits` from its pairs/)."""
    device: str = "cpu"
    """cpu, cuda or mps."""

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        return self.out or Path("out/evaluation") / self.what

    def run(self) -> int:
        from selfsame.images.files import InputError
        from selfsame.recipes.measure.models import models

        if self.what == "words" and self.device != "cpu":
            raise InputError(f"--device {self.device}: people are learned on the CPU here")
        owners: dict[str, tuple[object, tuple[str, ...]]] = {  # flags of some kinds of measurement: what was given, whose they are
            "--pictures": (self.pictures, ("folder", *ASKED)), "--references": (self.references, ("folder",)),
            "--judges": (self.judges != ("judge",), ("folder", *ASKED)), "--conditioner": (self.conditioner, ("folder", *ASKED)),
            "--ask": (self.ask, ASKED), "--edit-set": (self.edit_set, ("edits",)), "--weights": (self.weights, ("edits",)),
            "--clip": (self.clip, ("edits",)),
            "--dino": (self.dino, ("edits",)), "--style": (self.style != "watercolour", ("restyled",)),
        }  # fmt: skip
        for flag, (given, whose) in owners.items():
            if given and self.what not in whose:
                raise InputError(f"{flag} belongs to {' and '.join(f'`evaluate {w}`' for w in whose)}, not to `evaluate {self.what}`")
        trains = self.ablations or self.what == "restyled"
        if not trains and (self.steps != ABLATION_STEPS or self.runs != Path("runs")):
            raise InputError("--steps and --runs belong to --ablations and to `evaluate restyled`")
        if self.ablations and self.what not in ("identity", "words", "edits"):
            raise InputError(f"--ablations belongs to `evaluate identity`, `words` and `edits`, not to `evaluate {self.what}`")
        if self.what == "folder" and (self.rows or self.people or self.device != "cpu"):
            raise InputError("`evaluate folder` judges every picture, on the CPU: leave out --rows, --people and --device")
        if self.conditioner and not self.pictures:
            raise InputError("--conditioner says what made the pictures of --pictures: give both")
        if self.ask and (self.ablations or self.pictures or self.rows):
            raise InputError("--ask only writes what is asked: give it with --out and --people alone")
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.ask:
            from selfsame.recipes.measure import identity, uses

            print(identity.ask(self.folder, people=self.people) if self.what == "identity" else uses.ask(self.what, self.folder, count=self.people))
            return 0
        if self.what == "models":
            return models(self.data, self.folder, only=self.rows, device=self.device)
        with bar("measuring", 1) as tick:
            print(self._report(tick))
        return 0

    def _report(self, tick: Any) -> Any:
        from selfsame.images.files import InputError
        from selfsame.recipes.common import Options
        from selfsame.recipes.measure import uses
        from selfsame.recipes.measure.edits import ablated as edits_ablated
        from selfsame.recipes.measure.edits import edits
        from selfsame.recipes.measure.folder import folder
        from selfsame.recipes.measure.identity import ablated, identity
        from selfsame.recipes.measure.restyled import restyling
        from selfsame.recipes.measure.words import ablated as words_ablated
        from selfsame.recipes.measure.words import words

        asking = uses.Asking(self.folder, self.pictures, self.judges, self.conditioner, self.device, tick)
        rows: dict[str, Any] = {"only": self.rows, "on_progress": tick}
        options = Options(data=self.data, runs=self.runs, steps=self.steps)
        if self.what == "folder":
            if self.pictures is None or self.references is None:
                raise InputError("evaluate folder needs --pictures and --references")
            return folder(self.pictures, self.references, self.folder, judges=self.judges, conditioner=self.conditioner, on_progress=tick)
        if self.what == "words":
            return words_ablated(self.folder, options, people=self.people, **rows) if self.ablations else words(self.folder, people=self.people, **rows)
        if self.what == "edits":
            asked = {"cases": self.people, "folder": self.edit_set, "clip": self.clip, "dino": self.dino, "device": self.device, **rows}
            if self.ablations and self.weights:
                raise InputError("--weights are not trained anew: leave out --ablations")
            return edits_ablated(self.folder, options, **asked) if self.ablations else edits(self.folder, weights=self.weights, **asked)
        if self.what == "people":
            return uses.people(asking, cases=self.people, only=self.rows)
        if self.what == "views":
            return uses.views(asking, people=self.people, only=self.rows)
        if self.what == "mix":
            return uses.mixes(asking, pairs=self.people, only=self.rows)
        rows |= {"people": self.people, "device": self.device}
        if self.what == "restyled":
            return restyling(self.folder, options, style=self.style, **rows)
        rows |= {"pictures": self.pictures, "judges": self.judges, "conditioner": self.conditioner}
        return ablated(self.folder, options, **rows) if self.ablations else identity(self.folder, **rows)
