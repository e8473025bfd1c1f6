"""Tasks that could start, those that run, and which start next: by chains and by memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from genai_core.names import TaskId
from genai_planner.execution.events import TaskWait, WorkLimits

__all__ = ["ChosenTask", "ReadyTasks"]

_MANY_CANDIDATES = 64
"""How many ready tasks are tried when memory is short; the rest wait for the next event."""


@dataclass(frozen=True)
class ChosenTask:
    """A task that starts now.

    Attributes:
        alone: Nothing else may run beside it.
        tight: It needs more memory than is left.
    """

    task: TaskId
    alone: bool
    tight: bool


class ReadyTasks:
    """The tasks of one plan that are ready or run.

    Args:
        ranks: Task -> seconds to the end of the longest chain behind it; in the plan's order.
        memory: Task -> bytes that it needs.
    """

    def __init__(self, ranks: Mapping[TaskId, float], memory: Mapping[TaskId, int]) -> None:
        self._ranks = ranks
        self._memory = memory
        self._order = {task: index for index, task in enumerate(memory)}
        self._heap: list[tuple[float, int, TaskId]] = []
        self._running: dict[TaskId, int] = {}
        self._alone: set[TaskId] = set()

    @property
    def running(self) -> tuple[TaskId, ...]:
        """Tasks that were started and have not ended."""
        return tuple(self._running)

    def add(self, task: TaskId) -> None:
        """It could start."""
        heapq.heappush(self._heap, (-self._ranks[task], self._order[task], task))

    def started(self, task: TaskId) -> None:
        """It runs, whoever started it."""
        self._running[task] = self._memory[task]

    def stopped(self, task: TaskId, *, alone: bool = False) -> None:
        """It runs no more and has not ended; `alone`: next time beside nothing else."""
        self._running.pop(task)
        if alone:
            self._alone.add(task)

    def ended(self, task: TaskId) -> None:
        """It has ended, and may not have run."""
        self._running.pop(task, None)
        self._alone.discard(task)

    def choose(
        self, limits: WorkLimits, is_ready: Callable[[TaskId], bool]
    ) -> tuple[list[ChosenTask], list[TaskWait]]:
        """What starts now: the longest chains first, as far as memory goes.

        A task that needs more than there is runs alone rather than never.

        Args:
            limits: Tasks and memory.
            is_ready: Whether a task that was added could start still.
        """
        chosen: list[ChosenTask] = []
        waits: list[TaskWait] = []
        passed: list[tuple[float, int, TaskId]] = []
        left = limits.memory_bytes - sum(self._running.values())
        while self._heap and len(passed) < _MANY_CANDIDATES:
            at_work = len(self._running) + limits.busy
            if at_work >= max(limits.parallelism, 1) or self._runs_exclusively():
                break
            entry = heapq.heappop(self._heap)
            task = entry[2]
            if task in self._running or not is_ready(task):
                continue
            alone = task in self._alone
            need = self._memory[task]
            if self._running and (alone or need > left):
                passed.append(entry)
                why = "was out of memory and runs alone" if alone else _memory_text(need, left)
                waits.append(TaskWait(task, why))
                if alone:
                    break  # nothing more starts, so that its turn comes
                continue
            self.started(task)
            chosen.append(ChosenTask(task, alone, tight=need > left))
            left -= need
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return chosen, waits

    def _runs_exclusively(self) -> bool:
        return any(task in self._running for task in self._alone)


def _memory_text(need: int, left: int) -> str:
    return f"waits for memory: needs {need / 1e9:.1f} GB, {max(left, 0) / 1e9:.1f} GB are left"
