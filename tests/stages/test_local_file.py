"""The user's own files stay theirs while a stage reads them, and a change of them is seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from genai_core.canonical import digest_file
from genai_core.errors import BadModel
from genai_core.files import unchanged
from genai_core.tasks.task_file import TaskFileInput
from genai_stages.worker.local_file import TakenFile, refuse_changed, take_local


def take(source: Path) -> TakenFile:
    file = TaskFileInput(sha256=digest_file(source), size=7, path=str(source))
    return take_local(source, file, source.with_name("taken"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The user's file, written long ago."""
    path = tmp_path / "model.data"
    path.write_bytes(b"weights")
    return path


def test_take_local_gives_the_user_s_file_no_second_name(source: Path) -> None:
    """With two, onnx.load calls the user's model a hard link attack while a build runs."""
    take(source)
    assert source.with_name("taken").read_bytes() == b"weights"
    assert source.stat().st_nlink == 1


def _write_again(source: Path) -> None:
    source.write_bytes(b"WEIGHTS")
    os.utime(source, ns=(0, 0))  # a coarse clock may show two writes at one time


def _write_and_put_the_time_back(source: Path) -> None:
    before = source.stat()
    with source.open("r+b") as stream:
        stream.write(b"WEIGHTS")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(source: Path) -> None:
    before = source.stat()
    other = source.with_name("other")
    other.write_bytes(b"WEIGHTS")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(source)


CHANGES: list[Callable[[Path], None]] = [
    _write_again,
    _write_and_put_the_time_back,
    _replace,
    Path.unlink,
]


@pytest.mark.parametrize("change", CHANGES)
def test_refuse_changed_names_the_file_when_it_is_not_as_it_was(
    source: Path, change: Callable[[Path], None]
) -> None:
    taken = take(source)
    refuse_changed([taken])
    change(source)
    with pytest.raises(BadModel, match=r"model\.data: it changed while the build was running"):
        refuse_changed([taken])


@pytest.mark.parametrize("change", CHANGES)
def test_refuse_changed_sees_what_came_between_the_digest_and_the_task(
    source: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that were hashed are the planned ones; those that the task reads are others."""

    def then_changed(path: Path) -> str:
        found = digest_file(path)
        change(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(unchanged, "digest_file", then_changed)
        taken = take(source)
    with pytest.raises(BadModel, match="changed while the build was running"):
        refuse_changed([taken])


def test_refuse_changed_sees_a_write_within_a_tick_of_the_clock(source: Path) -> None:
    """Nothing but the bytes tells of it."""
    taken = take(source)
    assert not taken.file.settled, "it was written a moment ago"
    source.write_bytes(b"WEIGHTS")
    stamp = unchanged.Stamp.of(source)
    same_tick = unchanged.HashedFile(source, stamp, taken.file.sha256, settled=False)
    assert not same_tick.stands()


def test_refuse_changed_lets_other_rights_and_names_pass(source: Path) -> None:
    """A backup that links the file, or a chmod, changes nothing of the model."""
    taken = take(source)
    source.chmod(0o600)
    os.link(source, source.with_name("backup"))
    refuse_changed([taken])


def test_take_local_follows_a_link_once_when_it_is_pointed_elsewhere(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hub's cache does it: the name is a link, and a new version moves it."""
    other, link = source.with_name("other"), source.with_name("link")
    other.write_bytes(b"WEIGHTS")
    link.symlink_to(source)

    def then_pointed_elsewhere(path: Path) -> str:
        found = digest_file(path)
        link.unlink(missing_ok=True)
        link.symlink_to(other)
        return found

    monkeypatch.setattr(unchanged, "digest_file", then_pointed_elsewhere)
    file = TaskFileInput(sha256=digest_file(source), size=7, path=str(link))
    dest = source.with_name("taken")
    refuse_changed([take_local(link, file, dest)])
    assert dest.read_bytes() == b"weights"
