"""`selfsame models` and `selfsame doctor`: what can be fetched under which licence, and whether this machine is ready."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from selfsame.cli.say import bar


@dataclass(frozen=True)
class Models:
    """List the models that selfsame knows, show all of one, or fetch it.

    Examples:
      selfsame models                                    all of them, with licences
      selfsame models show instantid                     its addresses, files and hashes, both licences, what it needs
      selfsame models shipped                            what this package holds: the miniature's weights, how they were made, their hashes
      selfsame models fetch antelopev2                   resumed when it breaks, checked, laid flat
      selfsame models fetch instantid --licence commercial   refused, with what to use instead
    """

    what: Positional[Literal["list", "show", "shipped", "fetch"]] = "list"
    """list, show NAME, shipped, or fetch NAME."""
    name: Positional[str] = ""
    """Which model."""
    licence: Annotated[Literal["any", "commercial"], arg(aliases=["--license"])] = "any"
    """commercial: only what may be used so."""

    def run(self) -> int:
        from selfsame.images.files import InputError
        from selfsame.weights.catalogue import CATALOGUE, model_called, must_be_commercial
        from selfsame.weights.fetch import fetch, folder_of, missing_of

        if self.what in ("list", "shipped"):
            if self.name:
                raise InputError(f"{self.what} takes no name; fetch {self.name}?")
            self._shipped() if self.what == "shipped" else self._table()
            return 0
        if not self.name:
            raise InputError(f"{self.what} which model? choose from {', '.join(CATALOGUE)}")
        model = model_called(self.name)
        if self.what == "show":
            self._show(model)
            return 0
        if self.licence == "commercial":
            must_be_commercial(model)
        if self.name != model.name:
            print(f"{self.name} is {model.name} here")
        print(f"{model.name}: {model.what}; weights: {model.weights}")
        with bar(f"fetching {model.name}", model.size_mb) as tick:
            fetch(model, lambda count, name: tick(count / 1e6, name))
        print(folder_of(model))
        for other in model.needs:
            if missing_of(CATALOGUE[other]):
                print(f"it needs {other} too: selfsame models fetch {other}")
        return 0

    def _shipped(self) -> None:
        """As Markdown, which documents and terminals both show."""
        from selfsame.weights.mannequin import manifest

        files, made = (manifest()[key] for key in ("files", "provenance"))
        print("| weights | samples | figures on held-out data | world | commit | date | sha256 |\n|---|---|---|---|---|---|---|")
        for name, about in made.items():
            figures = ", ".join(f"{k} {v:.4g}" for k, v in about["figures"].items())
            hashes = " ".join(digest[:12] for file, digest in files.items() if file.startswith(name) and file.endswith(".safetensors"))
            print(f"| {name} | {about['samples']:,} | {figures} | {about['world']} | {about['commit']} | {about['date']} | {hashes} |")

    def _show(self, model: Any) -> None:
        from selfsame.weights.fetch import folder_of, missing_of

        absent = missing_of(model)
        here = "not here" if len(absent) == sum(len(p.files) for p in model.parts) else f"{len(absent)} files missing" if absent else "here"
        print(f"{model.name}: {model.what}\nabout {model.size_mb} MB, {here}: {folder_of(model)}")
        print(f"licence of the code {model.code}; of the weights {model.weights}; commercial use: {'yes' if model.commercial else 'no'}")
        for said, value in (("instead, commercially", model.instead), ("needs", ", ".join(model.needs)), ("formerly", ", ".join(model.formerly))):
            if value:
                print(f"{said}: {value}")
        for part in model.parts:
            print("from " + ", then ".join(part.sources))
            for name in part.files:
                size = f"{part.bytes_of(name):,} bytes, " if part.bytes_of(name) else ""
                print(
                    f"  {f'{part.into}/{name}'.lstrip('/')}  {size}sha256 {part.sha256.get(name, 'unverified: what comes first is trusted and its hash kept')}"
                )

    def _table(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from selfsame.weights.catalogue import CATALOGUE
        from selfsame.weights.fetch import missing_of

        table = Table("name", "what", "MB", "weights' licence", "commercial", "hash known", "here", box=None, pad_edge=False)
        for model in CATALOGUE.values():
            if self.licence == "commercial" and not model.commercial:
                continue
            here = "no" if missing_of(model) else "yes"
            table.add_row(
                model.name, model.what, str(model.size_mb), model.weights, "yes" if model.commercial else "no", "yes" if model.is_verified else "no", here
            )
        Console().print(table)
        left_out = [model for model in CATALOGUE.values() if self.licence == "commercial" and not model.commercial]
        for model in left_out:
            print(f"left out: {model.name}, {model.weights}{f'; instead: {model.instead}' if model.instead else ''}")


@dataclass(frozen=True)
class Doctor:
    """Check Python, torch, devices, memory, precision, weights and licences, and say what to do.

    Example: selfsame doctor
    """

    def run(self) -> int:
        from selfsame.studio.health import checks

        worst = 0
        for check in checks():
            print(f"{'ok  ' if check.ok else 'FIX '} {check.what}: {check.found}")
            if not check.ok:
                print(f"     -> {check.remedy}")
                worst = 1
        return worst
