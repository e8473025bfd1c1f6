"""Where the tasks of a plan stand in a drawing: columns by depth, few crossings. Pure.

A task's column is the longest way to it, so every arrow points right. Within a column tasks are
ordered by the mean place of their neighbours, swept a few times from left to right and back
(Sugiyama's method with barycentres).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genai_cli.events import TaskView

__all__ = ["Layout", "lay_out"]

_SWEEPS = 4


@dataclass(frozen=True)
class Layout:
    """A drawing's grid.

    Attributes:
        columns: Ids of the tasks, column by column, from top to bottom.
        edges: (from, to), each once.
    """

    columns: tuple[tuple[str, ...], ...]
    edges: tuple[tuple[str, str], ...]


def lay_out(tasks: Sequence[TaskView]) -> Layout:
    """Place tasks; each must come behind those that it reads from."""
    known = {task.id for task in tasks}
    edges = tuple(
        (before, task.id)
        for task in tasks
        for before in dict.fromkeys(task.after)
        if before in known
    )
    depth: dict[str, int] = {}
    for task in tasks:
        depth[task.id] = max(
            (depth[before] + 1 for before in task.after if before in depth), default=0
        )
    columns: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for task in tasks:
        columns[depth[task.id]].append(task.id)
    left: dict[str, list[str]] = {task.id: [] for task in tasks}
    right: dict[str, list[str]] = {task.id: [] for task in tasks}
    for before, after in edges:
        right[before].append(after)
        left[after].append(before)
    for _ in range(_SWEEPS):
        for column in columns[1:]:
            _order(column, left, columns)
        for column in columns[-2::-1]:
            _order(column, right, columns)
    return Layout(tuple(tuple(column) for column in columns), edges)


def _order(
    column: list[str], neighbours: Mapping[str, list[str]], columns: Sequence[Sequence[str]]
) -> None:
    """Sort a column by the mean relative height of the neighbours on one side."""
    height = {
        task: (index + 0.5) / len(other) for other in columns for index, task in enumerate(other)
    }

    def mean(task: str) -> float:
        near = neighbours[task]
        return sum(height[n] for n in near) / len(near) if near else height[task]

    column.sort(key=mean)
