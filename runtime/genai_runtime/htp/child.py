"""Run one function in a fresh process and survive its death.

The vendor's libraries answer a wrong model with a segmentation fault, write to standard output,
leave scratch files in the working folder, and number tensors across a whole process, so that the
second binary of a process has other bytes than the first. Hence: a new interpreter for each call,
a private working folder, a time limit, a request and a reply as JSON files.

A child module calls `serve(handler)` under `if __name__ == "__main__"`; the parent calls `run`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from genai_core.errors import GenAIError, ToolFailed, from_dict
from genai_core.memory import peak_resident_bytes

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NOISE = re.compile(r"LIBNATIVE|HTP power config id|GraphHtpSettings option|\[W:onnxruntime|^\^+$")
"""Lines that the libraries print on every run, good or bad."""

REQUEST, REPLY, LOG = "request.json", "reply.json", "child.log"


@dataclass(frozen=True)
class ChildResult:
    """What a child gave back.

    Attributes:
        reply: The handler's return value.
        seconds: Wall-clock time.
        peak_memory_bytes: Largest resident size of the child.
        log: What it and its libraries wrote to standard output and error.
    """

    reply: dict[str, Any]
    seconds: float
    peak_memory_bytes: int
    log: str


def run(
    module: str,
    request: Mapping[str, Any],
    *,
    folder: Path | None = None,
    timeout: float = 3600.0,
    keep_log: Path | None = None,
) -> ChildResult:
    """Run `python -P -m module` on a request.

    Args:
        module: A module that calls `serve`.
        request: JSON values; paths in it must be absolute.
        folder: Private working folder, emptied of nothing; None = a temporary one.
        timeout: Seconds after which the child and its children are killed.
        keep_log: Where its output is copied to, also when it fails.

    Raises:
        GenAIError: The one that the handler raised.
        ToolFailed: It was ended by a signal, ran out of time, or failed otherwise.
    """
    with _working_folder(folder) as cwd:
        (cwd / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        (cwd / REPLY).unlink(missing_ok=True)
        started = time.monotonic()
        with (cwd / LOG).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", module],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status, peak = _wait(process, timeout)
        text = (cwd / LOG).read_text(encoding="utf-8", errors="replace")
        if keep_log is not None:
            keep_log.write_text(text, encoding="utf-8")
        seconds = time.monotonic() - started
        if (cwd / REPLY).is_file() and status == 0:
            reply = json.loads((cwd / REPLY).read_text(encoding="utf-8"))
            if "error" in reply:
                raise from_dict(reply["error"])
            return ChildResult(reply["result"], seconds, reply.get("peak") or peak, text)
    raise ToolFailed(
        f"{describe_exit(status, timeout)}{last_words(text)}",
        where=module,
        remedy="see the task's log",
    )


def describe_exit(status: int | None, timeout: float) -> str:
    """How a child ended: None = killed after the time limit, negative = by a signal."""
    if status is None:
        return f"the child process was killed after {timeout:g} s"
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"the child process was ended by {signal.Signals(-status).name}"
        return f"the child process was ended by signal {-status}"
    return f"the child process ended with exit code {status}"


def last_words(log: str, lines: int = 3) -> str:
    """The end of a log, for a message; empty if there is none."""
    cleaned = [_COLOUR.sub("", line).strip() for line in log.splitlines()]
    kept = [line for line in cleaned if line and not _NOISE.search(line)]
    return f"; last output: {' | '.join(kept[-lines:])[-800:]}" if kept else ""


def serve(handler: Callable[[dict[str, Any]], Mapping[str, Any]]) -> NoReturn:
    """The child's side: read the request, call `handler`, write the reply, leave.

    Leaves without running destructors: the libraries' own are where some of them crash.
    """
    reply: dict[str, Any]
    request = json.loads(Path(REQUEST).read_text(encoding="utf-8"))
    try:
        reply = {"result": handler(request)}
    except GenAIError as error:
        reply = {"error": error.as_dict()}
    reply["peak"] = peak_resident_bytes()
    part = Path(REPLY + ".part")
    part.write_text(json.dumps(reply), encoding="utf-8")
    part.rename(REPLY)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextlib.contextmanager
def _working_folder(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="genai-child-") as name:
            yield Path(name)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _wait(process: subprocess.Popen[bytes], timeout: float) -> tuple[int | None, int]:
    """Exit status (None = out of time) and peak resident bytes."""
    deadline, pause = time.monotonic() + timeout, 0.002
    killed = False
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, 0 if killed else os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return (None if killed else process.returncode), usage.ru_maxrss * 1024
            if time.monotonic() > deadline:
                killed = True
                os.killpg(process.pid, signal.SIGKILL)
                continue
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
    except BaseException:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise
