"""The state of a build: events in, instructions out.

    BLOCKED -> LOOKING -> READY -> RUNNING -> DONE     inputs known; looked up; missed; started; ran
                  └────────────────────────-> CACHED   the store had it
    RUNNING -> READY                                   its worker crashed: once more
    RUNNING -> BLOCKED, its inputs' makers -> LOOKING  bytes of an input were lost
    RUNNING | READY -> FAILED; behind it -> STOPPED
    BLOCKED -> SKIPPED                                 its condition does not hold

A task has a key as soon as everything that it reads from has ended, and not before: keys are made
of content. So an unchanged output under a changed key stops a rebuild by itself (early cutoff):
what reads it gets its old key again, and that is in the store.

Costs of an event are those of the tasks it touches, so large plans are no different from small
ones. `invariants.check` says what always holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from operator import is_
from typing import TypeAlias

from genai_core.errors import GenAIError
from genai_core.names import Backend, Digest, Key, TaskId
from genai_planner.execution.events import (
    Crashed,
    Event,
    Failed,
    Finished,
    FoundResult,
    InputLost,
    Look,
    Missed,
    StartChoice,
    Taken,
    TaskStart,
    WorkLimits,
)
from genai_planner.execution.ready_tasks import ReadyTasks
from genai_planner.execution.task_inputs import inputs_of, key_of
from genai_planner.fidelity import holds, is_resort, over_budget
from genai_planner.plan import FileRef, Plan, Result, Task
from genai_planner.sources import Sources

__all__ = ["ENDED", "KnownKeys", "Machine", "TaskState"]


class TaskState(StrEnum):
    """Of a task; see the module's docstring."""

    BLOCKED = "blocked"
    LOOKING = "looking"
    READY = "ready"
    RUNNING = "running"
    CACHED = "cached"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    SKIPPED = "skipped"


ENDED = frozenset(
    {TaskState.CACHED, TaskState.DONE, TaskState.FAILED, TaskState.STOPPED, TaskState.SKIPPED}
)
"""States that a task does not leave, but for lost outputs."""

_GOOD = frozenset({TaskState.CACHED, TaskState.DONE})

KnownKeys: TypeAlias = dict[TaskId, tuple[tuple[Result, ...], Key]]
"""Task -> its key, and the results that it was made of."""


