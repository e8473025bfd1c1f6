"""What the engine tells whoever watches a build: plain values, in the order in which they happen.

The engine calls `on_event` with one of these; it knows nothing of terminals. `render` turns them
into progress, a test collects them in a list. The first `PlanReady` may hold ingest alone, since
splits follow from the model; each later one replaces the list of tasks.

    PlanReady (TaskWaiting | TaskCached | TaskStarted MemorySampled* (TaskDone | TaskFailed))* ...

A task ends with exactly one of TaskCached, TaskDone and TaskFailed. One that never starts, because
what it needs failed or the build was interrupted, ends with none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from genai_core.errors import GenAIError
from genai_core.tasks.record import Record

__all__ = [
    "BuildResult",
    "BuildWarning",
    "Event",
    "MemorySampled",
    "OnEvent",
    "PlanReady",
    "PlannedTask",
    "TaskCached",
    "TaskDone",
    "TaskFailed",
    "TaskStarted",
    "TaskWaiting",
]


@dataclass(frozen=True)
class PlannedTask:
    """One task of a plan as people see it; the rows of `genai graph`.

    Attributes:
        id: Unique in the plan, e.g. `convert/sm8750/ar32_cl256_2_of_3`.
        operation: ingest, arcl, transform ...
        target: The target it serves; empty where several share it.
        graph: `ar32_cl256`; empty where a task is not about one graph.
        split: k of `k_of_N` as `2/3`; empty where a task is not about one split.
        key: 64 hex; empty until the digests of all inputs are known.
        after: Ids of the tasks whose outputs it reads.
        cached: Its record stands; it will not run.
        why: One sentence: why it will run, or where it is cached.
    """

    id: str
    operation: str
    target: str = ""
    graph: str = ""
    split: str = ""
    key: str = ""
    after: tuple[str, ...] = ()
    cached: bool = False
    why: str = ""


@dataclass(frozen=True)
class PlanReady:
    """The tasks as far as they are known now; replaces an earlier list.

    Attributes:
        tasks: Every task comes behind those that it reads from.
        complete: No further tasks can appear.
        derived: Sentences: splits, ARs, and what each was derived from.
    """

    tasks: tuple[PlannedTask, ...]
    complete: bool = True
    derived: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskWaiting:
    """A task could start but must wait, e.g. for memory."""

    id: str
    why: str


@dataclass(frozen=True)
class TaskStarted:
    """A process was started for a task."""

    id: str
    attempt: int = 1


@dataclass(frozen=True)
class TaskCached:
    """The record stood already, or another worker was first."""

    id: str
    origin: str = ""
    """Location of the store that holds it."""


@dataclass(frozen=True)
class TaskDone:
    """A task ran and its record was committed."""

    id: str
    seconds: float
    peak_memory_bytes: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskFailed:
    """A task ended with an error; its attempts are used up."""

    id: str
    error: GenAIError
    seconds: float = 0.0
    log: Path | None = None
    """The process's output, kept for reading."""


@dataclass(frozen=True)
class MemorySampled:
    """Resident memory of all running tasks' processes together, now."""

    resident_bytes: int


@dataclass(frozen=True)
class BuildWarning:
    """Something the user should know that stops nothing."""

    message: str
    where: str = ""


Event: TypeAlias = (
    PlanReady
    | TaskWaiting
    | TaskStarted
    | TaskCached
    | TaskDone
    | TaskFailed
    | MemorySampled
    | BuildWarning
)

OnEvent: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True)
class BuildResult:
    """What came of a plan.

    Attributes:
        containers: Target -> record of its package task; a target that failed is absent.
        total: Tasks of the complete plan.
        run: Tasks that ran here.
        cached: Tasks that had nothing to do.
        failures: Failed tasks in the order in which they failed; empty when all went well.
        seconds: Wall time.
        peak_memory_bytes: Largest sum of the resident memory of processes that ran at once.
        warnings: Without duplicates, in order.
        made_of: Target -> task -> record, of the tasks before its package.
        fidelity: Target -> what its fidelity task found, where there is one.
        ran: The tasks that ran here.
    """

    containers: dict[str, Record]
    total: int
    run: int
    cached: int
    seconds: float
    peak_memory_bytes: int = 0
    failures: tuple[TaskFailed, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    made_of: dict[str, dict[str, Record]] = field(default_factory=dict)
    fidelity: dict[str, dict[str, Any]] = field(default_factory=dict)
    ran: frozenset[str] = frozenset()
