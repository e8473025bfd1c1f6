"""Time is given in the operator: its one module of clocks reads them, and nobody else does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "operator/genai_operator"
CLOCKS = {"now", "utcnow", "today", "sleep", "monotonic", "time", "thread_time", "perf_counter"}
OWNERS = {"datetime", "date", "time", "asyncio"}
MODULES = sorted(path for path in ROOM.rglob("*.py") if path.name != "timing.py")


def clocks(text: str) -> list[str]:
    """Clocks and waits that a module reads by itself."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in OWNERS and node.attr in CLOCKS:
                found.append(f"line {node.lineno}: {node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found.append(f"line {node.lineno}: from time import")
    return found


def test_operator_takes_time_from_timing_alone() -> None:
    found = {str(path.relative_to(ROOM)): clocks(path.read_text("utf-8")) for path in MODULES}
    assert len(found) > 80
    assert {path: lines for path, lines in found.items() if lines} == {}, "take a `Timing`"


@pytest.mark.parametrize(
    "text", ["time.monotonic()", "datetime.now(UTC)", "asyncio.sleep(1)", "from time import time"]
)
def test_clocks_finds_a_clock(text: str) -> None:
    assert clocks(text)
