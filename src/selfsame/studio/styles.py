"""Style sheets: prompts that wrap a prompt, by name, in the table that A1111 writes or the JSON that other tools share."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

from selfsame.images.files import InputError

PLACE = "{prompt}"
SOMEBODY = "a person"  # what is painted when the prompt says nothing


@dataclass(frozen=True)
class Style:
    """A template for the prompt and what is added to the negative one."""

    prompt: str
    negative_prompt: str = ""

    def applied(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        """Prompt and negative prompt in this style; a template without a place for the prompt is put behind it."""
        said = prompt or SOMEBODY
        whole = self.prompt.replace(PLACE, said) if PLACE in self.prompt else f"{said}, {self.prompt}" if self.prompt else said
        return whole, ", ".join(part for part in (self.negative_prompt, negative_prompt) if part)


def read_styles(path: Path) -> dict[str, Style]:
    """A sheet of styles: CSV with the columns name, prompt, negative_prompt, or JSON, a list of such objects.

    Raises:
        InputError: no such file, no such table, or a style without a name; the message names the line or entry.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a style sheet, CSV or JSON with name, prompt and negative_prompt")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if "\ufffd" in text:
        raise InputError(f"{path}: holds bytes that are not UTF-8; save the sheet as UTF-8 (Excel: CSV UTF-8)")
    try:
        entries = json.loads(text) if path.suffix.lower() == ".json" else list(csv.DictReader(io.StringIO(text)))
    except (json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as {path.suffix.lstrip('.') or 'CSV'} ({error})") from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: holds no styles; give a list of entries with name, prompt and negative_prompt")
    if isinstance(entries[0], dict) and "name" not in entries[0]:
        raise InputError(f"{path}: has the columns {', '.join(map(str, entries[0]))}; give name, prompt and negative_prompt, with commas between")
    styles: dict[str, Style] = {}
    for number, entry in enumerate(entries, 1):
        values = {k: entry.get(k) or "" for k in ("name", "prompt", "negative_prompt")} if isinstance(entry, dict) else {}
        if values and not any(values.values()):
            continue  # an empty line between two
        if not values.get("name") or not all(isinstance(v, str) for v in values.values()):
            raise InputError(f"{path}: entry {number} has no name, or something else than text; give name, prompt and negative_prompt")
        if values["name"] in styles:
            raise InputError(f"{path}: entry {number} has the name {values['name']!r}, which an entry before it has; give it another")
        styles[values["name"]] = Style(values["prompt"], values["negative_prompt"])
    if not styles:
        raise InputError(f"{path}: holds no styles; give a list of entries with name, prompt and negative_prompt")
    return styles
