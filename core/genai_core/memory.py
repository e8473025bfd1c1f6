"""The largest resident size of this process."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_KIB = 1024


def peak_resident_bytes() -> int:
    """Largest resident size of this process so far, in bytes.

    Linux keeps it as `VmHWM` of proc_pid_status(5). `ru_maxrss` of getrusage(2) is only the
    fallback: there it outlives an exec, so that the child of a large process begins with its
    parent's peak.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * _KIB
    unit = 1 if sys.platform == "darwin" else _KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
