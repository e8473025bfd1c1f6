"""The fork server: runs each task in a fork of a process that has imported the graph libraries.

    stdin   {"id": 7, "task": FILE, "result": FILE, "store": ADDRESS, "scratch": DIR, "log": FILE}
            {"kill": 7, "signal": 15}
    stdout  {"ready": true}   {"id": 7, "pid": 4711}   {"id": 7, "ended": 0, "peak": BYTES}

One JSON object a line. `ended` is the exit code, negative for a signal, as in `subprocess`; the
number of ENOSPC where the disk had no room for the result itself.

Importing takes longer than most tasks of a small model do, so it is done once; a fork then costs
milliseconds, and a crash or an out-of-memory kill still takes one task with it and no more. The
process stays single-threaded, which is what makes forking it safe: ONNX Runtime starts a thread
when it is imported, so it is left to the forks. When the other side of stdin is gone, however it
went, every task is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import json
import logging
import os
import selectors
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

_PRELOAD = (
    "numpy",
    "onnx",
    "onnx_ir",
    "ml_dtypes",
    "genai_core.kinds.build",
    "genai_core.store.directory.directory_store",
    "genai_stages.graph.core_graph",
)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CHUNK = 1 << 16


@dataclass(frozen=True)
class TaskRequest:
    """One task to run."""

    id: int
    task: Path
    result: Path
    store: str
    scratch: Path
    log: Path


def serve(run: Callable[[TaskRequest], int]) -> int:
    """Serve stdin until it ends; returns the exit code.

    Args:
        run: Runs a task in the forked process and returns its exit code.
    """
    server = _Server(run)
    try:
        server.loop()
    finally:
        server.kill_all()
    return 0


class _Server:
    def __init__(self, run: Callable[[TaskRequest], int]) -> None:
        self.run = run
        self.pids: dict[int, int] = {}
        """Process id -> request id."""
        self.pid = os.getpid()
        self.wake, self._wake_write = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self._wake_write, False)
        self.libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        if self.libc is not None:
            # Processes that a killed task leaves behind become children of this one.
            self.libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for module in _PRELOAD:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        gc.collect()
        gc.freeze()  # what stands now is shared by all forks as long as nobody touches it

    def loop(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other side decides
        signal.signal(signal.SIGTERM, _leave)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        _say({"ready": True})
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(self.wake, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if self.wake in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.wake, _CHUNK)
                    self.reap()
                if 0 in ready:
                    chunk = os.read(0, _CHUNK)
                    if not chunk:
                        return
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in filter(None, lines):
                        self.obey(json.loads(line))

    def obey(self, message: dict[str, Any]) -> None:
        if "kill" in message:
            for pid, number in self.pids.items():
                if number == message["kill"]:
                    _kill(pid, int(message["signal"]))
            return
        request = TaskRequest(
            id=int(message["id"]),
            task=Path(message["task"]),
            result=Path(message["result"]),
            store=str(message["store"]),
            scratch=Path(message["scratch"]),
            log=Path(message["log"]),
        )
        sys.stdout.flush()
        try:
            pid = os.fork()
        except OSError as error:  # no memory or no processes left: as if it had been killed
            _say({"id": request.id, "ended": -signal.SIGKILL, "peak": 0, "why": str(error)})
            return
        if pid == 0:
            self.become(request)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # on both sides: whoever comes first
        self.pids[pid] = request.id
        _say({"id": request.id, "pid": pid})

    def become(self, request: TaskRequest) -> None:
        """The fork's side: run the task and leave, without the server's own ending."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            if self.libc is not None:
                self.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self.pid:
                return  # it died before it could be watched
            log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = self.run(request)
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                code = errno.ENOSPC
            with contextlib.suppress(OSError):
                logging.getLogger("genai_stages").exception("the worker failed")
        finally:
            os._exit(code)

    def reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self.pids.pop(pid, None)
            if number is None:
                continue
            _kill(pid, signal.SIGKILL)  # what is left of its group
            self.kill_orphans()
            unit = 1 if sys.platform == "darwin" else 1024
            _say(
                {
                    "id": number,
                    "ended": os.waitstatus_to_exitcode(status),
                    "peak": usage.ru_maxrss * unit,
                }
            )

    def kill_orphans(self) -> None:
        """Kill what ended tasks left behind: children of ours that are no task."""
        for pid in _children():
            if pid not in self.pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        for pid in self.pids:
            _kill(pid, signal.SIGKILL)
        for _ in range(1000):  # children's children become ours one generation at a time
            self.kill_orphans()
            try:
                pid, _, _ = os.wait4(-1, 0)
            except ChildProcessError:
                return
            self.pids.pop(pid, None)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End as if standard input had: tasks first."""
    raise SystemExit(128 + signal.SIGTERM)


def _kill(pid: int, number: int) -> None:
    """Signal a task's process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _children() -> Iterator[int]:
    """Children of this process, where the system shows them."""
    own = str(os.getpid())
    with contextlib.suppress(OSError):
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, IndexError):
                stat = Path(entry.path, "stat").read_text(encoding="ascii", errors="replace")
                if stat.rpartition(")")[2].split()[1] == own:
                    yield int(entry.name)


def _say(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")
