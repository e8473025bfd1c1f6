"""Where the tasks of a plan stand in a drawing: a column for each stage, few crossings. Pure.

An operation's column is the longest way to it, so every arrow points right. Within a column tasks
are ordered by the mean place of their neighbours, swept a few times from left to right and back
(Sugiyama's method with barycentres). An arrow that follows from others is left out: nearly
everything reads what ingest made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from genai_cli.engine.events import PlannedTask

__all__ = ["GraphLayout", "lay_out"]

_SWEEPS = 4


@dataclass(frozen=True)
class GraphLayout:
    """A drawing's grid.

    Attributes:
        columns: Ids of the tasks, column by column, from top to bottom.
        edges: (from, to), each once, none that follows from others.
    """

    columns: tuple[tuple[str, ...], ...]
    edges: tuple[tuple[str, str], ...]


def lay_out(tasks: Sequence[PlannedTask]) -> GraphLayout:
    """Place tasks; each must come behind those that it reads from."""
    reads = _reduced(tasks)
    depth = _columns_of(tasks, reads)
    columns: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for task in tasks:
        columns[depth[task.id]].append(task.id)
    needed_by: dict[str, list[str]] = {task.id: [] for task in tasks}
    for reader, before in reads.items():
        for name in before:
            needed_by[name].append(reader)
    for _ in range(_SWEEPS):
        for column in columns[1:]:
            _order(column, reads, columns)
        for column in columns[-2::-1]:
            _order(column, needed_by, columns)
    return GraphLayout(
        tuple(tuple(column) for column in columns),
        tuple((before, task) for task, names in reads.items() for before in names),
    )


def _reduced(tasks: Sequence[PlannedTask]) -> dict[str, list[str]]:
    """What each task reads, without what it reaches through something else that it reads."""
    above: dict[str, set[str]] = {}
    found: dict[str, list[str]] = {}
    for task in tasks:
        direct = [name for name in dict.fromkeys(task.after) if name in above]
        indirect = set().union(*(above[name] for name in direct))
        found[task.id] = [name for name in direct if name not in indirect]
        above[task.id] = indirect | set(direct)
    return found


def _columns_of(tasks: Sequence[PlannedTask], reads: Mapping[str, list[str]]) -> dict[str, int]:
    """A column for each task: its operation's; its own depth where operations form a circle."""
    operation = {task.id: task.operation for task in tasks}
    edges = {(operation[before], task.operation) for task in tasks for before in reads[task.id]}
    rank = dict.fromkeys(operation.values(), 0)
    for _ in rank:
        for before, after in edges:
            rank[after] = max(rank[after], rank[before] + 1)
    if all(rank[before] < rank[after] for before, after in edges):
        return {task: rank[name] for task, name in operation.items()}
    depth: dict[str, int] = {}
    for task in tasks:
        depth[task.id] = _after(depth[before] for before in reads[task.id])
    return depth


def _after(depths: Iterable[int]) -> int:
    return max((depth + 1 for depth in depths), default=0)


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
