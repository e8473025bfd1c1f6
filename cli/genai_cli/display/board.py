"""The state of a build as people follow it: events in, rows and counts out. Knows no terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from genai_cli.engine.events import (
    BuildWarning,
    Event,
    MemorySampled,
    PlannedTask,
    PlanReady,
    TaskCached,
    TaskDone,
    TaskFailed,
    TaskStarted,
    TaskWaiting,
)

__all__ = ["Board", "BoardRow", "RunningTask", "State"]

State = Literal["open", "waiting", "running", "cached", "done", "failed"]


@dataclass(frozen=True)
class BoardRow:
    """Tasks of one operation by state."""

    operation: str
    total: int
    running: int
    cached: int
    done: int
    failed: int

    @property
    def ended(self) -> int:
        """Tasks about which nothing more is to be expected."""
        return self.cached + self.done + self.failed


@dataclass(frozen=True)
class RunningTask:
    """A task that runs, or one that could but has to wait; `node` where it is not this machine."""

    id: str
    seconds: float
    attempt: int
    waiting: str = ""
    node: str = ""


@dataclass
class Board:
    """Applies events in the order in which they come.

    Attributes:
        started: Of the build; seconds of the clock that `apply` is given.
        complete: The plan holds every task.
        memory: Resident memory of the running tasks, bytes.
        peak: Largest `memory` so far.
        warnings: Without duplicates, in order.
    """

    started: float
    complete: bool = False
    memory: int = 0
    peak: int = 0
    warnings: list[str] = field(default_factory=list)
    _tasks: dict[str, PlannedTask] = field(default_factory=dict)
    _states: dict[str, State] = field(default_factory=dict)
    _since: dict[str, tuple[float, int]] = field(default_factory=dict)
    _waiting: dict[str, str] = field(default_factory=dict)

    def apply(self, event: Event, now: float) -> None:
        """Take note of an event that happened at `now`."""
        match event:
            case PlanReady():
                self._tasks = {task.id: task for task in event.tasks}
                self.complete = event.complete
            case TaskWaiting():
                self._states[event.id] = "waiting"
                self._waiting[event.id] = event.why
            case TaskStarted():
                self._states[event.id] = "running"
                self._since[event.id] = (now, event.attempt)
            case TaskCached():
                self._states[event.id] = "cached"
            case TaskDone():
                self._states[event.id] = "done"
                for text in event.warnings:
                    self._warn(text)
            case TaskFailed():
                self._states[event.id] = "failed"
            case MemorySampled():
                self.memory = event.resident_bytes
                self.peak = max(self.peak, self.memory)
            case BuildWarning():
                self._warn(f"{event.where}: {event.message}" if event.where else event.message)
        if "running" not in self._states.values():
            self.memory = 0

    def rows(self) -> list[BoardRow]:
        """One row for each operation, in the order of the plan."""
        operations = dict.fromkeys(task.operation for task in self._tasks.values())
        return [self._row(operation) for operation in operations]

    def totals(self) -> BoardRow:
        """All tasks in one row."""
        return self._row(None)

    def running(self, now: float) -> list[RunningTask]:
        """Running tasks, the oldest first, then those that wait for room."""
        found = [
            RunningTask(task, now - since, attempt)
            for task, (since, attempt) in self._since.items()
            if self._states.get(task) == "running"
        ]
        found.sort(key=lambda item: -item.seconds)
        waiting = [
            RunningTask(task, 0.0, 0, why)
            for task, why in self._waiting.items()
            if self._states.get(task) == "waiting"
        ]
        return found + waiting

    def _row(self, operation: str | None) -> BoardRow:
        states = [
            self._states.get(task.id, "open")
            for task in self._tasks.values()
            if operation in {None, task.operation}
        ]
        return BoardRow(
            operation=operation or "",
            total=len(states),
            running=states.count("running"),
            cached=states.count("cached"),
            done=states.count("done"),
            failed=states.count("failed"),
        )

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
