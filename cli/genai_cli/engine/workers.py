"""Processes that run tasks: one warm server of `genai_stages serve`, a fork for each task.

The server starts with the first task, so a build that finds everything cached starts none. It is a
session of its own: Ctrl-C reaches this program alone, which then ends the tasks in good order. When
this program dies without a word, the server sees its standard input end and kills what runs.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_core.errors import GenAIError

__all__ = ["Job", "WorkerEnd", "WorkerPool"]

_CHUNK = 1 << 16
_SERVER = (sys.executable, "-P", "-m", "genai_stages", "serve")


@dataclass(frozen=True)
class Job:
    """Files of one attempt at a task."""

    task: Path
    result: Path
    scratch: Path
    log: Path


@dataclass(frozen=True)
class WorkerEnd:
    """A worker ended.

    Attributes:
        number: What `submit` returned.
        status: Exit code; negative for a signal.
        peak_memory_bytes: Largest resident memory of the worker.
    """

    number: int
    status: int
    peak_memory_bytes: int


class WorkerPool:
    """See the module's docstring.

    Args:
        store: Address of the store.
        log: Gets what the server itself says.
        command: Of the server.
    """

    def __init__(self, store: str, log: Path, *, command: Sequence[str] = _SERVER) -> None:
        self.command = tuple(command)
        self.store = store
        self.log = log
        self.pids: dict[int, int | None] = {}
        """Number -> process id of every running task, once it is known."""
        self._server: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._count = 0
        self._ready = False

    def submit(self, job: Job) -> int:
        """Start a task; returns its number."""
        self._count += 1
        self.pids[self._count] = None
        self._send(
            {
                "id": self._count,
                "task": str(job.task),
                "result": str(job.result),
                "store": self.store,
                "scratch": str(job.scratch),
                "log": str(job.log),
            }
        )
        return self._count

    def warm_up(self) -> None:
        """Start the server now, since tasks will come."""
        if self._server is None:
            self._start()

    def poll(self, seconds: float) -> list[WorkerEnd]:
        """Wait until a task ends, at most so long; returns those that ended."""
        if self._server is None:
            time.sleep(seconds)
            return []
        stream = self._server.stdout
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            if not selector.select(seconds):
                return []
        chunk = os.read(stream.fileno(), _CHUNK)
        if not chunk:
            return self._server_died()
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        return [ended for line in filter(None, lines) if (ended := self._take(json.loads(line)))]

    def stop(self, grace: float = 5.0) -> None:
        """End every task: SIGTERM first, SIGKILL after `grace` seconds."""
        deadline = time.monotonic() + grace
        try:
            self._signal_all(signal.SIGTERM)
            while self.pids and time.monotonic() < deadline:
                self.poll(0.05)
        finally:
            self.close()

    def close(self) -> None:
        """End the server, and with it every task that still runs."""
        server, self._server = self._server, None
        self.pids.clear()
        if server is None:
            return
        assert server.stdin is not None
        assert server.stdout is not None
        with suppress(BrokenPipeError):
            server.stdin.close()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()

    def _signal_all(self, number: int) -> None:
        for task in self.pids:
            self._send({"kill": task, "signal": int(number)})

    def _start(self) -> None:
        # One thread each for numpy: tasks run side by side, and a fork must not inherit threads.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._buffer, self._ready = b"", False

    def _send(self, message: dict[str, Any]) -> None:
        if self._server is None:
            self._start()
        assert self._server is not None
        assert self._server.stdin is not None
        with suppress(BrokenPipeError):  # the next poll finds out and says so
            self._server.stdin.write(json.dumps(message).encode() + b"\n")
            self._server.stdin.flush()

    def _take(self, message: dict[str, Any]) -> WorkerEnd | None:
        self._ready = self._ready or "ready" in message
        number = message.get("id")
        if number is None or number not in self.pids:
            return None
        if "pid" in message:
            self.pids[number] = int(message["pid"])
            return None
        del self.pids[number]
        return WorkerEnd(number, int(message["ended"]), int(message["peak"]))

    def _server_died(self) -> list[WorkerEnd]:
        lost = list(self.pids)
        server = self._server
        assert server is not None
        for pid in self.pids.values():
            if pid is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        self.close()
        if not self._ready or not lost:
            text = self.log.read_text(encoding="utf-8", errors="replace").strip()
            last = text.splitlines()[-1] if text else f"exit code {server.returncode}"
            raise GenAIError(
                f"the worker ended by itself: {last}",
                where="genai_stages serve",
                remedy="see that the extra genai-operator[stages] is installed",
            )
        return [WorkerEnd(number, -signal.SIGKILL, 0) for number in lost]
