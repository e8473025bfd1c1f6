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

__all__ = ["available_bytes", "cpu_count", "used_bytes"]

_KIB = 1024
_UNLIMITED = 1 << 62
_CGROUPS = Path("/sys/fs/cgroup")


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


def used_bytes(pids: Iterable[int], proc: Path = Path("/proc")) -> int:
    """Memory of some processes and all their descendants."""
    children = _children(proc)
    waiting, seen = list(pids), set()
    total = 0
    while waiting:
        pid = waiting.pop()
        if pid in seen:
            continue
        seen.add(pid)
        waiting += children.get(pid, ())
        total += _proportional(proc / str(pid))
    return total


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


def _children(proc: Path) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    with suppress(OSError):
        for entry in os.scandir(proc):
            if not entry.name.isdigit():
                continue
            with suppress(OSError, IndexError, ValueError):
                stat = Path(entry.path, "stat").read_text(encoding="ascii", errors="replace")
                parent = int(stat.rpartition(")")[2].split()[1])
                found.setdefault(parent, []).append(int(entry.name))
    return found


def _proportional(process: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (process / "smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * _KIB
    with suppress(OSError, ValueError, IndexError):
        pages = int((process / "statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGESIZE")
    return 0
