"""What workers are told: a task that starts -> its file, on a laptop as in a cluster.

A worker that goes on with further tasks is told those too, as steps of a chain: what they read of
each other has no digest yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from genai_core.names import Backend, SourceName, TaskId
from genai_core.operations import operation_of
from genai_core.redaction import hidden_queries
from genai_core.tasks.chain import ChainStep, MadeFiles, StepCondition
from genai_core.tasks.record import model_slug
from genai_core.tasks.selection import matches, unmet
from genai_core.tasks.task_file import TaskFile, TaskFileInput, Toolchain
from genai_planner.execution.events import TaskStart
from genai_planner.plan import FileRef, Plan, Result, Task

__all__ = ["TaskFiles", "slug_of"]

_SAYS_NOTHING = {"", "model", "models", "onnx", "base"}


def slug_of(build: str, folder: str) -> str:
    """A readable name of the model: its folder's, or the build's where that says nothing."""
    return model_slug(build if folder.lower() in _SAYS_NOTHING else folder)


@dataclass(frozen=True)
class TaskFiles:
    """Writes what workers are told.

    Attributes:
        toolchains: (operation, backend) -> the libraries that compute it.
        locate: (source, role) -> where the file lies outside the store; None: it is the store's.
        slug: See `slug_of`.
        address: Of the model, for people.
    """

    toolchains: Mapping[tuple[str, Backend | None], Toolchain]
    locate: Callable[[SourceName, str], str | None]
    slug: str
    address: str

    def task_file(self, task: Task, start: TaskStart, *, threads: int = 1) -> TaskFile:
        """The file of a task whose inputs are known.

        Args:
            task: Of the plan.
            start: Its key and inputs.
            threads: That it may use.
        """
        row = operation_of(task.operation, task.backend)
        return TaskFile(
            id=task.id,
            operation=task.operation,
            backend=task.backend,
            key=start.key,
            code_version=row.code_version,
            config=task.config.model_dump(mode="json"),
            inputs={
                name: self._files(files, source=_source_of(task, name))
                for name, files in start.inputs.items()
            },
            toolchain=self.toolchains[task.operation, row.backend],
            slug=self.slug,
            source=hidden_queries(self.address),
            threads=threads,
        )

    def step(
        self,
        plan: Plan,
        results: Mapping[TaskId, Result],
        *,
        members: Sequence[TaskId],
        index: int,
    ) -> ChainStep:
        """Describe a task that waits for others of its chain.

        Args:
            plan: The tasks.
            results: Of the tasks that have ended.
            members: The chain.
            index: Which of them is described; not the first.

        Raises:
            ValueError: A task that ended left no file that this one must have.
        """
        task = plan.task(members[index])
        row = operation_of(task.operation, task.backend)
        known: dict[str, dict[str, FileRef]] = {}
        made: dict[str, list[MadeFiles]] = {}
        for name, selections in task.inputs.items():
            for selection in selections:
                assert selection.task is not None
                if selection.task in members[:index]:
                    step = members.index(selection.task)
                    made.setdefault(name, []).append(
                        MadeFiles(step=step, patterns=selection.patterns)
                    )
                    continue
                offered = results[selection.task].outputs
                if absent := unmet(selection.patterns, offered):
                    raise ValueError(f"{selection.task} has no {', '.join(absent)}")
                chosen = {path: offered[path] for path in matches(selection.patterns, offered)}
                known.setdefault(name, {}).update(chosen)
        when = None
        if task.when is not None and task.when.task in members[:index]:
            when = StepCondition(step=members.index(task.when.task), within=task.when.within)
        return ChainStep(
            id=task.id,
            operation=task.operation,
            backend=task.backend,
            code_version=row.code_version,
            config=task.config.model_dump(mode="json"),
            inputs={name: self._files(files, source=None) for name, files in known.items()},
            made={name: tuple(parts) for name, parts in made.items()},
            toolchain=self.toolchains[task.operation, row.backend],
            when=when,
        )

    def _files(
        self, files: Mapping[str, FileRef], *, source: SourceName | None
    ) -> dict[str, TaskFileInput]:
        """The files of an input, by name: selections have no order, and a Job is compared."""
        return {
            path: TaskFileInput(
                sha256=file.sha256,
                size=file.size,
                semantic=file.semantic,
                path=self.locate(source, path) if source is not None else None,
            )
            for path, file in sorted(files.items())
        }


def _source_of(task: Task, name: str) -> SourceName | None:
    """The source whose files an input holds; None: outputs of tasks."""
    named = {selection.source for selection in task.inputs[name]} - {None}
    assert len(named) <= 1, f"{task.id}: input {name} mixes sources"
    return next(iter(named), None)
