"""How much memory is left for keys and values."""

from __future__ import annotations

from pathlib import Path

from genai_core.errors import BadInput
from genai_runtime.executor.executor import Executor
from genai_runtime.speculation.control import Speculation
from genai_serving.scheduler import mebibytes
from genai_serving.start.options import Options

__all__ = ["cache_budget", "kept_bytes", "sequences_budget", "whole_bytes"]

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_KEPT_FREE = 0.15


def cache_budget(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """Bytes: the limit of this process's memory, less what it holds, less 15 % of the limit.

    The limit is the cgroup's (a container's) or the machine's, whichever is smaller.
    """
    limit = min(_machine(proc), _group(cgroup))
    return int(limit * (1 - _KEPT_FREE)) - _held(proc)


def kept_bytes(options: Options, cache_bytes: int) -> int:
    """Bytes in which beginnings of prompts are kept."""
    return cache_bytes if options.prefix_mib is None else min(options.prefix_mib << 20, cache_bytes)


def whole_bytes(executor: Executor, speculation: Speculation | None) -> int:
    """Bytes of one sequence of the whole context, with what guesses take beside it."""
    whole = executor.cache_bytes(executor.context_length)
    if speculation is not None:
        whole += speculation.cache_bytes(executor.context_length)
    return whole


def sequences_budget(
    options: Options, executor: Executor, speculation: Speculation | None, later: int
) -> int:
    """Bytes of keys and values.

    Args:
        options: Of the server.
        executor: Its own.
        speculation: As well.
        later: Bytes that adapters may come to take.

    Raises:
        BadInput: They do not hold one sequence of the whole context.
    """
    whole = whole_bytes(executor, speculation)
    if options.cache_mib is None:
        budget = min(cache_budget() - later, options.sequences * whole)
        source = "what this machine's memory leaves, less 15 %"
        if later:
            source += f" and {mebibytes(later)} MiB for adapters that may come"
    else:
        budget, source = options.cache_mib << 20, "as asked for"
    if budget < whole:
        raise BadInput(
            f"one sequence of {executor.context_length} tokens takes {mebibytes(whole)} MiB of "
            f"keys and values, the cache has {mebibytes(max(budget, 0))} MiB ({source})",
            where="cache",
            remedy="give it more, or serve a shorter context length",
        )
    return budget


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
