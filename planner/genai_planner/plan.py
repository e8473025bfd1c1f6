"""Tasks and the plan that they form: frozen values, no behaviour but looking things up.

A task names its inputs by what they are made of: files of other tasks' outputs, or of the model's
source, chosen by patterns. Which bytes those are is known only when the others are done; then, and
not before, the task has a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from genai_core.names import Backend, Digest, SourceName, TaskId
from genai_core.operations import OperationConfig
from genai_core.tasks.record import Record

__all__ = [
    "Demand",
    "FidelityCondition",
    "FileRef",
    "Inputs",
    "Plan",
    "Result",
    "Selection",
    "Task",
    "result_of",
]


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file by content.

    Attributes:
        sha256: Of the bytes.
        size: Their number.
        semantic: Stands for the file in keys where its bytes carry a clock.
    """

    sha256: Digest
    size: int
    semantic: Digest | None = None

    @property
    def identity(self) -> Digest:
        """The digest that enters keys."""
        return self.semantic or self.sha256


@dataclass(frozen=True, slots=True)
class Selection:
    """Files that an input takes: outputs of a task, or files of a source.

    Attributes:
        task: Whose output; None = files of a source.
        patterns: Whole relative paths; `*` matches anything, also `/`. A pattern without `*` must
            match, one with it may match nothing.
        source: Whose files, where no task is named.
    """

    task: TaskId | None
    patterns: tuple[str, ...]
    source: SourceName | None = None

    def __post_init__(self) -> None:
        """Refuse a selection of both or of nothing.

        Raises:
            ValueError: Neither a task nor a source is named, or both are.
        """
        if (self.task is None) == (self.source is None):
            raise ValueError(f"a selection names a task or a source: {self.task}, {self.source}")


Inputs: TypeAlias = dict[str, tuple[Selection, ...]]
"""Input name -> where its files come from; two selections must not give one path."""


@dataclass(frozen=True, slots=True)
class FidelityCondition:
    """A task runs only if a fidelity task found this.

    Attributes:
        task: The fidelity task.
        within: What its fact `within` must be.
    """

    task: TaskId
    within: bool


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task is expected to need.

    Attributes:
        memory_bytes: Largest resident memory.
        seconds: Of one core; only orders tasks, so that long chains start first.
    """

    memory_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Task:
    """One operation on one thing.

    Attributes:
        id: Readable, unique in the plan.
        operation: Name in the table of operations.
        backend: Where two backends have their own.
        config: What enters the key beside the inputs.
        inputs: Input name -> where its files come from; two selections must not give one path.
        demand: See `Demand`.
        target: The target that it serves; empty where several share it.
        graph: `ar32_cl256`, or empty.
        split: `2/3`, or empty.
        when: Needed only then.
        rivals: On the last of several tries: the fidelity tasks of all of them. Where `when` does
            not hold, the task has failed, and their losses say why.
    """

    id: TaskId
    operation: str
    backend: Backend | None
    config: OperationConfig
    inputs: Mapping[str, tuple[Selection, ...]]
    demand: Demand
    target: str = ""
    graph: str = ""
    split: str = ""
    when: FidelityCondition | None = None
    rivals: tuple[TaskId, ...] = ()

    def after(self) -> tuple[TaskId, ...]:
        """Ids of the tasks that it reads from or waits for, each once, in order."""
        found = [s.task for selections in self.inputs.values() for s in selections]
        if self.when is not None:
            found.append(self.when.task)
        return tuple(dict.fromkeys(task for task in found if task is not None))

    def sources(self) -> frozenset[SourceName]:
        """The sources that it reads files of."""
        named = (s.source for selections in self.inputs.values() for s in selections)
        return frozenset(name for name in named if name is not None)


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished task left.

    Attributes:
        outputs: Relative path -> file.
        facts: JSON values of its record.
    """

    outputs: Mapping[str, FileRef]
    facts: Mapping[str, Any] = field(default_factory=dict)


def result_of(record: Record) -> Result:
    """A record as plans take it."""
    return Result(
        {p: FileRef(o.sha256, o.size, o.semantic) for p, o in record.outputs.items()},
        record.facts,
    )


@dataclass(frozen=True)
class Plan:
    """Everything that a build may have to do.

    Attributes:
        tasks: Each stands behind those that it depends on.
        containers: Target -> its package tasks; of several, one at most will run.
        notes: Sentences: what was derived, and from what.
        warnings: Sentences for the user.
    """

    tasks: tuple[Task, ...]
    containers: Mapping[str, tuple[TaskId, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def task(self, task_id: str) -> Task:
        """The task of that id.

        Raises:
            KeyError: There is none.
        """
        return self._by_id[task_id]

    def dependents(self, task_id: str) -> tuple[Task, ...]:
        """The tasks that read from it or wait for it, in the plan's order."""
        return tuple(self._dependents.get(task_id, ()))

    def made_of(self, task_id: str) -> tuple[Task, ...]:
        """The tasks before it, however far, in the plan's order."""
        found = {task_id}
        before: list[Task] = []
        for task in reversed(self.tasks):
            if task.id in found:
                found.update(task.after())
                before.append(task)
        return tuple(reversed(before[1:]))

    def verdict_on(self, task_id: str) -> TaskId | None:
        """The fidelity task that a package waits for; None where nothing measures it."""
        when = self.task(task_id).when
        return None if when is None else when.task

    @cached_property
    def _by_id(self) -> dict[str, Task]:
        return {task.id: task for task in self.tasks}

    @cached_property
    def _dependents(self) -> dict[str, list[Task]]:
        found: dict[str, list[Task]] = {}
        for task in self.tasks:
            for other in task.after():
                found.setdefault(other, []).append(task)
        return found