class Machine:
    """See the module's docstring.

    Args:
        plan: Its tasks stand in an order in which they could run.
        sources: By name.
        toolchains: (operation, backend) -> toolchain id.
        known: Keys of another machine with the same plan, sources and toolchains, which hold as
            long as the very same results come again; added to.

    Raises:
        ValueError: A task stands before one that it depends on, or two have one id.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        sources: Sources,
        toolchains: Mapping[tuple[str, Backend | None], Digest],
        known: KnownKeys | None = None,
    ) -> None:
        self.plan = plan
        self.sources = sources
        self.toolchains = toolchains
        self._known: KnownKeys = {} if known is None else known
        self.tasks: dict[TaskId, Task] = {}
        self.after: dict[TaskId, tuple[TaskId, ...]] = {}
        self.dependents: dict[TaskId, list[TaskId]] = {}
        for task in plan.tasks:
            after = task.after()
            if task.id in self.tasks or not all(other in self.tasks for other in after):
                raise ValueError(f"{task.id} stands twice or before what it depends on")
            self.tasks[task.id] = task
            self.after[task.id] = after
            self.dependents[task.id] = []
            for other in after:
                self.dependents[other].append(task.id)
        self.states = dict.fromkeys(self.tasks, TaskState.BLOCKED)
        self.counts = dict.fromkeys(TaskState, 0) | {TaskState.BLOCKED: len(self.tasks)}
        self.keys: dict[TaskId, Key] = {}
        self.results: dict[TaskId, Result] = {}
        self.errors: dict[TaskId, GenAIError] = {}
        self.why: dict[TaskId, str] = {}
        self._missing = {task: len(after) for task, after in self.after.items()}
        memory = {task.id: task.demand.memory_bytes for task in plan.tasks}
        self._work = ReadyTasks(self._ranks(), memory)
        self._looks: list[Look] = []

    def _ranks(self) -> dict[TaskId, float]:
        """Seconds from a task's start to the end of the longest chain behind it."""
        ranks: dict[TaskId, float] = {}
        for task in reversed(self.plan.tasks):
            behind = max(
                (ranks[d] for d in self.dependents[task.id] if not self._hoped_not(d, task.id)),
                default=0.0,
            )
            ranks[task.id] = task.demand.seconds + behind
        return ranks

    def _hoped_not(self, task: TaskId, other: TaskId) -> bool:
        """It is needed only if what the other one finds is bad."""
        when = self.tasks[task].when
        return when is not None and is_resort(when) and when.task == other

    # What a shell asks

    @property
    def ended(self) -> bool:
        """Nothing can happen any more."""
        return sum(self.counts[state] for state in ENDED) == len(self.tasks)

    @property
    def running(self) -> tuple[TaskId, ...]:
        """Tasks that were started and have not ended."""
        return self._work.running

    def container(self, target: str) -> TaskId | None:
        """The package task that made a target's container; None where none has."""
        for task in self.plan.containers.get(target, ()):
            if self.states[task] in _GOOD:
                return task
        return None

    def needed(self) -> tuple[Task, ...]:
        """The tasks without those that turned out, or are still hoped, not to be needed."""
        dormant: set[TaskId] = set()
        for task_id, task in self.tasks.items():
            state, when = self.states[task_id], task.when
            hoped_not = when is not None and is_resort(when) and when.task not in self.results
            if state is TaskState.SKIPPED or (
                state is TaskState.BLOCKED
                and (hoped_not or not dormant.isdisjoint(self.after[task_id]))
            ):
                dormant.add(task_id)
        return tuple(task for task_id, task in self.tasks.items() if task_id not in dormant)

    # What a shell does

    def begin(self) -> tuple[Look, ...]:
        """First lookups: of tasks that depend on none."""
        for task, missing in self._missing.items():
            if missing == 0 and self.states[task] is TaskState.BLOCKED:
                self._release(task)
        return self._taken()

    def handle(self, event: Event) -> tuple[Look, ...]:
        """Take in what happened; returns lookups that it makes possible.

        Raises:
            ValueError: The event does not fit the task's state.
        """
        match event:
            case FoundResult(task, result):
                self._expect(task, TaskState.LOOKING, TaskState.READY, TaskState.RUNNING)
                self._end(task, TaskState.CACHED, result)
            case Missed(task, why):
                self._expect(task, TaskState.LOOKING)
                self.why[task] = why
                self._enqueue(task)
            case Finished(task, result):
                self._expect(task, TaskState.RUNNING)
                self._end(task, TaskState.DONE, result)
            case Taken(task):
                self._expect(task, TaskState.LOOKING)
                self._set(task, TaskState.RUNNING)
                self._work.started(task)
            case Failed(task, error):
                self._expect(task, TaskState.LOOKING, TaskState.READY, TaskState.RUNNING)
                self._fail(task, error)
            case Crashed(task, alone):
                self._expect(task, TaskState.RUNNING)
                self._work.stopped(task, alone=alone)
                self._enqueue(task)
            case InputLost(task):
                self._expect(task, TaskState.RUNNING)
                self._look_at_inputs_again(task)
        return self._taken()

    def start(self, limits: WorkLimits) -> StartChoice:
        """Choose what to start now; see `ready_tasks`."""
        chosen, waits = self._work.choose(limits, lambda task: self.states[task] is TaskState.READY)
        starts: list[TaskStart] = []
        for choice in chosen:
            task = choice.task
            self._set(task, TaskState.RUNNING)
            starts.append(
                TaskStart(
                    task,
                    self.keys[task],
                    self.inputs(task),
                    alone=choice.alone,
                    tight=choice.tight,
                )
            )
        return StartChoice(tuple(starts), tuple(waits))

    def inputs(self, task: TaskId) -> dict[str, dict[str, FileRef]]:
        """The files of a task whose dependencies have ended well.

        Raises:
            ValueError: A file that must be there is not, or two selections give one path.
        """
        return inputs_of(self.tasks[task], self.results, self.sources)

    # Transitions

    def _taken(self) -> tuple[Look, ...]:
        looks, self._looks = tuple(self._looks), []
        return looks

    def _set(self, task: TaskId, state: TaskState) -> None:
        self.counts[self.states[task]] -= 1
        self.counts[state] += 1
        self.states[task] = state

    def _expect(self, task: TaskId, *states: TaskState) -> None:
        if self.states[task] not in states:
            wanted = " or ".join(states)
            raise ValueError(f"{task} is {self.states[task]}, not {wanted}")

    def _release(self, task: TaskId) -> None:
        """Everything that it waits for has ended well: look it up, unless it is not needed."""
        when = self.tasks[task].when
        if when is not None and not holds(when, self.results[when.task]):
            self._do_without(task)
            return
        try:
            self.keys[task] = self._key(task)
        except ValueError as error:
            self._fail(task, GenAIError(str(error), where=task))
            return
        self._look(task)

    def _look(self, task: TaskId) -> None:
        self._set(task, TaskState.LOOKING)
        self._looks.append(Look(task, self.tasks[task].operation, self.keys[task]))

    def _key(self, task: TaskId) -> Key:
        made = tuple(self.results[other] for other in self.after[task])
        before = self._known.get(task)
        if before is not None and all(map(is_, before[0], made)):
            return before[1]
        key = key_of(self.tasks[task], self.inputs(task), self.toolchains)
        self._known[task] = made, key
        return key

    def _do_without(self, task: TaskId) -> None:
        rivals = self.tasks[task].rivals
        if rivals:
            self._fail(task, over_budget(rivals, self.results))
        else:
            self._spread(task, TaskState.SKIPPED)

    def _enqueue(self, task: TaskId) -> None:
        self._set(task, TaskState.READY)
        self._work.add(task)

    def _end(self, task: TaskId, state: TaskState, result: Result) -> None:
        self._work.ended(task)
        self._set(task, state)
        self.results[task] = result
        for other in self.dependents[task]:
            if self.states[other] is not TaskState.BLOCKED:
                continue  # it had read the output before that was lost and is made again
            self._missing[other] -= 1
            if self._missing[other] == 0:
                self._release(other)

    def _fail(self, task: TaskId, error: GenAIError) -> None:
        self._work.ended(task)
        self._set(task, TaskState.FAILED)
        self.errors[task] = error
        for other in self.dependents[task]:
            self._spread(other, TaskState.STOPPED)

    def _spread(self, task: TaskId, state: TaskState) -> None:
        """A task that will never run, and what depends on it."""
        waiting = [task]
        while waiting:
            one = waiting.pop()
            if self.states[one] is TaskState.BLOCKED:
                self._set(one, state)
                waiting += self.dependents[one]

    def _look_at_inputs_again(self, task: TaskId) -> None:
        self._work.stopped(task)
        self._set(task, TaskState.BLOCKED)
        # A maker may be looked up already, for another task that found the same.
        self._missing[task] = sum(self.states[other] not in _GOOD for other in self.after[task])
        for maker in self.after[task]:
            if self.states[maker] not in _GOOD:
                continue
            for other in self.dependents[maker]:
                self._missing[other] += self.states[other] is TaskState.BLOCKED
            self._look(maker)
