"""The only way in which a stage starts a process.

A vendor tool is a child module (`serve` in genai_runtime.htp.child) that gets a request, a private
working folder and a time limit. What it printed stays as a log beside the task, its peak memory is
measured, and an end by a signal becomes a `ToolFailed` that names the signal.

On a full disk the vendor's libraries fail with whatever comes next, or die. So where a tool failed
and the disk has less room than it was about to fill, that is what is reported.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from genai_core.errors import NoSpace, ToolFailed
from genai_runtime.htp import child
from genai_runtime.htp.child import ChildResult

__all__ = ["ChildResult", "run"]

_LEAST_ROOM = 1 << 20
"""Bytes; logs and the smallest output."""


def run(
    module: str,
    request: Mapping[str, Any],
    *,
    scratch: Path,
    timeout: float = 3600.0,
) -> ChildResult:
    """Run a child module in a fresh folder below `scratch`, removed afterwards.

    Args:
        module: Full name of a module with a `serve` entry.
        request: JSON values; paths must be absolute. Results are written to absolute paths too.
        scratch: The task's private folder; the log stays there as `<module>.log`.
        timeout: Seconds.

    Raises:
        NoSpace: It failed, and the disk is as good as full.
        GenAIError: What the child reported, or ToolFailed when it died.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="tool-", dir=scratch)).resolve()
    log = scratch / f"{module.rpartition('.')[2]}.log"
    try:
        return child.run(module, request, folder=folder, timeout=timeout, keep_log=log)
    except ToolFailed as error:
        short = _without_room(scratch, _inputs(request))
        if short is None:
            raise
        raise NoSpace(
            f"{short / 1e6:.1f} MB are left, and the vendor's tool failed ({error.message})",
            where=str(scratch),
            remedy="free some room there, or let TMPDIR or the store lie on a larger disk",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _without_room(folder: Path, files: Iterable[Path]) -> int | None:
    """Bytes that are left, where they are fewer than a tool needs that reads some files."""
    needed = _LEAST_ROOM + sum(path.stat().st_size for path in files)
    left = shutil.disk_usage(folder).free
    return left if left < needed else None


def _inputs(value: Any) -> Iterator[Path]:
    """The files that a request names, and the data that lies beside a model."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _inputs(one)
    elif isinstance(value, list):
        for one in value:
            yield from _inputs(one)
    elif isinstance(value, str) and value.startswith("/"):
        path = Path(value)
        yield from (one for one in (path, path.with_suffix(".data")) if one.is_file())
