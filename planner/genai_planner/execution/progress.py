"""How far a build is: counts by operation and in all."""

from __future__ import annotations

from dataclasses import dataclass

from genai_planner.execution.machine import Machine, TaskState

__all__ = ["BuildProgress", "StageProgress", "progress"]

_WAITING = {TaskState.BLOCKED, TaskState.LOOKING, TaskState.READY}


@dataclass(frozen=True)
class StageProgress:
    """Tasks of one operation; those that are not needed are in no number."""

    operation: str
    waiting: int = 0
    running: int = 0
    cached: int = 0
    done: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.waiting + self.running + self.cached + self.done + self.failed


@dataclass(frozen=True)
class BuildProgress:
    """Of a build.

    Attributes:
        stages: In the order of the work.
        stopped: Tasks that will not run because something before them failed; among `waiting`.
    """

    stages: tuple[StageProgress, ...]
    stopped: int = 0

    @property
    def total(self) -> int:
        """Tasks that are needed."""
        return sum(stage.total for stage in self.stages)

    @property
    def finished(self) -> int:
        """Tasks whose result stands."""
        return sum(stage.cached + stage.done for stage in self.stages)

    @property
    def cached(self) -> int:
        """Tasks whose result stood before."""
        return sum(stage.cached for stage in self.stages)

    def __str__(self) -> str:
        """As in a status: `14/19`."""
        return f"{self.finished}/{self.total}"


def progress(machine: Machine) -> BuildProgress:
    """Count."""
    counts: dict[str, dict[str, int]] = {}
    stopped = 0
    for task in machine.needed():
        row = counts.setdefault(task.operation, {})
        state = machine.states[task.id]
        name = "waiting" if state in _WAITING or state is TaskState.STOPPED else state.value
        stopped += state is TaskState.STOPPED
        row[name] = row.get(name, 0) + 1
    return BuildProgress(
        tuple(StageProgress(operation, **row) for operation, row in counts.items()), stopped
    )
