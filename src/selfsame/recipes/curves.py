"""A training log as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

from selfsame.images.files import written_whole


def draw_curve(log: Path, out: Path, title: str) -> Path:
    """The loss and every other logged number over samples seen, one panel each, as PNG."""
    from matplotlib.figure import Figure

    with open(log, newline="") as f:
        rows = list(csv.DictReader(f))
    names = [k for k in (rows[0] if rows else {}) if k not in ("step", "samples", "lr")]
    columns = min(3, max(1, len(names)))
    lines = -(-max(1, len(names)) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
    for i, name in enumerate(names):
        panel = figure.add_subplot(lines, columns, i + 1)
        points = [(int(r["samples"]), float(r[name])) for r in rows if r[name]]
        panel.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 40 else "")
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    figure.suptitle(f"{title}: over training samples seen", fontsize=10)
    with written_whole(out) as partial:
        figure.savefig(partial, dpi=110, format="png")
    return out
