"""From what is known now to what is to be done now, in one step.

`advance` is for shells that keep no state between two looks at the world, such as a controller: it
rebuilds a `Machine` by asking about keys, all that can be asked about at a time together. A shell
that lives as long as the build drives a `Machine` itself, event by event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from genai_core.errors import GenAIError
from genai_core.names import Backend, Digest, Key, TaskId
from genai_planner.execution.events import Event, Look, TaskStart, TaskWait, WorkLimits
from genai_planner.execution.machine import KnownKeys, Machine, TaskState
from genai_planner.execution.progress import BuildProgress, progress
from genai_planner.fidelity import measured
from genai_planner.plan import Plan, Result
from genai_planner.sources import Sources

__all__ = ["Advice", "Ask", "advance"]


Ask: TypeAlias = Callable[[Sequence[Look]], Iterable[Event]]
"""Answers look-ups with what is known: `Found`, `Missed`, `Taken` or `Failed` for each."""


@dataclass(frozen=True)
class Advice:
    """What is to be done, and how far the build is.

    Attributes:
        start: Tasks to start.
        wait: Tasks that could start but for the limits.
        states: Of every task.
        failed: What went wrong, by task.
        results: Of the tasks whose result stands.
        containers: Target -> its package task's result.
        ended: Nothing is left to do.
        keys: Of the tasks that have one yet.
        progress: Counts of the tasks that are needed.
        fidelity: Target -> what was measured of its container, where something was.
    """

    start: tuple[TaskStart, ...]
    wait: tuple[TaskWait, ...]
    states: Mapping[TaskId, TaskState]
    failed: Mapping[TaskId, GenAIError]
    results: Mapping[TaskId, Result]
    containers: Mapping[str, Result]
    ended: bool
    keys: Mapping[TaskId, Key] = field(default_factory=dict)
    progress: BuildProgress = field(default_factory=lambda: BuildProgress(()))
    fidelity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def advance(
    plan: Plan,
    ask: Ask,
    limits: Callable[[], WorkLimits],
    *,
    sources: Sources,
    toolchains: Mapping[tuple[str, Backend | None], Digest],
    known: KnownKeys | None = None,
) -> Advice:
    """Say what is to be done next; the same answers give the same advice.

    Args:
        plan: All tasks.
        ask: Called with what can be looked up now, again and again until nothing is left to ask.
        limits: How much may run at once, what runs already included; asked when all is looked up.
        sources: By name.
        toolchains: (operation, backend) -> toolchain id.
        known: See `Machine`.
    """
    machine = Machine(plan, sources=sources, toolchains=toolchains, known=known)
    looks: Sequence[Look] = machine.begin()
    while looks:
        looks = [look for event in ask(looks) for look in machine.handle(event)]
    choice = machine.start(limits())
    packages = {target: machine.container(target) for target in plan.containers}
    return Advice(
        start=choice.start,
        wait=choice.wait,
        states=dict(machine.states),
        failed=dict(machine.errors),
        results=dict(machine.results),
        containers={t: machine.results[p] for t, p in packages.items() if p is not None},
        ended=machine.ended,
        keys=dict(machine.keys),
        progress=progress(machine),
        fidelity={
            target: facts
            for target, package in packages.items()
            if (facts := measured(machine.plan, machine.results, package)) is not None
        },
    )
