"""Starts the server: this process becomes it, as a pod's does."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from genai_cli.containers.choice import runnable_container
from genai_cli.engine.work_folders import cache_folder
from genai_core.errors import NotRunnableHere

__all__ = ["draft_folder", "serve"]

_NEEDED = ("numpy", "onnxruntime", "starlette", "uvicorn", "prometheus_client", "llguidance")


def serve(
    path: Path,
    given: Mapping[str, str | float | Sequence[str] | None],
    *,
    flags: Sequence[str] = (),
    api_key: str,
) -> NoReturn:
    """Become `python -m genai_serving`.

    Args:
        path: Of a container, or of a build's folder.
        given: Its options, without dashes before their names; None and "" are left out, an option
            of several values is given several times.
        flags: Options without a value, likewise.
        api_key: Goes through the environment: a list of processes shows arguments to everybody.

    Raises:
        NotRunnableHere: A library that serving needs is not installed.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise NotRunnableHere(
            "serving needs it, and it is not installed",
            where=missing[0],
            remedy="pip install 'genai-operator[all]'",
        )
    folder = runnable_container(path)
    command = [sys.executable, "-P", "-m", "genai_serving", str(folder)]
    command += ["--cache", str(cache_folder() / "serving")]
    for name, value in given.items():
        if value not in (None, ""):
            several = [value] if isinstance(value, str | float | int) else value or []
            command += [f"--{name}={one}" for one in several]  # a value may begin with a dash
    command += [f"--{flag}" for flag in flags]
    environment = dict(os.environ)
    environment.pop("GENAI_API_KEY", None)
    if api_key:
        environment["GENAI_API_KEY"] = api_key
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, environment)  # noqa: S606 - our own module, no shell


def draft_folder(given: str) -> str:
    """The container that `--draft` means, as a path that holds wherever the server runs.

    Raises:
        BadInput: There is none.
    """
    return str(runnable_container(Path(given)).resolve())
