"""What a worker's end means: a result, another attempt, or a failure.

What may be tried again: a worker that was killed (the cause may be memory: once more, alone), one
that crashed, a store that does not answer. Bad input is final. Lost bytes of an input make that
input's task run again.
"""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass
from pathlib import Path

from genai_cli.engine.workers import WorkerEnd
from genai_core.errors import (
    CorruptBlob,
    GenAIError,
    NoSpace,
    OutOfMemory,
    StoreUnavailable,
    ToolFailed,
)
from genai_core.names import TaskId
from genai_core.tasks.task_file import TaskResult
from genai_planner.execution.events import Crashed, InputLost

__all__ = ["AnotherAttempt", "another_attempt", "failure_of", "read_result"]

_MOST_ATTEMPTS = 2
_MOST_UNAVAILABLE = 4


@dataclass(frozen=True)
class AnotherAttempt:
    """Another attempt at a task.

    Attributes:
        event: That leads to it.
        why: For whoever watches.
        pause: Seconds before it.
    """

    event: Crashed | InputLost
    why: str
    pause: float = 0.0


def read_result(path: Path) -> TaskResult | None:
    """What a worker wrote down; None where it came to nothing that can be read."""
    try:
        return TaskResult.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def another_attempt(
    task: TaskId, ended: WorkerEnd, error: GenAIError | None, *, tried: int
) -> AnotherAttempt | None:
    """Whether a task whose worker did not succeed is tried again.

    Args:
        task: Which.
        ended: How its worker ended.
        error: That it named, if any.
        tried: Attempts so far, this one included.
    """
    if isinstance(error, StoreUnavailable):
        if tried >= _MOST_UNAVAILABLE:
            return None
        pause = min(0.5 * 2**tried, 8.0)
        return AnotherAttempt(Crashed(task, alone=False), f"{error}; trying again", pause)
    if tried >= _MOST_ATTEMPTS:
        return None
    if isinstance(error, CorruptBlob):
        return AnotherAttempt(InputLost(task), f"{error}; what it came from is made again")
    if ended.status == -signal.SIGKILL or isinstance(error, OutOfMemory):
        why = "it was killed, probably for lack of memory; once more, alone"
        return AnotherAttempt(Crashed(task, alone=True), why)
    if ended.status < 0:
        why = f"its worker ended by {_signal_name(ended.status)}; once more"
        return AnotherAttempt(Crashed(task, alone=False), why)
    return None


def _signal_name(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def failure_of(task: TaskId, ended: WorkerEnd) -> GenAIError:
    """The error of a worker that named none and is not tried again."""
    if ended.status == -signal.SIGKILL:
        return GenAIError(
            "its worker was killed twice, probably for lack of memory",
            where=task,
            remedy="free some memory, or build with more splits",
        )
    if ended.status < 0:
        return ToolFailed(f"its worker ended by {_signal_name(ended.status)} twice", where=task)
    if ended.status == errno.ENOSPC:
        return NoSpace("there is no room left for the task's result", where=task)
    return GenAIError(f"its worker ended with exit code {ended.status}", where=task)
