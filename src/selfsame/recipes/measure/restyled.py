"""InstantID as it ships upon a fine-tune of its base that paints in one style: the papers' plug-in claim (arXiv:2401.07519, Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from selfsame.data.tables import open_table
from selfsame.evaluation.metrics import paired_interval
from selfsame.evaluation.report import Report, Row, with_span, write_report
from selfsame.mannequins.attributes import STYLES
from selfsame.mannequins.captions import caption_person
from selfsame.recipes.base import Denoiser
from selfsame.recipes.common import Options, fingerprint_of
from selfsame.recipes.instantid import Variant
from selfsame.recipes.measure.identity import Rival, painter_of
from selfsame.recipes.measure.judging import Judges, Seen, columns_of, measured_with, notes_on_weights, worst_of
from selfsame.recipes.measure.pictures import Kept
from selfsame.recipes.measure.protocols import IDENTITY, Task, asked, checked_protocol, extent, reference_photo, tasks_of
from selfsame.recipes.measure.trainings import Trainings
from selfsame.recipes.restyle import restyled
from selfsame.studio.request import Request, nearest
from selfsame.studio.studio import load

RESTYLED = "restyled base"
BARE = f"{RESTYLED} without a face"
PLAIN = "base as it ships"
READS = ("base", "instantid")


def restyling(
    out: Path, options: Options, *, style: str = "watercolour", people: int = 0, device: str = "cpu", only: Sequence[str] = (),
    on_progress: Callable[[float, str], None] = lambda share, note: None,
) -> Report:  # fmt: skip
    """Fine-tune the base so many steps, then ask both bases for the identity protocol's photos, by the same InstantID.

    Args:
        options: of the fine-tuning; `runs/ablations` gets its folder, and a run that was stopped goes on.
        people: of the protocol; 0: all.

    Raises:
        InputError: an unknown style, or photo, in which the base paints already.
        ValueError: an unknown row, or more people than the protocol has.
    """
    nearest(style, STYLES[1:], "style")
    p = checked_protocol(IDENTITY)
    worded = f"{PLAIN}, asked for {style}"
    count, names = asked(p, people, only, (PLAIN, worded, RESTYLED, BARE, "oracle"))
    photos = [t for t in tasks_of(p, count) if t.attributes["style"] == "photo"]
    painted = [replace(t, attributes=t.attributes | {"style": style}) for t in photos]  # what the restyled base makes of the same prompts
    said = [replace(t, prompt=caption_person(t.attributes, None, None)) for t in painted]
    tasks: dict[str, list[Task]] = {PLAIN: photos, worded: said, RESTYLED: painted, BARE: painted, "oracle": painted}
    trainings = Trainings("base", restyled, {RESTYLED: style}, options, READS, open_table(options.data, "train").digest, on_progress)
    module = trainings.trained(RESTYLED).module
    assert isinstance(module, Denoiser)
    studio = load(device=device)
    judges, request = Judges(studio, p, count), Request(num_steps=p["num_steps"], guidance_scale=p["guidance_scale"], solver=p["solver"])
    kept, mark = Kept(out, [p, style]), fingerprint_of([module.unet], style)
    rival = Rival(studio.instantid, Variant(), module.eval().to(studio.device).unet)
    rows, strips = [], [("reference photo", [reference_photo(p["split"], t.person, 0).image for t in photos[:8]])]
    measured: dict[str, dict[str, list[float]]] = {}
    seen: list[Seen] = []
    for name in names:

        def tick(done: int, name: str = name) -> None:
            on_progress(done / len(names) / len(photos), name)

        of_it = rival if name in (RESTYLED, BARE) else None
        images = kept.row(name, tasks[name], painter_of(studio, name, p["split"], request, tick, of_it), tick, "" if of_it is None else mark)
        results = judges.results(tasks[name], images, judges.kps(images), asked_kps=name != BARE)
        measured[name] = {key: [r[key] for r in results] for key in ("cosine", "rank1", "attributes")}
        rows.append(Row(name, columns_of(results, kept.seconds[name], p["bootstrap"], [t.person for t in photos])))
        strips.append((name, images[:8]))
        if name == RESTYLED:
            seen = [Seen.of_one(t.prompt, None if r["no_face"] else r["cosine"], image, t.person) for t, r, image in zip(painted, results, images, strict=True)]
    notes = [
        *extent(p, count, f"people x {len(photos) // count} photo-like prompts"),
        *trainings.seen,
        f"the photo-like prompts of the protocol alone; the {RESTYLED} should make them {style}, and is judged so",
    ]
    for other in (PLAIN, worded):
        for key, what in (("cosine", "judge cosine"), ("rank1", "rank-1"), ("attributes", "attributes")):
            if RESTYLED in measured and other in measured:
                difference = paired_interval(measured[RESTYLED][key], measured[other][key], [t.person for t in photos])
                notes.append(f"{what}, {RESTYLED} minus {other}: {with_span(difference, 'people')}")
    about = {**p, "style": style, **measured_with()}
    report = Report("InstantID on a restyled base", about, rows, (), [*notes, *notes_on_weights()], strips, worst_of(seen, p["split"]))
    write_report(report, out)
    return report
