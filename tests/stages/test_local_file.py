"""The user's own files stay theirs while a stage reads them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from genai_core.canonical import digest_file
from genai_core.errors import BadModel
from genai_core.tasks.task_file import TaskFileInput
from genai_stages.worker.local_file import identities, refuse_changed, take_local


@pytest.fixture
def taken(tmp_path: Path) -> tuple[Path, Path]:
    """The user's file and the stage's link to it."""
    source, dest = tmp_path / "model.data", tmp_path / "taken"
    source.write_bytes(b"weights")
    file = TaskFileInput(sha256=digest_file(source), size=7, path=str(source))
    take_local(source, file, dest)
    return source, dest


def test_take_local_gives_the_user_s_file_no_second_name(taken: tuple[Path, Path]) -> None:
    """With two, onnx.load calls the user's model a hard link attack while a build runs."""
    source, dest = taken
    assert dest.read_bytes() == b"weights"
    assert source.stat().st_nlink == 1


def _write_again(source: Path) -> None:
    source.write_bytes(b"WEIGHTS")
    os.utime(source, ns=(0, 0))  # a coarse clock may show two writes at one time


def _replace(source: Path) -> None:
    status = source.stat()
    other = source.with_name("other")
    other.write_bytes(b"WEIGHTS")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(source)


@pytest.mark.parametrize("change", [_write_again, _replace, Path.unlink])
def test_refuse_changed_names_the_file_when_it_is_not_as_it_was(
    taken: tuple[Path, Path], change: Callable[[Path], None]
) -> None:
    source, dest = taken
    before = identities([dest])
    refuse_changed(before)
    change(source)
    with pytest.raises(BadModel, match="changed while the build was running"):
        refuse_changed(before)
