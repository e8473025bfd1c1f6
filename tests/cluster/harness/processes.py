"""Starts, kills and ends the cluster's own processes; no other process is ever touched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from harness.network import Network

_OUTLIVING: list[subprocess.Popen[bytes]] = []
"""What was restarted in a cluster that was only visited runs on when this process ends: kept, so
that Python does not warn of it."""


class Processes:
    """The processes of one run; their ids are on disk, so that another process can end them."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.folder = folder
        self.network = network
        self._file = folder / "processes.json"
        self._commands_file = folder / "commands.json"
        self._commands: dict[str, tuple[list[str], dict[str, str]]] = (
            json.loads(self._commands_file.read_text()) if self._commands_file.exists() else {}
        )
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._ids: dict[str, int] = (
            json.loads(self._file.read_text()) if self._file.exists() else {}
        )

    def start(self, name: str, *command: str, environment: dict[str, str] | None = None) -> int:
        """Start a command with a log of its own; returns the process id."""
        self._commands[name] = (list(command), environment or {})
        command = (*self.network.prefix, *command)
        with (self.folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | (environment or {}),
                start_new_session=True,
            )
        self._children[name] = child
        _OUTLIVING.append(child)
        self._ids[name] = child.pid
        self._save()
        return child.pid

    def restart(self, name: str, *further: str) -> int:
        """Start a command of this run again after it was killed.

        Args:
            name: Of the process.
            further: Flags for this time only.
        """
        command, environment = self._commands[name]
        pid = self.start(name, *command, *further, environment=environment)
        self._commands[name] = (command, environment)
        self._save()
        return pid

    def kill(self, name: str) -> None:
        """kill -9, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._ids[name], signal.SIGKILL)
        self._reap(name, 10)

    def stop(self, name: str, seconds: float = 20) -> None:
        """SIGTERM, wait, then SIGKILL."""
        if name not in self._ids:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._ids[name], signal.SIGTERM)
        if not self._reap(name, seconds):
            self.kill(name)
        self._ids.pop(name, None)
        self._save()

    def stop_all(self) -> None:
        """End everything in reverse order of its start."""
        for name in reversed(list(self._ids)):
            self.stop(name)

    def pid(self, name: str) -> int:
        """The process id."""
        return self._ids[name]

    def log(self, name: str) -> str:
        """What a process has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _reap(self, name: str, seconds: float) -> bool:
        child = self._children.get(name)
        if child is not None:
            try:
                child.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            return True
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                os.kill(self._ids[name], 0)
            except ProcessLookupError:
                return True
            time.sleep(0.1)
        return False

    def _save(self) -> None:
        self._file.write_text(json.dumps(self._ids))
        self._commands_file.write_text(json.dumps(self._commands))


def wait_until(what: str, probe: object, seconds: float = 60) -> None:
    """Call `probe` until it is true.

    Raises:
        TimeoutError: Says what was waited for.
    """
    assert callable(probe)
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)
