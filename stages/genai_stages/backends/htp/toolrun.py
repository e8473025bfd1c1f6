"""The only way in which a stage starts a process.

A vendor tool is a child module (`serve` in genai_runtime.htp.child) that gets a request, a private
working folder and a time limit. What it printed stays as a log beside the task, its peak memory is
measured, and an end by a signal becomes a `ToolFailed` that names the signal.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genai_runtime.htp import child
from genai_runtime.htp.child import ChildResult

__all__ = ["ChildResult", "run"]


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
        GenAIError: What the child reported, or ToolFailed when it died.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="tool-", dir=scratch)).resolve()
    log = scratch / f"{module.rpartition('.')[2]}.log"
    try:
        return child.run(module, request, folder=folder, timeout=timeout, keep_log=log)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
