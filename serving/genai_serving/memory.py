"""How much memory is left for keys and values."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_KEPT_FREE = 0.15


def cache_budget(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """Bytes: the limit of this process's memory, less what it holds, less 15 % of the limit.

    The limit is the cgroup's (a container's) or the machine's, whichever is smaller.
    """
    limit = min(_machine(proc), _group(cgroup))
    return int(limit * (1 - _KEPT_FREE)) - _held(proc)


def _machine(proc: Path) -> int:
    for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _group(cgroup: Path) -> int:
    """Of version 2, or of version 1; no limit is a very large number."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (cgroup / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() else 1 << 62
    return 1 << 62


def _held(proc: Path) -> int:
    for line in (proc / "self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
