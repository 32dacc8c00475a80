"""MimicBrush by its pinned protocol, beside what it must beat, on the world's set of edits or on a folder of anyone's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from selfsame.data.edit_sets import TRACKS, EditCase, is_inner, is_texture, read_track, world_case
from selfsame.evaluation.metrics import bootstrap_interval, mean, paired_interval, ratio_interval
from selfsame.evaluation.pictures import SMALLEST, box_of, clean_crop, psnr, ssim
from selfsame.evaluation.report import WORST, Case, Report, Row, span, with_span, write_report
from selfsame.images.files import InputError
from selfsame.images.masks import resized, window_around
from selfsame.images.resize import squared
from selfsame.mannequins.world import WORLD_VERSION
from selfsame.methods.mimicbrush.method import MimicBrush
from selfsame.methods.mimicbrush.objective import MimicBrushTrainer
from selfsame.methods.mimicbrush.pictures import latent_mask
from selfsame.models.latents import encode
from selfsame.models.mannequin import load_image_encoder, load_text_projection
from selfsame.perception.depth import depth_of
from selfsame.perception.reader import AttributeReader, perceptual_distance, reader_features
from selfsame.perception.similarity import StockClip, StockDino
from selfsame.recipes.common import Options, fingerprint_of, to_pixels
from selfsame.recipes.measure.judging import measured_with, notes_on_weights, reader_net
from selfsame.recipes.measure.pictures import Kept
from selfsame.recipes.measure.protocols import protocol
from selfsame.recipes.measure.trainings import Trainings, chosen
from selfsame.recipes.mimicbrush import ABLATIONS, GRIDS, MASKS, READ, Variant, has_stills, mimicbrush, pairs_digest
from selfsame.studio.brush import BrushEditor
from selfsame.studio.edits import SIDE, Editor, Region, framed, put_back
from selfsame.studio.painting import Row as PaintRow
from selfsame.studio.request import EditRequest, Request
from selfsame.studio.studio import Studio, load

EDITS = "edits-3"
OURS = "MimicBrush"
SHAPE_FREE = "MimicBrush, shape free"
BY_TEXT = "inpainting by text"
SHORT_RATE = 8e-4  # of trainings that are compared: from the base's weights and short
OFFICIAL_SOLVER = "ddim"  # of MimicBrush's demo and benchmark
BASELINES = ("cut and paste", BY_TEXT, "image tokens alone", "reference net alone", SHAPE_FREE)
INNER = ("SSIM", "PSNR", "perceptual")
INTER = ("CLIP-I", "reader-I", "DINO-I", "CLIP-I to the truth", "reader-I to the truth", "CLIP-T")
LESS_IS_BETTER = ("perceptual", "depth error")


def edits_digest(p: Mapping[str, Any]) -> str:
    """Hash of the protocol's numbers and of what the first cases of every track are drawn from."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in p.items() if k != "asked_sha256"}, sort_keys=True).encode())
    for track in TRACKS:
        for i in range(3):
            digest.update(world_case(track, p["split"], i).about.encode())
    return digest.hexdigest()


