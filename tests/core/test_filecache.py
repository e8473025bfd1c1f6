"""The cache of digests: right first, fast second."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from other_processes import PROCESSES, digest_many

from genai_core.canonical import digest_bytes, digest_file
from genai_core.files import digest_cache as filecache
from genai_core.files.digest_cache import FileCache

LATER = 10 * 10**9


class Reads:
    """Counts how often a file is really read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = digest_file

        def counting(path: Path) -> str:
            self.count += 1
            return real(path)

        monkeypatch.setattr(filecache, "digest_file", counting)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache" / "digests", clock_ns=lambda: time.time_ns() + LATER)


def test_unchanged_file_is_read_once(cache: FileCache, reads: Reads, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    for _ in range(3):
        assert cache.digest(file) == digest_bytes(b"one")
    assert FileCache(cache.path).digest(file) == digest_bytes(b"one")
    assert reads.count == 1
    (tmp_path / "b").hardlink_to(file)
    assert cache.digest(tmp_path / "b") == digest_bytes(b"one")


def test_every_change_is_seen(cache: FileCache, reads: Reads, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    before = file.stat()
    cache.digest(file)
    with file.open("r+b") as stream:  # same size, same inode, and the time put back
        stream.write(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.digest(file) == digest_bytes(b"two")
    other = tmp_path / "other"
    other.write_bytes(b"six")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert cache.digest(file) == digest_bytes(b"six")
    assert reads.count == 3


def test_fresh_file_is_not_remembered(reads: Reads, tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "digests")
    file = tmp_path / "a"
    file.write_bytes(b"one")
    cache.digest(file)
    cache.digest(file)
    assert reads.count == 2, "another write within the clock's tick would not show"


def test_file_that_changes_while_read_is_not_remembered(
    cache: FileCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    real = digest_file

    def writing(path: Path) -> str:
        found = real(path)
        path.write_bytes(b"two")
        return found

    monkeypatch.setattr(filecache, "digest_file", writing)
    cache.digest(file)
    monkeypatch.setattr(filecache, "digest_file", real)
    assert cache.digest(file) == digest_bytes(b"two")


@pytest.mark.parametrize("damage", ["garbage", "folder", "none", "impossible"])
def test_broken_cache_only_costs_time(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    path: Path | None = tmp_path / "digests"
    assert path is not None
    if damage == "garbage":
        path.write_bytes(b"not a database" * 1000)
    elif damage == "folder":
        path.mkdir()
    elif damage == "none":
        path = None
    else:
        path = Path("/proc/none/digests")
    cache = FileCache(path, clock_ns=lambda: time.time_ns() + LATER)
    assert cache.digest(file) == digest_bytes(b"one")
    assert cache.digest(file) == digest_bytes(b"one")
    with pytest.raises(FileNotFoundError):
        cache.digest(tmp_path / "missing")


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"file{number}").write_bytes(b"%d" % number)
    with PROCESSES.Pool(4) as pool:
        answers = pool.starmap(digest_many, [(tmp_path, n, LATER) for n in (0, 5, 10, 20)])
    assert answers == [True] * 4
