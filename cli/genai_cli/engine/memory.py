"""How much memory there is for tasks, and how much they use.

Available is what the kernel says it can give without swapping, or what the process's own control
group leaves, whichever is less: inside a container the machine's memory means nothing. Used is the
proportional set size, so that pages shared between forks are counted once. Where the system shows
neither (no /proc), nothing is limited and nothing is measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

__all__ = ["Usage", "available_bytes", "cpu_count", "usage"]

_KIB = 1024
_UNLIMITED = 1 << 62
_CGROUPS = Path("/sys/fs/cgroup")


class Usage(NamedTuple):
    """Memory of processes, in bytes.

    Attributes:
        resident: All of it, shared pages in proportion.
        private: Without pages of mapped files, which the kernel counts as available anyway.
    """

    resident: int
    private: int


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """Bytes that further processes can use now."""
    found = [_meminfo(proc / "meminfo"), *_cgroup_rooms(proc, cgroups)]
    return max(0, min(found))


def cpu_count(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """Cores that this process may keep busy: its affinity, and its control group's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    for folder in _cgroup_folders(proc, cgroups):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def usage(pids: Iterable[int], proc: Path = Path("/proc")) -> Usage:
    """Memory of some processes and all their descendants."""
    waiting, seen = list(pids), set()
    resident = private = 0
    while waiting:
        pid = waiting.pop()
        if pid in seen:
            continue
        seen.add(pid)
        waiting += _children(proc / str(pid))
        one = _usage_of(proc / str(pid))
        resident += one.resident
        private += one.private
    return Usage(resident, private)


def _meminfo(path: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * _KIB
    return _UNLIMITED


def _cgroup_folders(proc: Path, cgroups: Path) -> Iterator[Path]:
    """This process's control group and those around it (version 2)."""
    with suppress(OSError):
        for line in (proc / "self/cgroup").read_text(encoding="ascii").splitlines():
            number, _, name = line.split(":", 2)
            if number == "0":
                path = PurePosixPath(name)
                for part in (path, *path.parents):
                    yield cgroups / str(part).lstrip("/")


def _cgroup_rooms(proc: Path, cgroups: Path) -> Iterator[int]:
    """Bytes left in each control group; cache that the kernel drops at once counts as left."""
    for folder in _cgroup_folders(proc, cgroups):
        with suppress(OSError, ValueError):
            most = int((folder / "memory.max").read_text(encoding="ascii"))
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            yield most - used + _statistic(folder / "memory.stat", "inactive_file")
    old = cgroups / "memory"
    with suppress(OSError, ValueError):
        most = int((old / "memory.limit_in_bytes").read_text(encoding="ascii"))
        used = int((old / "memory.usage_in_bytes").read_text(encoding="ascii"))
        yield most - used + _statistic(old / "memory.stat", "total_inactive_file")


def _statistic(path: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def _children(process: Path) -> list[int]:
    """Children, where the kernel lists them; looking through all processes would cost too much."""
    found: list[int] = []
    with suppress(OSError, ValueError):
        for thread in (process / "task").iterdir():
            found += map(int, (thread / "children").read_text(encoding="ascii").split())
    return found


def _usage_of(process: Path) -> Usage:
    with suppress(OSError, ValueError, IndexError):
        found = {"Pss": 0, "Pss_Anon": 0}
        for line in (process / "smaps_rollup").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) * _KIB
        return Usage(found["Pss"], found["Pss_Anon"])
    with suppress(OSError, ValueError, IndexError):
        resident, shared = (process / "statm").read_text(encoding="ascii").split()[1:3]
        size = os.sysconf("SC_PAGESIZE")
        return Usage(int(resident) * size, (int(resident) - int(shared)) * size)
    return Usage(0, 0)
