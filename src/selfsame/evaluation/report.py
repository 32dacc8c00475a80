"""A measurement as JSON, a terminal table and one self-contained HTML page with the pictures."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfsame.images.files import written_whole

WORST = 24  # cases that a page shows
SHOWN = 384  # pixels of a picture's longer side in it


@dataclass(frozen=True)
class Row:
    """One line of the table: its name and columns in order."""

    name: str
    columns: dict[str, float | str]


@dataclass(frozen=True)
class Case:
    """Pictures that belong together, and what is to be said of them."""

    said: str
    pictures: Sequence[np.ndarray] = field(repr=False)


@dataclass(frozen=True)
class Report:
    """Everything that was measured and under what protocol."""

    title: str
    protocol: Mapping[str, Any]
    rows: Sequence[Row]
    by_style: Sequence[Row] = ()
    notes: Sequence[str] = ()
    pictures: Sequence[tuple[str, Sequence[np.ndarray]]] = field(default=(), repr=False)
    cases: Sequence[Case] = field(default=(), repr=False)  # worst first

    def __str__(self) -> str:
        return f"{self.title}\n\n{text_table(self.rows)}\n\n{text_table(self.by_style)}\n" + "\n".join(self.notes)


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else ("-" if np.isnan(value) else f"{value:.3f}")


def span(low: float, high: float) -> str:
    """An interval in a cell; - where there is none."""
    return "-" if np.isnan(low) else f"{low:.3f}..{high:.3f}"


def with_span(measured: tuple[float, float, float], over: str = "") -> str:
    """A ratio and its interval in a note; with what it is `over`, a difference and its paired interval."""
    value, low, high = measured
    sign, among = ("+", f", paired over {over}") if over else ("", "")
    return f"{value:{sign}.3f} ({'no interval' if np.isnan(low) else f'{low:{sign}.3f} to {high:{sign}.3f}{among}'})"


def _plain(value: Any) -> Any:
    """As strict JSON takes it: NaN is null."""
    if isinstance(value, float) and np.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def strict_json(value: Any) -> str:
    """JSON that every parser reads."""
    return json.dumps(_plain(value), indent=1, allow_nan=False)


def text_table(rows: Sequence[Row]) -> str:
    """Aligned columns."""
    if not rows:
        return ""
    heads = ["", *dict.fromkeys(k for r in rows for k in r.columns)]
    lines = [heads] + [[r.name, *(_cell(r.columns.get(h, float("nan"))) for h in heads[1:])] for r in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))) for line in lines)


def _html_table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    heads = list(dict.fromkeys(k for r in rows for k in r.columns))
    top = "".join(f"<th>{html.escape(h)}</th>" for h in ["", *heads])
    body = "".join(
        f"<tr><th>{html.escape(r.name)}</th>" + "".join(f"<td>{html.escape(_cell(r.columns.get(h, float('nan'))))}</td>" for h in heads) + "</tr>" for r in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _img(pixels: np.ndarray) -> str:
    stream, image = io.BytesIO(), Image.fromarray(pixels)
    image.thumbnail((SHOWN, SHOWN))
    image.save(stream, format="PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write report.json and report.html atomically; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "title": report.title,
        "protocol": dict(report.protocol),
        "rows": [asdict(r) for r in report.rows],
        "by_style": [asdict(r) for r in report.by_style],
        "notes": list(report.notes),
    }
    strips = "".join(f"<figure><figcaption>{html.escape(name)}</figcaption>{''.join(map(_img, images))}</figure>" for name, images in report.pictures)
    cards = "".join(f"<figure class=case>{''.join(map(_img, c.pictures))}<figcaption>{html.escape(c.said)}</figcaption></figure>" for c in report.cases)
    worst = f"<h2>Worst cases first</h2><div class=cases>{cards}</div>" if cards else ""
    page = (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(report.title)}</title><style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;"
        "max-width:1100px}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}"
        ".cases{display:flex;flex-wrap:wrap;gap:1rem}.case{max-width:264px}.case figcaption{font-size:13px;color:#444}"
        "th:first-child{text-align:left}figure{margin:.6rem 0}img{width:128px;image-rendering:auto}pre{background:#f5f5f5;padding:1rem;overflow:auto}</style>"
        f"<h1>{html.escape(report.title)}</h1>{_html_table(report.rows)}{f'<h2>By style</h2>{_html_table(report.by_style)}' if report.by_style else ''}"
        f"<ul>{''.join(f'<li>{html.escape(n)}</li>' for n in report.notes)}</ul>{worst}{f'<h2>Pictures</h2>{strips}' if strips else ''}"
        f"<h2>Protocol</h2><pre>{html.escape(strict_json(report.protocol))}</pre>"
    )
    paths = folder / "report.json", folder / "report.html"
    for path, text in zip(paths, (strict_json(content), page), strict=True):
        with written_whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return paths
