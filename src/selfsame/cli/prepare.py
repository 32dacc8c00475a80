"""`selfsame prepare`: raw material to shards that training reads."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from selfsame.cli.say import bar, warn


@dataclass(frozen=True)
class Prepare:
    """Portraits for InstantID or pairs of looks for MimicBrush, as WebDataset shards that a stopped run goes on with; a set of edits to measure it by.

    Examples:
      selfsame prepare pairs --videos clips/ --size 512 --out data/pairs        two frames of a video, alike but not too alike
      selfsame prepare pairs --stills photos/ --size 512 --out data/pairs       photo.jpg beside photo.mask.png (any value above 0: a thing)
      selfsame prepare pairs --shards wds/ --size 512 --out data/pairs          anybody's WebDataset: KEY.mp4, or KEY.jpg beside KEY.mask.png
      selfsame prepare pairs --world 5000 --out data/world2/pairs               clips of the miniature world, with exact depth
      selfsame prepare portraits --photos people/ --face-models ~/.cache/selfsame/antelopev2 --size 1024 --out data/portraits    a folder a person
      selfsame prepare edits --world 40 --split test --out data/edits           sources, masks, references and truths as plain pictures
    """

    what: Positional[Literal["portraits", "pairs", "edits"]]
    """portraits: what InstantID learns from, for a base of your own. pairs: what MimicBrush learns from.
    edits: so many cases a track of the world (--world), in the layout of MimicBrush's benchmark."""
    out: Path
    """Folder for the shards."""
    photos: Path | None = None
    """For portraits: photos/PERSON/*.jpg, all of a folder of one person; NAME.txt beside NAME.jpg is its caption."""
    face_models: Path | None = None
    """For portraits: the face reader's folder, such as antelopev2's; InstantID will read its embeddings."""
    caption: str = ""
    """For portraits: what is said of photos without a text file; default: a photo of a person."""
    videos: Path | None = None
    """Folder of videos (searched with its subfolders)."""
    stills: Path | None = None
    """Folder of pictures, each with NAME.mask.png beside it."""
    shards: Path | None = None
    """Folder of WebDataset shards (.tar), each sample a video, or a picture with the mask of a thing."""
    world: int = 0
    """So many clips of the miniature world."""
    split: str = "train"
    """Name of the split; of the world: train, judge, validation or test."""
    size: int = 0
    """Height and width of the squares in pixels: the model's, 512 for Stable Diffusion 1.5; 0: of pairs 128, the miniature's, of portraits 1024, SDXL's."""
    pairs_per_source: int = 2
    """Pairs of frames a clip, or things a still, at most."""
    ssim_low: float = 0.30
    """Pairs less alike than this are left out."""
    ssim_high: float = 0.90
    """Pairs more alike than this are left out."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes; the bytes are the same for any number."""
    show: Path | None = None
    """Also write a PNG of the first training samples: source, what is hidden, reference."""

    def run(self) -> int:
        from selfsame.data.pairs import PairsJob, Report, pairs_sheet, prepare_pairs
        from selfsame.images.files import InputError, check_output, write_image
        from selfsame.mannequins.people import SPLITS
        from selfsame.methods.mimicbrush.samples import PairSamples

        if self.what == "edits":
            return self._edits()
        if self.what == "portraits":
            return self._portraits()
        show = check_output(self.show) if self.show else None
        if self.world and self.split not in SPLITS:
            raise InputError(f"--split {self.split!r}: the world has {', '.join(SPLITS)}")
        how = PairSamples(ssim_low=self.ssim_low, ssim_high=self.ssim_high)
        job = PairsJob(self.out, self.split, self.videos, self.stills, self.world, self.size or PairsJob.size, self.pairs_per_source, how, self.shards)
        total = Report()
        with bar(f"pairs of {job.kind}", len(job.sources())) as tick:
            for report in prepare_pairs(job, self.processes):
                total.add(report)
                tick(report.sources)
        for line in total.problems:
            warn(line)
        seen = f", SSIM of {total.looked_at} looked at {total.ssim_low:.2f} to {total.ssim_high:.2f}, {total.in_band} kept" if total.looked_at else ""
        if not total.pairs or (total.looked_at and not total.in_band and job.kind != "shards"):  # shards may hold stills as well
            stills = f", only {total.pairs} stills" if total.pairs else ""
            widen = (
                f"widen --ssim-low {self.ssim_low:g} and --ssim-high {self.ssim_high:g}" if total.looked_at else "none of them could be used (see the warnings)"
            )
            raise InputError(f"{self.out}: no pair of frames was kept of {total.sources} sources{seen}{stills}; {widen}")
        print(f"{self.out}: {total.pairs} pairs of {total.sources} sources, {len(total.problems)} bad{seen}")
        if show:
            print(write_image(show, pairs_sheet(self.out, self.split, how)))
        return 1 if total.problems else 0

    def _portraits(self) -> int:
        from selfsame.data.portraits import CAPTION, PortraitsJob, Report, prepare_portraits
        from selfsame.images.files import InputError
        from selfsame.perception.real_faces import reader_of

        if self.photos is None or self.face_models is None:
            raise InputError("portraits need --photos FOLDER (a folder for each person) and --face-models FOLDER (such as antelopev2's)")
        reader = reader_of(self.face_models)
        job = PortraitsJob(self.out, self.photos, reader.name, self.split, self.size or PortraitsJob.size, self.caption or CAPTION)
        total = Report()
        with bar("portraits", len(job.sources)) as tick:
            for report in prepare_portraits(job, reader):
                total.add(report)
                tick(report.sources)
        for line in total.problems:
            warn(line)
        if not total.portraits:
            raise InputError(f"{self.photos}: none of {total.sources} photos can be used (see the warnings)")
        people = f"{len(total.people)} people, {total.teachers} with several photos"
        print(f"{self.out}: {total.portraits} portraits of {people}; {len(total.problems)} photos left out")
        return 1 if total.problems else 0

    def _edits(self) -> int:
        from selfsame.data.edit_sets import TRACKS, surplus, world_case, write_case
        from selfsame.images.files import InputError
        from selfsame.mannequins.people import SPLITS

        if self.world < 1 or self.videos or self.stills:
            raise InputError("edits are drawn from the world: give --world COUNT, cases a track")
        if self.split not in SPLITS:
            raise InputError(f"--split {self.split!r}: the world has {', '.join(SPLITS)}")
        if left := surplus(self.out, self.world):
            raise InputError(f"{left}: is a case beyond the {self.world} asked for; choose another --out, or delete it")
        with bar("edits", self.world * len(TRACKS)) as tick:
            for track in TRACKS:
                for i in range(self.world):
                    write_case(self.out, track, world_case(track, self.split, i))
                    tick(1)
        print(f"{self.out}: {self.world} cases in each of {len(TRACKS)} tracks")
        return 0
