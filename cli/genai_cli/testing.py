"""For tests: the program as users start it, a process with its own home, output and exit code.

`InProcess` looks the same and is ten times faster: for what a command does, not for how it ends.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

__all__ = ["InProcess", "Program", "Ran", "environment"]

_SECONDS = 240


@dataclass(frozen=True)
class Ran:
    """What a process left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    @property
    def errors(self) -> list[str]:
        """The lines that report errors; there must be no traceback among them."""
        assert "Traceback" not in self.err, self.err
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@dataclass(frozen=True)
class Program:
    """`genai` in a folder that is also its user's home."""

    folder: Path

    def __call__(
        self, *arguments: str | Path, env: dict[str, str] | None = None, stdin: str = ""
    ) -> Ran:
        """Run it to its end; `env` adds to the environment."""
        done = subprocess.run(  # noqa: S603 - our own program
            self.command(*arguments),
            cwd=self.folder,
            env=environment(self.folder) | (env or {}),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str | Path) -> Ran:
        """Run it; it must succeed."""
        ran = self(*arguments)
        assert ran.code == 0, f"{arguments}: {ran.err[-3000:]}"
        return ran

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line of a process."""
        return [sys.executable, "-m", "genai_cli", *map(str, arguments)]


@dataclass(frozen=True)
class InProcess:
    """`genai` called inside the tests' process."""

    folder: Path

    def __call__(self, *arguments: str | Path, env: dict[str, str] | None = None) -> Ran:
        """Run it to its end; `env` adds to the environment."""
        from genai_cli.__main__ import main

        out, err = io.StringIO(), io.StringIO()
        handler = signal.getsignal(signal.SIGTERM)
        home = environment(self.folder) | (env or {})
        try:
            with (
                contextlib.chdir(self.folder),
                mock.patch.dict(os.environ, home, clear=True),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                code = main([*map(str, arguments)])
        finally:
            signal.signal(signal.SIGTERM, handler)
        return Ran(code, out.getvalue(), err.getvalue())


def environment(home: Path) -> dict[str, str]:
    """The environment without settings of whoever runs the tests."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GENAI_", "XDG_", "AWS_"))
    }
    return kept | {"HOME": str(home), "NO_COLOR": "1", "COLUMNS": "160"}
