"""The server knows runtime and core, and no other room knows the server."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"genai_stages", "genai_planner", "genai_operator", "genai_cli", "boto3", "kubernetes"}
OTHERS = ("core", "planner", "runtime", "stages", "operator", "cli")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_serving_imports_nothing_beside_runtime_and_core() -> None:
    for path in (ROOT / "serving").rglob("*.py"):
        names = imported(path)
        assert not {name.split(".")[0] for name in names} & FORBIDDEN, path
        assert not any(name.startswith("genai_core.store") for name in names), path


def test_no_other_room_imports_serving() -> None:
    for room in OTHERS:
        for path in (ROOT / room).rglob("*.py"):
            assert "genai_serving" not in {n.split(".")[0] for n in imported(path)}, path
