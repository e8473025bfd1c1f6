"""Memory and cores as the kernel and control groups state them."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genai_cli.engine.memory import available_bytes, cpu_count, usage

GIB = 1 << 30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    (folder / "self" / "cgroup").write_text("0::/pod/box\n")
    return folder


def group(root: Path, name: str, **files: object) -> None:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file.replace("_", ".", 1)).write_text(str(text))


def test_what_the_kernel_says_counts_without_a_limit(proc: Path, tmp_path: Path) -> None:
    group(tmp_path / "cg", "pod/box", memory_max="max", memory_current=GIB)
    assert available_bytes(proc, tmp_path / "cg") == 8 * GIB


def test_own_group_counts_where_it_leaves_less(proc: Path, tmp_path: Path) -> None:
    group(tmp_path / "cg", "pod/box", memory_max=3 * GIB, memory_current=2 * GIB)
    assert available_bytes(proc, tmp_path / "cg") == GIB


def test_group_around_counts_too_and_cache_is_left(proc: Path, tmp_path: Path) -> None:
    group(tmp_path / "cg", "pod/box", memory_max="max", memory_current=GIB)
    stat = f"anon 5\ninactive_file {GIB}\n"
    group(tmp_path / "cg", "pod", memory_max=4 * GIB, memory_current=3 * GIB, memory_stat=stat)
    assert available_bytes(proc, tmp_path / "cg") == 2 * GIB


def test_old_groups_are_read(proc: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cg" / "memory"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(2 * GIB))
    (folder / "memory.usage_in_bytes").write_text(str(GIB))
    assert available_bytes(proc, tmp_path / "cg") == GIB


def test_nothing_is_limited_where_nothing_is_known(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) > 1 << 50


def test_quota_limits_cores(proc: Path, tmp_path: Path) -> None:
    group(tmp_path / "cg", "pod", cpu_max="100000 100000")
    assert cpu_count(proc, tmp_path / "cg") == 1
    group(tmp_path / "cg", "pod", cpu_max="max 100000")
    assert cpu_count(proc, tmp_path / "cg") == len(os.sched_getaffinity(0))


def test_usage_is_about_what_this_process_holds() -> None:
    before = usage([os.getpid()])
    block = bytearray(200_000_000)
    block[::4096] = b"1" * len(block[::4096])
    after = usage([os.getpid()])
    assert 180_000_000 < after.resident - before.resident < 260_000_000
    assert 180_000_000 < after.private - before.private < 260_000_000


def test_pages_of_mapped_files_are_resident_but_not_private(tmp_path: Path) -> None:
    path = tmp_path / "weights.data"
    path.write_bytes(b"1" * 100_000_000)
    before = usage([os.getpid()])
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        sum(mapped[::4096])
        after = usage([os.getpid()])
        mapped.close()
    assert after.resident - before.resident > 80_000_000
    assert after.private - before.private < 20_000_000


def test_processes_that_are_gone_use_nothing() -> None:
    assert usage([]) == usage([1 << 30]) == (0, 0)


def test_children_count_with_their_parent() -> None:
    program = "x = bytearray(150_000_000); x[::4096] = b'1' * len(x[::4096]); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as child:
        deadline = time.monotonic() + 30
        while usage([child.pid]).resident < 150_000_000 and time.monotonic() < deadline:
            time.sleep(0.05)
        alone = usage([os.getpid()]).resident - usage([child.pid]).resident
        assert usage([child.pid]).resident >= 150_000_000
        assert alone > 0, "the parent's own memory counts as well"
        assert usage([os.getpid()]).resident > usage([child.pid]).resident
        child.communicate()
