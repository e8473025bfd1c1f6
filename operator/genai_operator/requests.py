"""Tasks that are to start -> Jobs that are to be: documents, memory, what follows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genai_core.chain import ChainFile, ChainStep, MadeFiles, StepCondition
from genai_core.kinds.build import BuildSpec
from genai_core.names import Backend, Digest, TaskId
from genai_core.operations import operation_of
from genai_core.record import model_slug
from genai_core.resolved import ResolvedSource
from genai_core.selection import matches, unmet
from genai_core.task import TaskFile, TaskFileInput, Toolchain, pack
from genai_operator import targets as target_rules
from genai_operator.access import StoreAccess
from genai_operator.decide import Verdict
from genai_operator.jobs import MOST_TASK_BYTES, JobRequest, appearance, given_memory
from genai_operator.renewal import Wanted
from genai_operator.sources import SourcePlace
from genai_operator.targets import BuildTarget
from genai_operator.views import Link
from genai_planner.advance import Advice
from genai_planner.chains import chain_behind
from genai_planner.events import Start
from genai_planner.graph import FileRef, Plan, Task

__all__ = ["Looks", "Setting", "job_request"]

_HEADROOM = 1.25
_LEAST_BYTES = 384 << 20
_SAYS_NOTHING = {"", "model", "models", "onnx", "base"}


@dataclass(frozen=True)
class Setting:
    """What all Jobs of a build have in common.

    Attributes:
        folder: Of the model.
        chain_tasks: How many tasks one pod may run; 1 = every task has its own.
    """

    name: str
    namespace: str
    spec: BuildSpec
    source: ResolvedSource
    folder: SourcePlace
    targets: Sequence[BuildTarget]
    toolchains: Mapping[tuple[str, Backend | None], Toolchain]
    chain_tasks: int = 1


class Looks:
    """How Jobs of a build would be written now, whatever their tasks are.

    Args:
        setting: Of the build.
        access: To store and source.
        owner: The build's UID.
    """

    def __init__(self, setting: Setting, access: StoreAccess, owner: str) -> None:
        self._setting = setting
        self._access = access
        self._owner = owner
        self._known: dict[tuple[str, tuple[tuple[str, str], ...], bool], Wanted] = {}

    def of(self, task: Task) -> Wanted:
        """The Job that would begin with a task."""
        target = target_rules.runs_in(task, self._setting.targets)
        reads = _reads_source(task)
        place = (target.image, tuple(sorted(target.node_selector.items())), reads)
        if place not in self._known:
            digest = appearance(
                self._setting.spec.run,
                self._access,
                image=target.image,
                node_selector=target.node_selector,
                reads_source=reads,
            )
            self._known[place] = Wanted(digest, self._owner)
        return self._known[place]


def job_request(
    setting: Setting,
    plan: Plan,
    advice: Advice,
    *,
    start: Start,
    verdict: Verdict,
    derivations: Mapping[TaskId, Digest],
) -> JobRequest:
    """The Job that runs a task, and those that only it makes possible.

    Args:
        setting: Of the build.
        plan: Its tasks.
        advice: What is known about them.
        start: The task.
        verdict: Of its earlier attempts.
        derivations: Of every task that may follow it.
    """
    head = plan.task(start.task)
    target = target_rules.runs_in(head, setting.targets)

    def fits(task: Task) -> bool:
        other = target_rules.runs_in(task, setting.targets)
        place = (other.image, other.node_selector) == (target.image, target.node_selector)
        return place and not _reads_source(task)

    followers = chain_behind(plan, head.id, advice.states, most=setting.chain_tasks, fits=fits)
    first = _first(setting, head, start)
    document: TaskFile | ChainFile = first
    while followers:
        members = (head.id, *followers)
        try:
            steps = tuple(
                _step(setting, plan, advice, members=members, index=index)
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
        memory_bytes=max(given_memory(setting.spec.run) or planned, verdict.memory_bytes),
        seconds=sum(task.demand.seconds for task in tasks),
        attempt=verdict.attempt,
        node_selector=target.node_selector,
        reads_source=_reads_source(head),
        chain=tuple(Link(t.id, t.operation, derivations[t.id]) for t in tasks[1:]),
    )


def _reads_source(task: Task) -> bool:
    return any(part.task is None for parts in task.inputs.values() for part in parts)


def _first(setting: Setting, task: Task, start: Start) -> TaskFile:
    row = operation_of(task.operation, task.backend)
    from_source = {
        name for name, parts in task.inputs.items() if any(p.task is None for p in parts)
    }
    return TaskFile(
        id=task.id,
        operation=task.operation,
        backend=task.backend,
        key=start.key,
        code_version=row.code_version,
        config=task.config.model_dump(mode="json"),
        inputs={
            name: _files(setting, files, from_source=name in from_source)
            for name, files in start.inputs.items()
        },
        toolchain=setting.toolchains[task.operation, row.backend],
        slug=_slug(setting),
        source=setting.spec.model.source,
    )


def _step(
    setting: Setting, plan: Plan, advice: Advice, *, members: Sequence[TaskId], index: int
) -> ChainStep:
    """Describe a task that waits for others of the chain.

    Raises:
        ValueError: A task that ended left no file that this one must have.
    """
    task = plan.task(members[index])
    row = operation_of(task.operation, task.backend)
    known: dict[str, dict[str, TaskFileInput]] = {}
    made: dict[str, list[MadeFiles]] = {}
    for name, selections in task.inputs.items():
        for selection in selections:
            assert selection.task is not None
            if selection.task in members[:index]:
                step = members.index(selection.task)
                made.setdefault(name, []).append(MadeFiles(step=step, patterns=selection.patterns))
                continue
            offered = advice.results[selection.task].outputs
            if absent := unmet(selection.patterns, offered):
                raise ValueError(f"{selection.task} has no {', '.join(absent)}")
            chosen = {path: offered[path] for path in matches(selection.patterns, offered)}
            known[name] = dict(
                sorted((known.get(name, {}) | _files(setting, chosen, from_source=False)).items())
            )
    when = None
    if task.when is not None and task.when.task in members[:index]:
        when = StepCondition(step=members.index(task.when.task), within=task.when.within)
    return ChainStep(
        id=task.id,
        operation=task.operation,
        backend=task.backend,
        code_version=row.code_version,
        config=task.config.model_dump(mode="json"),
        inputs=known,
        made={name: tuple(parts) for name, parts in made.items()},
        toolchain=setting.toolchains[task.operation, row.backend],
        when=when,
    )


def _files(
    setting: Setting, files: Mapping[str, FileRef], *, from_source: bool
) -> dict[str, TaskFileInput]:
    """The files of an input, by name: selections have no order, and a Job is compared by bytes."""
    return {
        path: TaskFileInput(
            sha256=file.sha256,
            size=file.size,
            semantic=file.semantic,
            path=(
                setting.folder.file(setting.source.files[path].path)
                if from_source and not setting.source.stored
                else None
            ),
        )
        for path, file in sorted(files.items())
    }


def _slug(setting: Setting) -> str:
    name = setting.folder.name
    return model_slug(setting.name if name.lower() in _SAYS_NOTHING else name)
