"""From what is known now to what is to be done now, in one step.

`advance` is for shells that keep no state between two looks at the world, such as a controller: it
rebuilds a `Machine` from results by key. A shell that lives as long as the build drives a `Machine`
itself, event by event.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from genai_core.errors import GenAIError
from genai_core.names import Backend, Digest, Key, TaskId
from genai_planner.events import Failed, Found, Limits, Look, Missed, Start, Taken, Wait
from genai_planner.graph import FileRef, Plan, Result
from genai_planner.machine import Machine, State
from genai_planner.progress import Progress, progress

__all__ = ["Advice", "Known", "advance"]


@dataclass(frozen=True)
class Known:
    """What is known about keys; one that stands nowhere has not been looked up yet.

    Attributes:
        results: Records that stand.
        missing: Looked up in vain; key -> why.
        running: A worker is at it.
        failed: Failed for good.
    """

    results: Mapping[Key, Result] = field(default_factory=dict)
    missing: Mapping[Key, str] = field(default_factory=dict)
    running: Collection[Key] = ()
    failed: Mapping[Key, GenAIError] = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """What is to be done, and how far the build is.

    Attributes:
        look: Keys to look up before more can be said.
        start: Tasks to start.
        wait: Tasks that could start but for the limits.
        states: Of every task.
        failed: What went wrong, by task.
        containers: Target -> its package task's result.
        ended: Nothing is left to do.
        keys: Of the tasks that have one yet.
        progress: Counts of the tasks that are needed.
    """

    look: tuple[Look, ...]
    start: tuple[Start, ...]
    wait: tuple[Wait, ...]
    states: Mapping[TaskId, State]
    failed: Mapping[TaskId, GenAIError]
    containers: Mapping[str, Result]
    ended: bool
    keys: Mapping[TaskId, Key] = field(default_factory=dict)
    progress: Progress = field(default_factory=lambda: Progress(()))


def advance(
    plan: Plan,
    known: Known,
    limits: Limits,
    *,
    source: Mapping[str, FileRef],
    toolchains: Mapping[tuple[str, Backend | None], Digest],
) -> Advice:
    """Say what is to be done next; the same arguments give the same answer.

    Args:
        plan: All tasks.
        known: Results and workers, by key.
        limits: How much may run at once, what runs already included.
        source: Role -> file of the model's source.
        toolchains: (operation, backend) -> toolchain id.
    """
    machine = Machine(plan, source=source, toolchains=toolchains)
    open_looks: list[Look] = []
    queue = list(machine.begin())
    while queue:
        look = queue.pop()
        if look.key in known.results:
            queue += machine.handle(Found(look.task, known.results[look.key]))
        elif look.key in known.failed:
            queue += machine.handle(Failed(look.task, known.failed[look.key]))
        elif look.key in known.running:
            queue += machine.handle(Taken(look.task))
        elif look.key in known.missing:
            queue += machine.handle(Missed(look.task, known.missing[look.key]))
        else:
            open_looks.append(look)
    choice = machine.start(limits)
    packages = {target: machine.container(target) for target in plan.containers}
    return Advice(
        look=tuple(open_looks),
        start=choice.start,
        wait=choice.wait,
        states=dict(machine.states),
        failed=dict(machine.errors),
        containers={t: machine.results[p] for t, p in packages.items() if p is not None},
        ended=machine.ended,
        keys=dict(machine.keys),
        progress=progress(machine),
    )
