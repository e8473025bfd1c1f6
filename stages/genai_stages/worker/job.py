"""A task as the container of a Job: everything from the environment, the outcome to the kubelet.

    GENAI_TASK          the task file or the chain's, zlib and base64 (a shell or a kubelet finds
                        nothing to expand); GENAI_TASK_2 and so on go on where it is long
    GENAI_TASK_SECONDS  longest that one task of a chain may take
    GENAI_STORE ...     the store, see core's `pod_store`; GENAI_SOURCE_...: `source_access`
    GENAI_SCRATCH       folder for scratch
    GENAI_TELL          1: the record goes into the log, for an operator without credentials

Data goes to the store. What stands in the termination message is only what cannot stand in a
record: why there is none. A failed task's log becomes a blob, so that it outlives the pod. Of a
chain the message says before each task which one it is, so that this is known however the process
ends.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from genai_core.errors import DeadlineExceeded, GenAIError, Interrupted, NoSpace, OutOfMemory
from genai_core.files.foreign import is_failure
from genai_core.helper_jobs import CollectFile, LeaseFile, LookFile, ProbeFile
from genai_core.names import Key
from genai_core.sources.resolved import RESOLVE, ResolveFile
from genai_core.store.pod_store import open_job_store
from genai_core.store.protocol import Store
from genai_core.tasks.chain import ChainFile
from genai_core.tasks.task_file import TaskFile, TaskResult, packed_task
from genai_core.wire import TERMINATION_LOG, Variable
from genai_stages.worker import runner
from genai_stages.worker.chain import run_chain
from genai_stages.worker.helper_jobs import StoreQuestion, answer_question, show_record, tell

__all__ = ["run_job"]

_MOST_BYTES = 4000
_FULL = {28, 122}
"""ENOSPC, EDQUOT."""

log = logging.getLogger("genai_stages")


Document: TypeAlias = TaskFile | ChainFile | ResolveFile | StoreQuestion
_QUESTIONS: dict[str, type[Document]] = {
    "look": LookFile,
    "lease": LeaseFile,
    "probe": ProbeFile,
    "collect": CollectFile,
}


def _unpacked(data: bytes) -> Document:
    """What stands in GENAI_TASK."""
    kinds = _QUESTIONS | {RESOLVE: ResolveFile, "chain": ChainFile}
    return kinds.get(json.loads(data).get("kind", ""), TaskFile).model_validate_json(data)


class _Place:
    """Which task is being worked on, and how long that may take."""

    def __init__(self, termination_log: Path) -> None:
        self.name = "task"
        self.step: int | None = None
        self._log = termination_log
        self._limit = float(os.environ.get(Variable.TASK_SECONDS) or "inf")
        self._alarm: threading.Timer | None = None

    def begin(self, step: int, name: str) -> None:
        """The next task of a chain."""
        self.end()
        self.step, self.name = step, name
        self.say({"outcome": "failed"})
        if self._limit < threading.TIMEOUT_MAX:
            self._alarm = threading.Timer(self._limit, self._too_long)
            self._alarm.daemon = True
            self._alarm.start()

    def end(self) -> None:
        """No task is worked on."""
        if self._alarm is not None:
            self._alarm.cancel()

    def say(self, message: dict[str, object]) -> None:
        """Leave a message for the kubelet."""
        if self.step is not None:
            message |= {"step": self.step, "task": self.name}
        with suppress(OSError):
            self._log.write_text(_bounded(message), encoding="utf-8")

    def _too_long(self) -> None:
        error = DeadlineExceeded(
            "it ran for longer than spec.run.activeDeadlineSeconds allows", where=self.name
        )
        self.say({"outcome": "failed", "error": error.as_dict()})
        os._exit(error.exit_code)  # whatever the task hangs in


def run_job(termination_log: Path = Path(TERMINATION_LOG)) -> int:
    """Run what the environment holds; returns the exit code."""
    started = time.monotonic()
    age = _process_age()
    signal.signal(signal.SIGTERM, _interrupt)
    root = os.environ.get(Variable.SCRATCH) or None
    scratch = Path(tempfile.mkdtemp(prefix="genai-task-", dir=root))
    log_file = scratch / "job.log"
    handler = logging.FileHandler(log_file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    store: Store | None = None
    place = _Place(termination_log)

    def work() -> TaskResult:
        nonlocal store
        document = _unpacked(packed_task(os.environ))
        store = open_job_store()
        result = _work(document, store, scratch, place)()
        if os.environ.get(Variable.TELL):
            _tell_record(document, result, store)
        return result

    try:
        result = _guarded(place, work, started)
    finally:
        place.end()
        logging.getLogger().removeHandler(handler)
        handler.close()
    message = _message(result)
    message["startSeconds"] = round(age, 3)
    if result.error is not None:
        print(f"{result.error['code']}: {result.error['message']}", file=sys.stderr)  # noqa: T201
        if store is not None:
            with suppress(GenAIError):
                message["log"] = store.put_bytes(log_file.read_bytes()).sha256
    place.say(message)
    shutil.rmtree(scratch, ignore_errors=True)
    return result.exit_code


def _tell_record(document: Document, result: TaskResult, store: Store) -> None:
    """Show the record to an asker who cannot read the store."""
    if isinstance(document, TaskFile):
        operation, key = document.operation, Key(document.key)
    elif isinstance(document, ResolveFile) and result.record is not None:
        operation, key = RESOLVE, Key(result.record)
    else:
        return
    with suppress(GenAIError):  # then it is looked up by another Job
        tell(show_record(store, operation, key))


def _work(
    document: Document, store: Store, scratch: Path, place: _Place
) -> Callable[[], TaskResult]:
    folder = scratch / "task"
    folder.mkdir()
    if isinstance(document, ChainFile):
        return lambda: run_chain(document, store, folder, begin=place.begin)
    if isinstance(document, TaskFile):
        place.name = document.id
        return lambda: runner.run_task(document, store, folder)
    if not isinstance(document, ResolveFile):
        place.name = document.kind
        return lambda: answer_question(document, store)
    place.name = RESOLVE
    from genai_stages.worker.resolve import resolve  # brings what inspects models

    return lambda: resolve(document, store, folder)


def _guarded(place: _Place, work: Callable[[], TaskResult], started: float) -> TaskResult:
    """Run; every error becomes a result."""
    try:
        return work()
    except GenAIError as error:
        log.error("%s", error)  # noqa: TRY400 - an expected error has no use for a traceback
        found = error
    except KeyboardInterrupt:
        found = Interrupted("stopped before it was done", where=place.name)
    except MemoryError:
        log.exception("the task failed")
        found = OutOfMemory("it was out of memory", where=place.name)
    except OSError as error:
        log.exception("the task failed")
        found = (
            NoSpace(
                error.strerror or "no space left",
                where=str(error.filename or "scratch"),
                remedy="raise spec.run.scratch.size, or free some room on the node",
            )
            if error.errno in _FULL
            else GenAIError(str(error), where=str(error.filename or place.name))
        )
    except BaseException as error:
        if not is_failure(error):
            raise
        log.exception("the task failed")
        found = GenAIError(f"{type(error).__name__}: {error}", where=place.name)
    return TaskResult(
        id=place.name,
        outcome="failed",
        error=found.as_dict(),
        exit_code=found.exit_code,
        seconds=time.monotonic() - started,
        peak_memory_bytes=runner.peak_memory_bytes(),
    )


def _process_age() -> float:
    """Seconds since this process began: the interpreter's start and the imports."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


def _message(result: TaskResult) -> dict[str, object]:
    found: dict[str, object] = {
        "outcome": result.outcome,
        "seconds": round(result.seconds, 3),
        "peakMemoryBytes": result.peak_memory_bytes,
    }
    if result.error is not None:
        found["error"] = result.error
    if result.record is not None:
        found["record"] = result.record
    if result.facts:
        found["facts"] = result.facts
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
