"""Locks and scratch of engines that end, and of engines that are killed."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from genai_cli.engine import work_folders
from genai_cli.engine.work_folders import KeyLock, WorkFolder
from genai_core.errors import GenAIError
from genai_core.names import Key
from genai_core.store.directory.directory_store import DirectoryStore

KEY = Key("ab" * 32)


def test_lock_is_one_owner_s(tmp_path: Path) -> None:
    first, second = KeyLock(tmp_path, KEY), KeyLock(tmp_path, KEY)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from genai_cli.engine.work_folders import KeyLock
lock = KeyLock(Path({str(tmp_path)!r}), {KEY!r})
assert lock.acquire()
print("held", flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    try:
        assert owner.stdout.readline() == b"held\n"
        assert not KeyLock(tmp_path, KEY).acquire()
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    lock = KeyLock(tmp_path, KEY)
    assert lock.acquire()
    lock.release()


def test_scratch_of_a_killed_engine_is_cleared_and_a_running_one_s_is_not(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    running = WorkFolder(store)
    dead = tmp_path / "tmp" / "engine-dead"
    dead.mkdir()
    (dead / "owner.lock").touch()
    (dead / "half-written").write_text("x")
    other = WorkFolder(store)
    assert not dead.exists()
    assert running.path.is_dir()
    running.close()
    other.close()
    assert not running.path.exists()
    assert not list((tmp_path / "tmp").glob("engine-*"))


def test_an_engine_that_starts_is_not_taken_for_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one starts between the two steps: the folder is there, its lock not taken yet."""
    real, others = fcntl.flock, [1]

    def flock(stream: BinaryIO, how: int) -> None:
        if others:
            others.pop()
            work_folders.remove_leftovers(tmp_path / "tmp")
        real(stream, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    work = WorkFolder(DirectoryStore(tmp_path))
    assert not others
    assert (work.path / "owner.lock").is_file()
    work.close()


def test_log_of_a_failed_task_outlives_the_scratch(tmp_path: Path) -> None:
    work = WorkFolder(DirectoryStore(tmp_path))
    log = work.path / "task.log"
    log.write_text("why")
    kept = work.keep_log(log, "convert_abc")
    work.close()
    assert kept is not None
    assert kept.read_text() == "why"
    assert kept.is_relative_to(tmp_path / "logs")


def test_empty_log_is_not_kept(tmp_path: Path) -> None:
    work = WorkFolder(DirectoryStore(tmp_path))
    (work.path / "task.log").touch()
    assert work.keep_log(work.path / "task.log", "x") is None
    work.close()


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "tmp").write_text("a file")
    with pytest.raises(GenAIError) as raised:
        WorkFolder(DirectoryStore(tmp_path))
    assert str(tmp_path) in str(raised.value)
