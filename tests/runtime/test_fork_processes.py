"""Processes that run what others brought: found wherever the packages lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from genai_runtime.fork_processes import ForkedProcesses

CHILD = """
import os
from genai_runtime import forks

def answer(request):
    if request.get("die"):
        os.kill(os.getpid(), request["die"])
    if request.get("fail"):
        raise ValueError
    return {"twice": 2 * request["number"], "environment": dict(os.environ)}

raise SystemExit(forks.answer_all(answer, no_memory={"wrong": "failed"}))
"""


def test_ask_finds_a_module_that_only_this_process_has_on_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an image, whose packages are found by PYTHONPATH."""
    (tmp_path / "packaged").mkdir()
    (tmp_path / "packaged" / "__init__.py").write_text("")
    (tmp_path / "packaged" / "child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SECRET", "x")
    processes = ForkedProcesses("packaged.child")
    told = processes.ask({"number": 4, "seconds": 5}, seconds=60)
    assert told is not None
    assert told["twice"] == 8
    assert "SECRET" not in told["environment"]
    assert processes.ask({"die": 9, "seconds": 5}, seconds=60) == {"ended": 9}
    assert processes.ask({"fail": 1, "seconds": 5}, seconds=60) == {"wrong": "failed"}
    again = processes.ask({"number": 5, "seconds": 5}, seconds=60)
    assert again is not None
    assert again["twice"] == 10
