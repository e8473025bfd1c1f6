"""Which tasks are better run by one worker, one after the other.

Starting a worker takes seconds in a cluster: its pod, its imports, its inputs. Where a task's
result makes exactly one other task possible, a second worker could not begin any earlier, so the
first one goes on instead and finds what it needs on its own disk. Nothing is joined that could run
side by side, nor where the memory that one pod holds for its largest task costs more than the
further pods would.

A task that waits for another has no key yet. It has a *derivation* though: what it does to what is
made from the source, named by how it is made instead of by content. Two plans that hold the same
derivation would do the same work, so that is how a chain's later tasks are recognized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from genai_core.canonical import digest_json
from genai_core.names import Backend, Digest, TaskId
from genai_core.operations import operation_of
from genai_core.tasks.selection import matches
from genai_planner.execution.machine import TaskState
from genai_planner.plan import Demand, Plan, Selection, Task
from genai_planner.sources import Sources

__all__ = ["chain_behind", "derivations", "is_cheaper_joined"]

WORKER_SECONDS = 4.0
"""What a pod takes beyond its task: to be scheduled, started, imported into, and seen to end."""

_GOOD = frozenset({TaskState.CACHED, TaskState.DONE})


def derivations(
    plan: Plan,
    *,
    sources: Sources,
    toolchains: Mapping[tuple[str, Backend | None], Digest],
) -> dict[TaskId, Digest]:
    """Name every task by how it is made, down to the sources' content."""
    found: dict[TaskId, Digest] = {}
    for task in plan.tasks:
        row = operation_of(task.operation, task.backend)
        inputs = {
            name: [
                [
                    found[s.task] if s.task is not None else _identities(s, sources),
                    sorted(s.patterns),
                ]
                for s in selections
            ]
            for name, selections in task.inputs.items()
        }
        found[task.id] = digest_json(
            {
                "schema": "genai.derivation/1",
                "operation": task.operation,
                "codeVersion": str(row.code_version),
                "toolchain": toolchains[task.operation, row.backend],
                "config": task.config.model_dump(mode="json"),
                "inputs": inputs,
            }
        )
    return found


def _identities(selection: Selection, sources: Sources) -> dict[str, Digest]:
    assert selection.source is not None
    files = sources[selection.source].files
    return {path: files[path].identity for path in matches(selection.patterns, files)}


def chain_behind(
    plan: Plan,
    head: TaskId,
    states: Mapping[TaskId, TaskState],
    *,
    most: int,
    fits: Callable[[Task], bool],
) -> tuple[TaskId, ...]:
    """The tasks that the worker of `head` goes on with, in order.

    Args:
        plan: Made from what ingest found: a forecast's tasks may not be those that follow.
        head: A task that is about to run.
        states: Of every task.
        most: Tasks in one chain, `head` included.
        fits: Whether a task could run where `head` does.
    """
    members = [head]
    demands = [plan.task(head).demand]
    while len(members) < most:
        possible = {
            task.id: task
            for member in members
            for task in plan.dependents(member)
            if states[task.id] is TaskState.BLOCKED
            and task.id not in members
            and _is_made_possible(task, members, states)
        }
        if len(possible) != 1:
            break
        (further,) = possible.values()
        if not fits(further) or not is_cheaper_joined(demands, further.demand):
            break
        members.append(further.id)
        demands.append(further.demand)
    return tuple(members[1:])


def _is_made_possible(
    task: Task, members: Sequence[TaskId], states: Mapping[TaskId, TaskState]
) -> bool:
    """It waits for members, and for nothing else; nobody hopes that it will not be needed."""
    if not all(other in members or states[other] in _GOOD for other in task.after()):
        return False
    when = task.when
    return when is None or when.within or when.task not in members


def is_cheaper_joined(demands: list[Demand], further: Demand) -> bool:
    """Whether one more task in the pod holds no more memory for longer than a pod of its own."""
    every = [*demands, further]
    peak = max(demand.memory_bytes for demand in every)
    joined = peak * (WORKER_SECONDS + sum(demand.seconds for demand in every))
    before = max(demand.memory_bytes for demand in demands)
    apart = before * (WORKER_SECONDS + sum(demand.seconds for demand in demands))
    apart += further.memory_bytes * (WORKER_SECONDS + further.seconds)
    return joined <= apart
