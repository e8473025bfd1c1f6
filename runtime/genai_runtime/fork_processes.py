"""Processes that run what a client or a model brought: started once, asked again and again.

Each request is answered by a fork of such a process (`forks`), so that nothing of one request is
there for the next, at the cost of a fork instead of a start of Python.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

__all__ = ["ForkedProcesses"]

_KEPT = 2
"""Processes that wait for the next request."""
_CHUNK = 1 << 20
_START = """
import runpy, sys
sys.path += sys.argv[2:]
runpy.run_module(sys.argv[1], run_name="__main__")
"""


class ForkedProcesses:
    """As many as answer at the same time; some stay. Callable from any thread.

    Args:
        module: Run as a program; calls `forks.answer_all`.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []
        weakref.finalize(self, _end, self._idle)

    def ask(self, request: dict[str, Any], *, seconds: float) -> dict[str, Any] | None:
        """The child's answer; None where there is none after so many seconds.

        Args:
            request: As the module takes it.
            seconds: Of the clock.
        """
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        deadline = time.monotonic() + seconds
        if kept is not None:
            answer = _asked(kept, line, deadline)
            if answer or time.monotonic() >= deadline:
                return self._take(kept, answer)
            _end([kept])  # it ended while nobody asked
        started = _started(self._module)
        return self._take(started, _asked(started, line, deadline))

    def _take(self, process: subprocess.Popen[bytes], answer: bytes) -> dict[str, Any] | None:
        with self._lock:
            stays = bool(answer) and len(self._idle) < _KEPT
            if stays:
                self._idle.append(process)
        if not stays:
            _end([process])
        return dict(json.loads(answer)) if answer else None


def _roots(module: str) -> list[str]:
    """Folders that our packages lie in: in images PYTHONPATH has them, which -I does not read."""
    found: dict[str, None] = {}
    for name in (__name__.partition(".")[0], module.partition(".")[0]):
        spec = importlib.util.find_spec(name)
        folders = None if spec is None else spec.submodule_search_locations
        found |= {str(Path(folder).parent): None for folder in folders or ()}
    return list(found)


def _started(module: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - a module of ours
        [sys.executable, "-I", "-c", _START, module, *_roots(module)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that its fork ends with it
        env={},
        bufsize=0,
    )


def _asked(process: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes:
    """A line for a line; empty where the process ends or is not done in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with selectors.DefaultSelector() as selector:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            selector.register(process.stdout, selectors.EVENT_READ)
            left, answer = memoryview(line), bytearray()
            while True:
                ready = selector.select(deadline - time.monotonic())
                if not ready:
                    return b""
                for key, _ in ready:
                    if key.fileobj is process.stdin:
                        left = left[os.write(key.fd, left[:_CHUNK]) :]
                        if not left:
                            selector.unregister(process.stdin)
                        continue
                    piece = os.read(key.fd, _CHUNK)
                    if not piece:
                        return b""
                    answer += piece
                    if answer.endswith(b"\n"):
                        return bytes(answer)
    except BrokenPipeError:
        return b""


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait()
    processes.clear()
