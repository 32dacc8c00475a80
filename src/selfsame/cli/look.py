"""`selfsame faces` and `selfsame render`: what a picture shows, and pictures of the world."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from selfsame.cli.say import bar


@dataclass(frozen=True)
class Faces:
    """Say which faces a picture shows and which one would be used.

    Example: selfsame faces photo.png
    """

    picture: Positional[Path]
    """The picture to look at."""
    out: Path | None = None
    """A PNG with boxes, key points and numbers drawn in."""
    models: Path | None = None
    """For photographs: a folder with the ONNX files of antelopev2, buffalo_l or AuraFace, or with OpenCV's YuNet and SFace. Default: the miniature's own."""
    provider: str | None = None
    """With --models: what onnxruntime computes with, such as CUDAExecutionProvider; default: the CPU."""

    def run(self) -> int:
        from selfsame.images.draw import draw_faces
        from selfsame.images.files import InputError, check_output, read_image, spare_inputs, write_image
        from selfsame.studio.people import is_cut
        from selfsame.studio.studio import OWN_FACES

        image = read_image(self.picture)
        if self.out:
            check_output(self.out)
            spare_inputs([self.out], [self.picture])
        found, norms = self._found(image)
        if not found:
            remedy = "use a picture in which the face is upright, whole and larger than a tenth of the picture" if self.models else OWN_FACES
            raise InputError(f"{self.picture}: no face was found; {remedy}")
        ordered = sorted(zip(found, norms, strict=True), key=lambda f: float(f[0].box[0] + f[0].box[2]))
        labels = []
        for i, (face, norm) in enumerate(ordered):
            x0, y0, x1, y1 = (round(float(v)) for v in face.box)
            used = "  <- used" if face is found[0] else ""
            if not self.models and is_cut(face, image.shape):
                used += "  (cut by the border: refused by generate)"
            labels.append(f"{x1 - x0} x {y1 - y0}  {face.score:.2f}  norm {norm:.1f}")
            print(f"{i}: box {x0},{y0} to {x1},{y1}  {x1 - x0} x {y1 - y0} px  score {face.score:.2f}  embedding norm {norm:.1f}{used}")
        if self.out:
            used_row = next(i for i, (face, _) in enumerate(ordered) if face is found[0])
            print(write_image(self.out, draw_faces(image, [(face.box, face.kps) for face, _ in ordered], used_row, labels)))
        return 0

    def _found(self, image: Any) -> tuple[list[Any], list[float]]:
        """Faces, the one that would be used first, and the norms of their embeddings."""
        import numpy as np

        if self.models:
            from selfsame.perception.real_faces import reader_of
            from selfsame.studio.real import photo_as_read

            read = photo_as_read(image)  # as `generate` reads a photo for SDXL, so that the same face is used
            zoom = np.array([image.shape[1] / read.shape[1], image.shape[0] / read.shape[0]])
            faces = reader_of(self.models, [self.provider] if self.provider else [])(read)
            back = [replace(f, box=f.box * np.tile(zoom, 2), kps=f.kps * zoom) for f in faces]
            return list(back), [float(np.linalg.norm(f.embedding)) for f in faces]
        from selfsame.images.files import InputError
        from selfsame.perception.embedders import ENCODER_CROP, embed, to_crops
        from selfsame.studio.studio import load

        if self.provider:
            raise InputError("--provider belongs to --models")
        studio = load()
        found = studio.faces(image)
        rows = embed(studio.encoder, to_crops([image] * len(found), [f.kps for f in found], ENCODER_CROP)) if found else []
        return found, [float(r.norm()) for r in rows]


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
    faces: int = 0
    """Of split train only single people, and of each so many pictures (1 to 4), for InstantID: with 2 more than twice the people in the same time.
    0: all samples."""
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
        if self.first < 0:
            raise InputError(f"--first {self.first}: give a seed from 0")
        with bar("drawing", self.people) as tick:
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
        job = RenderJob(folder, self.split, self.count, self.device, self.faces)
        with bar("rendering", sum(len(job.wanted(samples)) for samples in job.shards)) as tick:
            for n in render_dataset(job, self.processes):
                done += n
                tick(n)
        some = f", of each person {self.faces} pictures" if self.faces else ""
        print(f"{folder}: {done} samples of split {self.split}{some}, {time.monotonic() - began:.0f} s")
        if self.pack:
            with bar("packing", done) as tick:
                packed = 0
                for n in pack(folder, self.split, self.processes):
                    tick(n - packed)
                    packed = n
        return 0
