"""What happens to tasks, and what is to be done next: the messages between `Machine` and a shell.

Events go in, instructions come out. The shell carries instructions out (asks the store, starts a
process or a Job) and reports what came of them as events; the machine never does anything itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from genai_core.errors import GenAIError
from genai_core.names import Key, TaskId
from genai_planner.plan import FileRef, Result

__all__ = [
    "Crashed",
    "Event",
    "Failed",
    "Finished",
    "FoundResult",
    "InputLost",
    "Look",
    "Missed",
    "StartChoice",
    "Taken",
    "TaskStart",
    "TaskWait",
    "WorkLimits",
]


@dataclass(frozen=True, slots=True)
class Look:
    """Instruction: look this key up; answer with `FoundResult` or `Missed`."""

    task: TaskId
    operation: str
    key: Key


@dataclass(frozen=True, slots=True)
class FoundResult:
    """The store has it; or another worker just committed it."""

    task: TaskId
    result: Result


@dataclass(frozen=True, slots=True)
class Missed:
    """The store does not have it, and why."""

    task: TaskId
    why: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """The store does not have it yet, and a worker is at it already."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class Finished:
    """It ran, and its record is committed."""

    task: TaskId
    result: Result


@dataclass(frozen=True, slots=True)
class Failed:
    """It ended with an error that another attempt will not cure."""

    task: TaskId
    error: GenAIError


@dataclass(frozen=True, slots=True)
class Crashed:
    """Its worker died; it is to be tried once more, alone if memory may have been the cause."""

    task: TaskId
    alone: bool = True


@dataclass(frozen=True, slots=True)
class InputLost:
    """It found bytes of an input missing or wrong; what made them has to be looked up again."""

    task: TaskId


Event: TypeAlias = FoundResult | Missed | Taken | Finished | Failed | Crashed | InputLost


@dataclass(frozen=True, slots=True)
class WorkLimits:
    """How much may run at once.

    Attributes:
        parallelism: Tasks.
        memory_bytes: That all of them together may need.
        busy: Workers that count as well: their tasks have ended, they have not.
    """

    parallelism: int
    memory_bytes: int
    busy: int = 0


@dataclass(frozen=True, slots=True)
class TaskStart:
    """Instruction: run this task.

    Attributes:
        inputs: Input name -> relative path -> file.
        alone: Nothing else runs while it does.
        tight: It is expected to need more memory than there is.
    """

    task: TaskId
    key: Key
    inputs: Mapping[str, Mapping[str, FileRef]]
    alone: bool = False
    tight: bool = False


@dataclass(frozen=True, slots=True)
class TaskWait:
    """A task that could start, and why it does not yet."""

    task: TaskId
    why: str


@dataclass(frozen=True, slots=True)
class StartChoice:
    """What to start now, and what has to wait."""

    start: tuple[TaskStart, ...] = ()
    wait: tuple[TaskWait, ...] = ()
