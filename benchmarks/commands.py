"""Runs a command and says what it took.

Wall time says what a user waits and depends on what else the machine does; CPU time hardly does.
Memory is the largest resident set of any single process of the command's tree, the figure that
`/usr/bin/time` prints: pages of mapped files count. A process starts with the size of the one that
started it, so a launcher of a few megabytes does it instead of the benchmark.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_LAUNCHER = """
import os, sys, time
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
began = time.perf_counter()
pid = os.fork()
if pid == 0:
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    finally:
        os._exit(127)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - began
code = os.waitstatus_to_exitcode(status)
print([code, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss])
"""


@dataclass(frozen=True)
class Cost:
    """What one run of a command took.

    Attributes:
        seconds: Wall time of the whole process.
        cpu_seconds: User and system time of it and of its descendants.
        peak_bytes: Largest resident set of one process among them.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(
    command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str] | None = None
) -> Cost:
    """Run a command to its end; its output goes to a file.

    Args:
        command: Program and arguments.
        log: Gets standard output and standard error.
        environment: Variables on top of this process's own.

    Raises:
        RuntimeError: It failed; the message has the last lines of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(log)]
    found = subprocess.run(
        [*launcher, *map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **(environment or {})},
    )
    status, seconds, cpu, peak = json.loads(found.stdout)
    if status:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{command[0]} ended with {status}:\n{last}")
    return Cost(seconds, cpu, peak * 1024)


def middle(costs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(
        median(cost.seconds for cost in costs),
        median(cost.cpu_seconds for cost in costs),
        int(median(cost.peak_bytes for cost in costs)),
    )


def machine_text() -> str:
    """Cores and load, which every table states."""
    loads = " ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"{os.cpu_count()} cores, load average {loads}"
