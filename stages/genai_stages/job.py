"""A task as the container of a Job: everything from the environment, the outcome to the kubelet.

    GENAI_TASK      the task file, zlib and base64 (a shell or a kubelet finds nothing to expand)
    GENAI_STORE     address of the store; credentials from the AWS_* variables
    GENAI_STORE_CA  certificates (PEM) that the store's is checked against, if any
    GENAI_SCRATCH   folder for scratch

Data goes to the store. What stands in the termination message is only what cannot stand in a
record: why there is none. A failed task's log becomes a blob, so that it outlives the pod.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from genai_core.errors import GenAIError, Interrupted, NoSpace
from genai_core.resolved import ResolveFile
from genai_core.store.location import open_store
from genai_core.store.protocol import Store
from genai_core.task import TaskFile, TaskResult, unpack
from genai_stages import runner
from genai_stages.resolve import resolve

__all__ = ["run_job"]

TERMINATION_LOG = Path("/dev/termination-log")
_MOST_BYTES = 4000
_FULL = {28, 122}
"""ENOSPC, EDQUOT."""

log = logging.getLogger("genai_stages")


def _unpacked(text: str) -> TaskFile | ResolveFile:
    """What stands in GENAI_TASK."""
    data = unpack(text)
    kind = ResolveFile if json.loads(data).get("kind") == "resolve" else TaskFile
    return kind.model_validate_json(data)


def run_job(termination_log: Path = TERMINATION_LOG) -> int:
    """Run the task of the environment; returns the exit code."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    root = os.environ.get("GENAI_SCRATCH") or None
    scratch = Path(tempfile.mkdtemp(prefix="genai-task-", dir=root))
    log_file = scratch / "job.log"
    handler = logging.FileHandler(log_file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    store: Store | None = None
    name = "task"
    try:
        task = _unpacked(os.environ["GENAI_TASK"])
        name = task.id if isinstance(task, TaskFile) else task.kind
        _trust(scratch)
        store = open_store(os.environ["GENAI_STORE"])
        result = _guarded(name, _work(task, store, scratch), started)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    message = _message(result)
    if result.error is not None:
        print(f"{result.error['code']}: {result.error['message']}", file=sys.stderr)  # noqa: T201
        if store is not None:
            with suppress(GenAIError):
                message["log"] = store.put_bytes(log_file.read_bytes()).sha256
    with suppress(OSError):
        termination_log.write_text(_bounded(message), encoding="utf-8")
    shutil.rmtree(scratch, ignore_errors=True)
    return result.exit_code


def _trust(scratch: Path) -> None:
    pem = os.environ.get("GENAI_STORE_CA")
    if pem:
        file = scratch / "ca.pem"
        file.write_text(pem, encoding="utf-8")
        os.environ["AWS_CA_BUNDLE"] = str(file)


def _work(task: TaskFile | ResolveFile, store: Store, scratch: Path) -> Callable[[], TaskResult]:
    folder = scratch / "task"
    folder.mkdir()
    if isinstance(task, TaskFile):
        return lambda: runner.run_task(task, store, folder)
    return lambda: resolve(task, store, folder)


def _guarded(name: str, work: Callable[[], TaskResult], started: float) -> TaskResult:
    """Run; every error becomes a result."""
    try:
        return work()
    except GenAIError as error:
        log.error("%s", error)  # noqa: TRY400 - an expected error has no use for a traceback
        found = error
    except KeyboardInterrupt:
        found = Interrupted("stopped before it was done", where=name)
    except MemoryError:
        log.exception("the task failed")
        found = GenAIError("out of memory", where=name)
    except OSError as error:
        log.exception("the task failed")
        found = (
            NoSpace(
                error.strerror or "no space left",
                where=str(error.filename or "scratch"),
                remedy="raise spec.run.scratch.size, or free some room on the node",
            )
            if error.errno in _FULL
            else GenAIError(str(error), where=str(error.filename or name))
        )
    except Exception as error:
        log.exception("the task failed")
        found = GenAIError(f"{type(error).__name__}: {error}", where=name)
    return TaskResult(
        id=name,
        outcome="failed",
        error=found.as_dict(),
        exit_code=found.exit_code,
        seconds=time.monotonic() - started,
        peak_memory_bytes=runner.peak_memory_bytes(),
    )


def _message(result: TaskResult) -> dict[str, object]:
    found: dict[str, object] = {
        "outcome": result.outcome,
        "seconds": round(result.seconds, 3),
        "peakMemoryBytes": result.peak_memory_bytes,
    }
    if result.error is not None:
        found["error"] = result.error
    return found


def _bounded(message: dict[str, object]) -> str:
    """JSON of at most 4,000 bytes: the longest texts of the error are cut."""
    text = json.dumps(message)
    error = message.get("error")
    limit = 2000
    while len(text.encode()) > _MOST_BYTES and isinstance(error, dict) and limit > 50:
        error = {name: str(value)[:limit] for name, value in error.items()}
        text = json.dumps(message | {"error": error})
        limit //= 2
    return text


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