class WorldClip:
    """The miniature's own CLIP, asked like a stock one."""

    name, side = "the miniature's CLIP", SIDE

    def __init__(self, studio: Studio) -> None:
        self.studio, self.tower, self.projection = studio, load_image_encoder(), load_text_projection()

    @torch.no_grad()
    def images(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        return F.normalize(self.tower(to_pixels(np.stack([resized(i, SIDE) for i in images]))).image_embeds, dim=-1)

    @torch.no_grad()
    def prompt(self, prompt: str) -> torch.Tensor:
        tokenizer, encoder = self.studio.text
        ids = tokenizer(prompt, padding="max_length", truncation=True, max_length=encoder.config.max_position_embeddings, return_tensors="pt").input_ids
        return F.normalize(self.projection(encoder(ids.to(encoder.device)).pooler_output.cpu()), dim=-1)[0]


@dataclass
class Scorer:
    """What looks at the results: the reader's layers, CLIP's two towers, the depth network, and a DINO where one is given."""

    reader: AttributeReader
    clip: WorldClip | StockClip
    editor: Editor  # the miniature's, whose depth network reads shapes
    dino: StockDino | None = None

    def scores(self, case: EditCase, result: np.ndarray) -> dict[str, float]:
        """All columns that the case allows; of a case without a truth, prompt or reference mask the others."""
        made: dict[str, float] = {}
        inside = case.mask > 0
        if case.truth is not None:
            rows, columns = box_of(inside, SMALLEST)
            a, b = result[rows, columns], case.truth[rows, columns]
            x, y = (F.interpolate(to_pixels(v[None]), (SIDE, SIDE), mode="bilinear", align_corners=False) for v in (a, b))
            made |= {"SSIM": ssim(a, b), "PSNR": psnr(a, b), "perceptual": float(perceptual_distance(self.reader, x, y))}
        meant = np.ones(case.reference.shape[:2], bool) if case.reference_mask is None else case.reference_mask > 0
        exact = inside if case.part is None else case.part > 0  # on white, as the reference is: nothing of the background counts as likeness

        def crops(side: int) -> list[np.ndarray]:
            pictures = [(result, exact), (case.reference, meant), *([] if case.truth is None else [(case.truth, exact)])]
            return [clean_crop(image, mask, side) for image, mask in pictures]

        for what, seen in (("CLIP-I", self.clip.images(crops(self.clip.side)).numpy()), ("reader-I", reader_features(self.reader, crops(SIDE)))):
            like = [float(seen[0] @ other / max(1e-9, np.linalg.norm(seen[0]) * np.linalg.norm(other))) for other in seen[1:]]
            made |= dict(zip((what, f"{what} to the truth"), like, strict=False))
        if self.dino is not None:
            one, two = self.dino.images(crops(self.dino.side)[:2])
            made["DINO-I"] = float(one @ two)
        if case.prompt:
            made["CLIP-T"] = float(self.clip.images([squared(result)])[0] @ self.clip.prompt(case.prompt))
        before, after = depth_of(self.editor.depth_net, case.source), depth_of(self.editor.depth_net, result)
        return made | {"depth error": float(np.abs(before - after)[inside].mean())}


@contextmanager
def left_out(editor: Editor, *, net: bool, tokens: bool) -> Iterator[None]:
    """The editor without its reference net, or with the tokens of no picture: what each half is worth, untrained for it."""
    editor.leave_out_net, editor.leave_out_tokens = net, tokens
    try:
        yield
    finally:
        editor.leave_out_net = editor.leave_out_tokens = False


def cut_and_paste(case: EditCase, request: EditRequest) -> np.ndarray:
    """The meant part of the reference, stretched over the box of the mask."""
    meant = np.ones(case.reference.shape[:2], bool) if case.reference_mask is None else case.reference_mask > 0
    part = case.reference[box_of(meant)]
    rows, columns = box_of(case.mask > 0)
    result = case.source.copy()
    result[rows, columns] = cv2.resize(part, (columns.stop - columns.start, rows.stop - rows.start), interpolation=cv2.INTER_LINEAR)
    window = window_around(case.mask > 0, 1.0)
    return put_back(case.source, window.crop(result, 255), case.mask, window, request)


def by_text(editor: Editor, case: EditCase, request: EditRequest, seed: int) -> np.ndarray:
    """The base model paints the region after the prompt alone."""
    square, inside, window = framed(case.source, case.mask, request.context, editor.side)
    asked = Request(num_steps=request.num_steps, guidance_scale=request.guidance_scale, solver=request.solver)
    known = editor.pixels_to_latents(square), latent_mask(inside).to(editor.studio.device)
    painted, _ = editor.studio.paint([PaintRow(case.prompt)], asked, [seed], known=known)
    return put_back(case.source, painted[0], case.mask, window, request)


def _made(name: str, editors: Mapping[str, Editor], track: str, case: EditCase, request: EditRequest) -> np.ndarray:
    """One row's answer to one case. A row that was trained by itself is whole, the others are our weights with something left out."""
    editor = editors.get(name, editors[OURS])
    if name == "oracle":
        assert case.truth is not None
        with torch.no_grad():
            true, _, window = framed(case.truth, case.mask, request.context, editor.side)
            seen = editor.studio.decode(encode(editor.studio.vae, to_pixels(true[None])))[0]
        return put_back(case.source, seen, case.mask, window, request)
    if name == "cut and paste":
        return cut_and_paste(case, request)
    if name == BY_TEXT:
        return by_text(editor, case, request, request.seed)
    shaped = replace(request, keep_shape=is_texture(track) and name != SHAPE_FREE)
    own = name in editors
    with left_out(editor, net=not own and name == "image tokens alone", tokens=not own and name == "reference net alone"):
        return editor.edit(case.source, [Region(case.mask, case.reference)], shaped)[0]


def cases_of(p: Mapping[str, Any], cases: int = 0, folder: Path | None = None) -> tuple[dict[str, list[EditCase]], list[str]]:
    """The protocol's cases by track, or those of somebody's own set, and what a report must say of them.

    Raises:
        InputError: more cases than the protocol has, or a folder without a case.
    """
    count = cases or p["cases_per_track"]
    if cases < 0 or (folder is None and count > p["cases_per_track"]):
        raise InputError(f"--people {cases}: give the cases of each track, 1 to {p['cases_per_track'] if folder is None else 'as many as it has'}; 0: all")
    notes = [f"only {cases} cases a track: not comparable with full runs"] if cases and (folder is not None or cases < p["cases_per_track"]) else []
    sets: dict[str, list[EditCase]] = {}
    for track in TRACKS:
        if folder is None:
            sets[track] = [world_case(track, p["split"], i) for i in range(count)]
            continue
        found = list(read_track(folder, track))[: cases or None]
        notes += [f"left out: {case}" for case in found if isinstance(case, InputError)]
        sets[track] = [case for case in found if isinstance(case, EditCase)]
    if not any(sets.values()):
        names_of = ", ".join(f"ID_{part}.png" for part in ("source", "source_mask", "reference"))
        raise InputError(f"{folder}: holds no case that can be used; a case is {names_of} in one of {', '.join(TRACKS)}")
    return sets, notes


def edits(
    out: Path,
    *,
    cases: int = 0,
    only: Sequence[str] = (),
    folder: Path | None = None,
    weights: Path | None = None,
    methods: Mapping[str, Callable[[], MimicBrush]] | None = None,
    clip: Path | None = None,
    dino: Path | None = None,
    device: str = "cpu",
    more: Sequence[str] = (),
    on_progress: Callable[[float, str], None] = lambda share, note: None,
) -> Report:
    """Run the edits protocol. Pictures stay in `out/pictures`, so a run that was stopped goes on.

    Args:
        out: folder for report.json and report.html.
        cases: only the first so many of each track; 0: all.
        only: only these rows.
        folder: somebody's own set in the benchmark's layout instead of the world's.
        weights: a folder of the official MimicBrush, or of its layout, in place of the miniature's, with the official steps, guidance and solver.
        methods: other trainings by the names of their rows, trained once all else has been checked.
        clip, dino: folders of stock extractors (transformers) in place of the miniature's CLIP, and beside it.
        more: what the report shall say besides.

    Raises:
        InputError: an unknown row, more cases than the protocol has, or a folder without a case.
        ValueError: this code draws other pictures than the protocol was pinned for.
    """
    p = protocol(EDITS)
    if folder is None and (p["world"] != WORLD_VERSION or p["asked_sha256"] != edits_digest(p)):
        raise ValueError(f"protocol {p['name']} was pinned for other pictures than this code draws (world {WORLD_VERSION}): pin a new protocol")
    usual = [name for name in BASELINES if weights is None or name != BY_TEXT]  # the official weights read no text
    known = tuple(dict.fromkeys((OURS, *(methods or ()), *usual, "oracle")))
    for name in only:
        if name not in known:
            raise InputError(f"row {name!r} is unknown: choose from {', '.join(known)}")
    sets, notes = cases_of(p, cases, folder)
    studio = load(device=device)
    own = Editor(studio)
    editor = own if weights is None else BrushEditor(weights, device=device)
    seeing = StockClip(clip, device) if clip else WorldClip(studio)
    scorer = Scorer(reader_net(), seeing, own, StockDino(dino, device) if dino else None)
    notes.append(f"CLIP-I and CLIP-T by {seeing.name}" + (f", DINO-I by {scorer.dino.name}" if scorer.dino else ""))
    editors = {OURS: editor} | {name: Editor(studio, make()) for name, make in (methods or {}).items()}
    notes += more
    names = tuple(only) or known
    total = len(names) * sum(map(len, sets.values()))
    request = EditRequest(num_steps=p["num_steps"], guidance_scale=p["guidance_scale"], solver=p["solver"]).settled(editor.limits)
    if weights is not None:
        request = EditRequest(solver=OFFICIAL_SOLVER).settled(editor.limits)
        notes.append(f"the weights in {weights}, {request.num_steps} steps, guidance {request.guidance_scale:g}, {request.solver}")
    kept = Kept(out, [p, asdict(request), _digest(sets) if folder else ""])
    marks = {name: fingerprint_of([editors[name].method], name) for name in methods or {}}
    ours = marks.get(OURS, "" if weights is None else repr([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(weights.rglob("*"))]))
    heads = tuple(key for key in (*INNER, *INTER, "depth error") if key != "DINO-I" or dino)
    rows, strips, worst = [], [], []
    for track, members in sets.items():
        scores: dict[str, dict[str, dict[str, float]]] = {}  # by row and case
        shown: dict[str, list[np.ndarray]] = {}
        for name in names:
            if (name == SHAPE_FREE and not is_texture(track)) or not members:
                continue
            mine = [(k, c) for k, c in enumerate(members) if (c.truth is not None or name != "oracle") and (c.prompt or name != BY_TEXT)]
            row, files = f"{track}: {name}", [f"{case.name}.png" for _, case in mine]

            def tick(count: int, row: str = row) -> None:
                on_progress(count / total, row)

            def paint(at: Sequence[int], name: str = name, track: str = track, mine: Sequence[tuple[int, EditCase]] = mine) -> list[np.ndarray]:
                made = [_made(name, editors, track, mine[i][1], replace(request, seed=p["seed"] + mine[i][0])) for i in at]
                on_progress(len(made) / total, f"{track}: {name}")
                return made

            made = kept.files(row, files, files, paint, tick, marks.get(name, ours))
            scores[name] = {case.name: scorer.scores(case, image) for (_, case), image in zip(mine, made, strict=True)}
            shown[name] = made[:8]
            columns: dict[str, float | str] = {key: mean([s[key] for s in scores[name].values() if key in s]) for key in heads}
            key = "PSNR" if is_inner(track) else "CLIP-I"
            if name == OURS:
                answers = sorted(zip(mine, made, strict=True), key=lambda pair: scores[OURS][pair[0][1].name].get(key, 0.0))
                worst += [_shown(track, case, key, scores[OURS][case.name], image) for (_, case), image in answers[: WORST // len(TRACKS)]]
            low, high = bootstrap_interval([s[key] for s in scores[name].values() if key in s], num_draws=p["bootstrap"])
            rows.append(Row(row, columns | {f"95 % of {key}": span(low, high), "s": kept.seconds[row]}))
        notes += _comparisons(track, scores)
        strips += [(f"{track}: {what}", [image(c) for c in members[:8]]) for what, image in (("source", _hidden), ("reference", lambda c: c.reference))]
        strips += [(f"{track}: {name}", images) for name, images in shown.items()]
    untrained = [n for n in BASELINES[2:4] if n in names and n not in editors]
    if untrained:
        notes.append(f"the same weights with one half left out, not trained for it: {', '.join(untrained)}")
    notes.append("'cut and paste' is told which part of the reference is meant, the others are not")
    if clip is None and weights is None:
        notes.append("the miniature's CLIP also tells MimicBrush of the reference, so its CLIP-I flatters it; reader-I is by a net that conditions nothing")
    notes += notes_on_weights()
    about = {
        **p,
        "extractors": {"CLIP": seeing.name, "DINO": scorer.dino.name if scorer.dino else ""},
        "cases_measured": {t: len(c) for t, c in sets.items()},
        "folder": str(folder) if folder else "",
        **measured_with(),
    }
    report = Report("Edits after a reference", about, rows, (), notes, strips, worst)
    write_report(report, out)
    return report


def _digest(sets: Mapping[str, Sequence[EditCase]]) -> str:
    """Of all that the pictures of somebody's own cases are made from."""
    digest = hashlib.sha256()
    for case in (c for members in sets.values() for c in members):
        digest.update(f"{case.name} {case.prompt}".encode())
        for image in (case.source, case.mask, case.reference, case.reference_mask, case.truth):
            digest.update(b"" if image is None else repr(image.shape).encode() + image.tobytes())
    return digest.hexdigest()


def _shown(track: str, case: EditCase, key: str, scores: Mapping[str, float], image: np.ndarray) -> Case:
    """One answer beside what was asked, and beside the truth where there is one."""
    asked = [_hidden(case), case.reference, image, *([] if case.truth is None else [case.truth])]
    return Case(f"{track} {case.name}: {key} {scores.get(key, float('nan')):.2f}; source, reference, result{'' if case.truth is None else ', truth'}", asked)


def ablated(out: Path, options: Options, *, only: Sequence[str] = (), **measuring: Any) -> Report:
    """Train MimicBrush anew, whole and with one choice changed at a time, so many steps each, and measure all of them. Runs that were stopped go on.

    Args:
        options: of every training; `runs/ablations` gets a folder for each.
        only: only these of `ABLATIONS`, always beside the whole one. Without it, those that the data has no stills for are left out.
        measuring: of `edits`.

    Raises:
        InputError: an unknown ablation, or no stills for one that is asked for.
    """

    def lacks(variant: Variant) -> str:
        enough = variant.how.still_share < 1 or has_stills(options.data)
        return "" if enough else f"{options.data} holds no stills: selfsame prepare pairs --world N"

    variants, left_out = chosen({OURS: Variant()} | ABLATIONS, only, lacks)
    more = ["none of these rows is of the weights that ship", *left_out]
    tell = measuring.get("on_progress", lambda share, note: None)
    options = replace(options, learning_rate=options.learning_rate or SHORT_RATE)
    trainings = Trainings("mimicbrush", mimicbrush, variants, options, READ, pairs_digest(options.data), tell, more)

    def made(name: str) -> MimicBrush:
        module = trainings.trained(name).module
        assert isinstance(module, MimicBrushTrainer)
        module.detach()
        return module.method.to(torch.device(measuring.get("device", "cpu")))

    methods = {name: partial(made, name) for name in variants}
    return edits(out, methods=methods, only=(*methods, *BASELINES[:2], "oracle"), more=trainings.seen, **measuring)


def _hidden(case: EditCase) -> np.ndarray:
    return np.where(case.mask[..., None] > 0, np.uint8(0), case.source)


def _comparisons(track: str, scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Ours minus every baseline, paired over the cases that both answered, for the columns that count on this track; ours as a share of the oracle's.
    Masks that alone hide are compared with the published grid that alone hides."""
    lines = []
    keys = INNER if is_inner(track) else INTER[:-1]

    def paired(name: str, key: str, first: str = OURS) -> list[tuple[float, float]]:
        ours = scores.get(first, {})
        return [(a[key], scores[name][case][key]) for case, a in ours.items() if case in scores[name] and key in a and key in scores[name][case]]

    for name in (n for n in scores if n not in (OURS, "oracle")):
        first = GRIDS if name in MASKS and GRIDS in scores else OURS
        for key in ("depth error",) if name == SHAPE_FREE else keys:
            if pairs := paired(name, key, first):
                difference = paired_interval(*zip(*pairs, strict=True))
                better = "less is better" if key in LESS_IS_BETTER else "more is better"
                lines.append(f"{track}, {key} ({better}), {first} minus {name}: {with_span(difference, f'{len(pairs)} cases')}")
    shares = [("oracle", key, "the oracle's") for key in keys if key not in LESS_IS_BETTER]
    for name, key, whose in (*shares, (SHAPE_FREE, "depth error", "that with the shape free")):
        if pairs := paired(name, key) if name in scores else []:
            share = ratio_interval(*zip(*pairs, strict=True))
            lines.append(f"{track}, {key}, {OURS} over {whose}: {with_span(share)}")
    return lines
