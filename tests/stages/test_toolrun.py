"""A tool that fails on a full disk is told from one that fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from genai_core.errors import NoSpace, ToolFailed
from genai_stages.backends.htp import toolrun

CHILD = "genai_runtime.htp.metadata_of_nothing"
"""No such module: a process that ends with exit code 1."""

MODEL_BYTES = 3_000_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "part.onnx"
    path.write_bytes(b"graph")
    path.with_suffix(".data").write_bytes(b"\0" * MODEL_BYTES)
    return path


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets a disk have some bytes left."""

    def set_left(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    return set_left


@pytest.mark.parametrize("free", [0, MODEL_BYTES])
def test_too_little_room_is_the_reason(
    model: Path, tmp_path: Path, left: Callable[[int], None], free: int
) -> None:
    left(free)
    request = {"graphs": [{"model": str(model)}], "out": str(tmp_path / "none")}
    with pytest.raises(NoSpace, match=r"MB are left, .*exit code 1") as caught:
        toolrun.run(CHILD, request, scratch=tmp_path / "scratch")
    assert caught.value.exit_code == 2
    assert caught.value.where == str(tmp_path / "scratch")


def test_with_room_the_tool_is_to_blame(
    model: Path, tmp_path: Path, left: Callable[[int], None]
) -> None:
    left(MODEL_BYTES + (2 << 20))
    with pytest.raises(ToolFailed, match="exit code 1") as caught:
        toolrun.run(CHILD, {"model": str(model)}, scratch=tmp_path / "scratch")
    assert not isinstance(caught.value, NoSpace)
    assert not list((tmp_path / "scratch").glob("tool-*"))
