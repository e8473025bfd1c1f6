"""What a task reads, and the key that follows from it: content alone, no order and no clock."""

from __future__ import annotations

from collections.abc import Mapping

from genai_core.names import Backend, Digest, Key, TaskId
from genai_core.operations import operation_of
from genai_core.tasks.keys import task_key
from genai_core.tasks.selection import matches, unmet
from genai_planner.plan import FileRef, Result, Selection, Task
from genai_planner.sources import Sources

__all__ = ["inputs_of", "key_of"]


def inputs_of(
    task: Task, results: Mapping[TaskId, Result], sources: Sources
) -> dict[str, dict[str, FileRef]]:
    """The files of a task: input -> path -> file.

    Args:
        task: One whose dependencies have ended well.
        results: Of these, at least.
        sources: By name.

    Raises:
        ValueError: A file that must be there is not, or two selections give one path.
    """
    found: dict[str, dict[str, FileRef]] = {}
    for name, selections in task.inputs.items():
        files: dict[str, FileRef] = {}
        for selection in selections:
            offered = _offered(selection, results, sources)
            chosen = matches(selection.patterns, offered)
            for path in chosen:
                known = files.setdefault(path, offered[path])
                if known is not offered[path] and known != offered[path]:
                    raise ValueError(f"{task.id}: input {name} would hold two files {path}")
            absent = unmet(selection.patterns, offered)
            if absent:
                maker = selection.task or f"the source {selection.source}"
                raise ValueError(f"{task.id}: {maker} has no {', '.join(absent)}")
        if files:
            found[name] = files
    return found


def key_of(
    task: Task,
    inputs: Mapping[str, Mapping[str, FileRef]],
    toolchains: Mapping[tuple[str, Backend | None], Digest],
) -> Key:
    """The key of a task.

    Args:
        task: Which.
        inputs: See `inputs_of`.
        toolchains: (operation, backend) -> toolchain id.
    """
    row = operation_of(task.operation, task.backend)
    return task_key(
        task.operation,
        row.code_version,
        toolchain_id=toolchains[task.operation, row.backend],
        config=task.config.model_dump(mode="json"),
        inputs={
            name: {path: file.identity for path, file in files.items()}
            for name, files in inputs.items()
        },
    )


def _offered(
    selection: Selection, results: Mapping[TaskId, Result], sources: Sources
) -> Mapping[str, FileRef]:
    if selection.task is not None:
        return results[selection.task].outputs
    assert selection.source is not None
    return sources[selection.source].files
