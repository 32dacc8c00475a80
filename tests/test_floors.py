"""Rooms import lower floors only; the three methods do not know each other (design.md, part 2)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "selfsame"
FLOORS = (
    ("values", "diffusion", "images", "mannequins"),
    ("adapters", "weights"),
    ("models", "perception"),
    ("methods",),
    ("data", "training", "evaluation"),
    ("studio", "recipes"),
    ("cli", "ui", "server"),
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
# Neighbours that may be used: recipes measure through the studio that users use.
ALLOWED = {("recipes", "studio")}


def imports(path: Path) -> set[tuple[str, ...]]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
        found |= {tuple(n.split(".")) for n in names}
    return found


FILES = sorted(p for p in SRC.rglob("*.py") if len(p.relative_to(SRC).parts) > 1)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_down(path: Path):
    parts = path.relative_to(SRC).parts
    room = parts[0]
    for name in imports(path):
        if name[0] != "selfsame" or len(name) < 2 or name[1] not in FLOOR or name[1] == room:
            if name[:2] == ("selfsame", "methods") and room == "methods" and len(name) > 2 and len(parts) > 2:
                assert name[2] == parts[1], f"{path} imports another method"
            continue
        ok = FLOOR[name[1]] < FLOOR[room] or (room, name[1]) in ALLOWED
        assert ok, f"{path.relative_to(SRC)} (floor {FLOOR[room]}) imports {'.'.join(name)} (floor {FLOOR[name[1]]})"


def test_every_room_has_a_floor():
    rooms = {p.name for p in SRC.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms <= set(FLOOR)


def test_importing_the_package_and_the_command_line_stays_cheap():
    code = "import sys, selfsame, selfsame.cli.main; print([m for m in ('torch', 'diffusers', 'transformers', 'cv2', 'matplotlib') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
