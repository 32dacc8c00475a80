"""`selfsame edit`: a region of a picture painted anew, after a reference or with a person."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from selfsame.cli.model_flags import ModelFlags
from selfsame.cli.say import bar, warn
from selfsame.studio.request import OWN, EditRequest

SHARED = ("seed", "num_images", "num_steps", "guidance_scale", "solver")  # with generate's requests
PERSONS: dict[str, Any] = {  # flags of --person alone, and what they are when nobody gives them
    "prompt": "", "negative_prompt": "", "adapter_scale": OWN, "controlnet_scale": OWN, "photos": "mean", "which": None, "memory": "auto",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Edit(EditRequest, ModelFlags):
    """Paint a region of a picture by imitating another picture (MimicBrush), or put a person into it (InstantID).

    The mask is a picture of the source's size: white is painted anew; beyond a soft edge (--feather) black stays, bit for bit.

    Examples:
      selfsame edit --source room.png --mask mask.png --reference mug.png --out out.png
      selfsame edit --source mug.png --mask body.png --reference teapot.png --keep-shape --out out.png      the texture only
      selfsame edit --source room.png --mask left.png right.png --reference mug.png duck.png --out out.png  several regions
      selfsame edit --source group.png --mask face.png --person ada.png --prompt "a photo of a person smiling" --out out.png
      selfsame edit --source group.png --person ada.png --into 1 --out out.png                                ada instead of the second face from the left
      selfsame edit --model instantid-sdxl --device cuda --source group.jpg --mask face.png --person me.jpg --prompt "a photo of a person" --out out.png
    """

    source: Path
    """The picture to change."""
    mask: tuple[Path, ...] = ()
    """Where to paint; several masks for several regions. Without one --person takes the place of a face of the source."""
    reference: tuple[Path, ...] = ()
    """What to imitate: one for each mask, or one for all."""
    reference_mask: tuple[Path, ...] = ()
    """The part of each reference to look at."""
    person: tuple[Path, ...] = ()
    """Photos of one person or a folder of them, or an identity file, instead of a reference."""
    which: int | None = None
    """With --person: which face of a photo with several, counted from the left, from 0; default: the largest."""
    into: int | None = None
    """With --person and no --mask: whose place in the source is taken, counted from the left, from 0; default: the largest face."""
    prompt: str = ""
    """With --person: what to paint."""
    negative_prompt: str = ""
    """With --person: what not to paint."""
    adapter_scale: float = OWN
    """With --person: Image Adapter, 0 to 2; -1: the model's own (the miniature 1, photographs 0.8)."""
    controlnet_scale: float = OWN
    """With --person: IdentityNet, 0 to 2; -1: the model's own, likewise."""
    photos: Literal["mean", "joint"] = "mean"
    """With several photos of --person: the mean of their embeddings, or all of them jointly."""
    out: Path = Path("out.png")
    """The PNG to write; several pictures get -1, -2 ... before the ending."""
    model: str = "mannequin"
    """mannequin; mimicbrush: the official weights, 512 pixels (the official demo's --solver is ddim); with --person
    instantid-sdxl or instantid-sd15."""
    weights: Path | None = None
    """With --model mimicbrush: a folder of the official layout, or what `selfsame convert` made of one, instead of the fetched one."""

    def __post_init__(self) -> None:
        """Flags are checked when the command runs, so that errors read as ours and not as the parser's."""

    def run(self) -> int:
        from selfsame.images.files import InputError, check_output, numbered, read_source, spare_inputs, write_image
        from selfsame.images.masks import read_mask
        from selfsame.studio.ready import pictures_in
        from selfsame.studio.request import nearest
        from selfsame.studio.studio import MODELS

        began = time.monotonic()
        request = EditRequest(**{f.name: getattr(self, f.name) for f in fields(EditRequest)})
        out = check_output(self.out)
        nearest(self.model, (*MODELS, "mimicbrush"), "model")
        if bool(self.reference) == bool(self.person):
            raise InputError("give --reference or --person, one of them")
        if not self.mask and not self.person:
            raise InputError("--mask: give at least one mask, a picture of the source's size that is white where to paint")
        if self.into is not None and (self.mask or not self.person):
            raise InputError("--into belongs to --person without --mask")
        if self.person and len(self.mask) > 1:
            raise InputError("--person paints into one --mask")
        people = tuple(p for path in self.person for p in (pictures_in(path) if path.is_dir() else [path]))
        after = (*self.reference, *self.reference_mask, *people)
        paths = numbered(out, self.num_images)
        spare_inputs(paths, (self.source, *self.mask, *after, *self.person))
        kept = read_source(self.source)
        source, masks = kept.pixels, []
        for note in kept.notes:
            warn(note)
        for path in self.mask:
            mask, notes = read_mask(path, *source.shape[:2])
            masks.append(mask)
            for note in notes:
                warn(note)
        about: dict[str, Any] = {
            "model": self.model,
            "encoder": "",  # of faces
            "source": str(self.source.resolve()),
            "mask": [str(p.resolve()) for p in self.mask],
        }
        made, more = self._person(people, source, masks, request) if people else self._imitate(source, masks, request)
        sources = [str(p.resolve()) for p in after]
        hashes = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (self.source, *self.mask, *after)]
        for i, (path, image) in enumerate(zip(paths, made, strict=True)):
            said = about | more | {"after": sources, "sources": hashes, "seed": self.seed + i}
            print(f"{write_image(path, kept.changed(image), said, icc_profile=kept.icc_profile)}  {time.monotonic() - began:.1f} s")
        return 0

    def _imitate(self, source: np.ndarray, masks: list[np.ndarray], request: EditRequest) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The pictures, and what their files shall say besides."""
        from selfsame.images.files import InputError, read_image
        from selfsame.images.masks import read_mask
        from selfsame.studio.edits import Region

        given = [name for name, usual in PERSONS.items() if getattr(self, name) != usual]
        if given:
            raise InputError(f"--{given[0].replace('_', '-')} belongs to --person, not to --reference: MimicBrush takes no words and no face")
        if len(self.reference) not in (1, len(masks)):
            raise InputError(f"{len(masks)} masks and {len(self.reference)} references: give one reference for each mask, or one for all")
        if self.reference_mask and len(self.reference_mask) != len(self.reference):
            raise InputError(f"{len(self.reference)} references and {len(self.reference_mask)} reference masks: give one for each, or none")
        looked: list[tuple[np.ndarray, np.ndarray | None]] = []
        for k, path in enumerate(self.reference):
            image = read_image(path)
            if image.shape == source.shape and np.array_equal(image, source):
                raise InputError(f"{path}: is the source itself; give another picture to imitate")
            part = None
            if self.reference_mask:
                part, notes = read_mask(self.reference_mask[k], *image.shape[:2], to_paint=False)
                for note in notes:
                    warn(note)
            looked.append((image, part))
        regions = [Region(mask, *looked[k if len(looked) > 1 else 0]) for k, mask in enumerate(masks)]
        editor = self._editor()
        with bar("painting", editor.num_calls(request) * len(regions) * -(-self.num_images // editor.together)) as tick:
            made = editor.edit(source, regions, request, on_step=lambda _: tick(1))
        about = {"edit": asdict(request.settled(editor.limits)), "weights": self.weights_digest(editor)}
        return made, about | ({"precision": self.precision} if self.model == "mimicbrush" else {})

    def _editor(self) -> Any:
        from selfsame.images.files import InputError
        from selfsame.studio.edits import Editor
        from selfsame.studio.studio import checked_device, load

        if self.model not in ("mannequin", "mimicbrush"):
            raise InputError(f"--model {self.model} paints people (--person); a --reference needs mannequin or mimicbrush")
        if any((self.base, self.instantid, self.face_models, self.lora)):
            raise InputError("--base, --instantid, --face-models and --lora belong to --person with a model for photographs")
        self.check_licence()
        if self.model == "mannequin":
            for flag, given in (("--weights", self.weights), ("--precision", self.precision != "auto")):
                if given:
                    raise InputError(f"{flag} belongs to --model mimicbrush; the miniature brings its own")
            return Editor(load(device=self.device))
        from selfsame.studio.brush import BrushEditor
        from selfsame.studio.real import PRECISIONS
        from selfsame.studio.request import nearest
        from selfsame.weights.catalogue import CATALOGUE
        from selfsame.weights.fetch import local

        dtype = PRECISIONS[nearest(self.precision, tuple(PRECISIONS), "precision")]
        return BrushEditor(self.weights or local(CATALOGUE["mimicbrush"]), device=str(checked_device(self.device)), dtype=dtype)

    def _person(self, people: Sequence[Path], source: np.ndarray, masks: list[np.ndarray], request: EditRequest) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The pictures, and what their files shall say besides."""
        from selfsame.images.files import InputError
        from selfsame.studio.inpainting import face_to_replace, put_person
        from selfsame.studio.people import IDENTITIES, read_identity
        from selfsame.studio.request import Request

        if self.model == "mimicbrush":
            raise InputError("--person is painted by InstantID, not by --model mimicbrush: choose mannequin, instantid-sdxl or instantid-sd15")
        if self.reference_mask or self.keep_shape or self.weights:
            raise InputError("--reference-mask, --keep-shape and --weights belong to --reference, not to --person")
        shared: dict[str, Any] = {n: getattr(self, n) for n in (*SHARED, *(n for n in PERSONS if n not in ("which", "memory")))}
        asked = Request(**shared)
        studio, known = self.studio(), [p for p in people if p.suffix.lower() in IDENTITIES]
        if known and (len(people) > 1 or self.which is not None):
            raise InputError(f"{known[0]}: an identity file stands alone, without photos beside it and without --which")
        who, notes = (read_identity(known[0]), ()) if known else studio.introduced(*people, which=self.which)
        if not who.num_photos:
            raise InputError(f"{known[0]}: holds learned words and no photo; give a photo of the person")
        where, seen = (masks[0], ()) if masks else face_to_replace(studio, source, self.into)
        made_by, settled = self.made_by(studio, asked), replace(request.settled(studio.limits), context=request.context)
        shared |= {"num_steps": settled.num_steps, "guidance_scale": settled.guidance_scale}
        with bar("painting", studio.num_calls(asked) * -(-self.num_images // studio.together)) as tick:
            made, more = put_person(studio, source, where, who, asked, request, on_step=lambda _: tick(1))
        for note in (*notes, *seen, *more):
            warn(note)
        return made, {**shared, "edit": asdict(settled), "which": self.which, "into": self.into, "encoder": who.encoder, **made_by, "memory": studio.preset}
