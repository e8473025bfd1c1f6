"""Tasks that are to start -> Jobs that are to be: documents, memory, what follows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Backend, SourceName, TaskId
from genai_core.sources.resolved import ResolvedSource
from genai_core.tasks.chain import ChainFile, ChainStep
from genai_core.tasks.task_file import TaskFile, Toolchain, pack
from genai_operator.builds.sources import SourcePlace
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.disk import disk_for
from genai_operator.jobs.job_manifest import MOST_TASK_BYTES, JobRequest, appearance, given_memory
from genai_operator.jobs.renewal import Wanted
from genai_operator.jobs.verdicts import NextAttempt
from genai_operator.kube.job import Link
from genai_operator.targets import build_targets as target_rules
from genai_operator.targets.build_targets import BuildTarget
from genai_planner.execution.advance import Advice
from genai_planner.execution.events import TaskStart
from genai_planner.phases import Exact, PlanPhase
from genai_planner.plan import Task
from genai_planner.task_chains import chain_behind
from genai_planner.task_files import TaskFiles, slug_of

__all__ = ["Looks", "Setting", "job_request"]

_HEADROOM = 1.25
_LEAST_BYTES = 384 << 20


@dataclass(frozen=True)
class Setting:
    """What all Jobs of a build have in common.

    Attributes:
        sources: By name: what each consists of.
        places: By name: where each lies.
        chain_tasks: How many tasks one pod may run; 1 = every task has its own.
    """

    name: str
    namespace: str
    spec: BuildSpec
    sources: Mapping[SourceName, ResolvedSource]
    places: Mapping[SourceName, SourcePlace]
    targets: Sequence[BuildTarget]
    toolchains: Mapping[tuple[str, Backend | None], Toolchain]
    chain_tasks: int = 1


_Place: TypeAlias = tuple[str, tuple[tuple[str, str], ...], bool, SourceName]


class Looks:
    """How Jobs of a build would be written now, whatever their tasks are.

    Args:
        setting: Of the build.
        accesses: To the store and each source.
        owner: The build's UID.
    """

    def __init__(
        self, setting: Setting, accesses: Mapping[SourceName, StoreAccess], owner: str
    ) -> None:
        self._setting = setting
        self._accesses = accesses
        self._owner = owner
        self._known: dict[_Place, Wanted] = {}

    def of(self, task: Task) -> Wanted:
        """The Job that would begin with a task."""
        target = target_rules.runs_in(task, self._setting.targets)
        reads, source = _reads_source(task), _source(task)
        place = (target.image, tuple(sorted(target.node_selector.items())), reads, source)
        if place not in self._known:
            digest = appearance(
                self._setting.spec.run,
                self._accesses[source],
                image=target.image,
                node_selector=target.node_selector,
                reads_source=reads,
            )
            self._known[place] = Wanted(digest, self._owner)
        return self._known[place]


def job_request(
    setting: Setting,
    phase: PlanPhase,
    advice: Advice,
    *,
    start: TaskStart,
    attempt: NextAttempt,
) -> JobRequest:
    """The Job that runs a task, and those that only it makes possible.

    Args:
        setting: Of the build.
        phase: Its tasks.
        advice: What is known about them.
        start: The task.
        attempt: Which attempt it is.
    """
    plan = phase.plan
    head = plan.task(start.task)
    target = target_rules.runs_in(head, setting.targets)

    def fits(task: Task) -> bool:
        other = target_rules.runs_in(task, setting.targets)
        place = (other.image, other.node_selector) == (target.image, target.node_selector)
        return place and not _reads_source(task)

    followers: tuple[TaskId, ...] = ()
    if isinstance(phase, Exact):
        followers = chain_behind(plan, head.id, advice.states, most=setting.chain_tasks, fits=fits)
    files = _task_files(setting)
    first = files.task_file(head, start)
    document: TaskFile | ChainFile = first
    while followers:
        members = (head.id, *followers)
        try:
            steps = tuple(
                files.step(plan, advice.results, members=members, index=index)
                for index in range(1, len(members))
            )
        except ValueError:  # a task of its own will fail for it, by name
            followers = followers[:-1]
            continue
        document = ChainFile(first=first, then=steps)
        if len(pack(document)) <= MOST_TASK_BYTES:
            break
        followers, document = followers[:-1], first
    tasks = [head, *(plan.task(task) for task in followers)]
    planned = max(int(max(task.demand.memory_bytes for task in tasks) * _HEADROOM), _LEAST_BYTES)
    return JobRequest(
        namespace=setting.namespace,
        key=start.key,
        operation=head.operation,
        task=head.id,
        document=document,
        image=target.image,
        memory_bytes=max(given_memory(setting.spec.run) or planned, attempt.memory_bytes),
        seconds=sum(task.demand.seconds for task in tasks),
        attempt=attempt.number,
        node_selector=target.node_selector,
        reads_source=_reads_source(head),
        source=_source(head),
        chain=tuple(Link(t.id, t.operation, phase.derivations[t.id]) for t in tasks[1:]),
        disk_bytes=disk_for(_read_bytes(document)),
        derivation=phase.derivations[head.id] if setting.chain_tasks > 1 else None,
    )


def _read_bytes(document: TaskFile | ChainFile) -> int:
    """Of all files that are known to be read."""
    tasks: list[TaskFile | ChainStep] = [document] if isinstance(document, TaskFile) else []
    if isinstance(document, ChainFile):
        tasks = [document.first, *document.then]
    return sum(
        file.size for task in tasks for files in task.inputs.values() for file in files.values()
    )


def _reads_source(task: Task) -> bool:
    return bool(task.sources())


def _source(task: Task) -> SourceName:
    """The source that a task reads; of one that reads none the model's, which is as good."""
    return next(iter(task.sources()), MODEL)


def _task_files(setting: Setting) -> TaskFiles:
    def locate(source: SourceName, role: str) -> str | None:
        resolved = setting.sources[source]
        return None if resolved.stored else setting.places[source].file(resolved.files[role].path)

    return TaskFiles(
        toolchains=setting.toolchains,
        locate=locate,
        slug=slug_of(setting.name, setting.places[MODEL].name),
        address=setting.spec.model.source,
    )
