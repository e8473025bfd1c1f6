"""Chains: tasks that one worker runs in order, each on the outputs of those before it.

A key is made of content, so only the first task of a chain has one when the chain is handed out.
Each later task is described by its operation, the files that are known already, and the outputs of
earlier tasks that it reads. The worker fills those in from the records as they are written; the
result is an ordinary task file with an ordinary key. So every task of a chain is looked up and
committed by itself, and another build finds it under its usual key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from genai_core.errors import GenAIError
from genai_core.files.paths import RelativePath
from genai_core.names import Backend, Digest
from genai_core.tasks.keys import task_key
from genai_core.tasks.record import Record
from genai_core.tasks.selection import matches, unmet
from genai_core.tasks.task_file import TaskFile, TaskFileInput, Toolchain

__all__ = ["ChainFile", "ChainStep", "MadeFiles", "StepCondition", "is_wanted", "task_file"]

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_Step = Annotated[int, Field(ge=0)]


class MadeFiles(BaseModel):
    """Files that an earlier task of the chain makes."""

    model_config = _FROZEN

    step: _Step
    """Which: 0 is the chain's first."""
    patterns: tuple[str, ...]


class StepCondition(BaseModel):
    """The task is wanted only if an earlier one's fact `within` is this."""

    model_config = _FROZEN

    step: _Step
    within: bool


class ChainStep(BaseModel):
    """A task behind the first; see `TaskFile` for what is not said here."""

    model_config = _FROZEN

    id: str
    operation: str
    backend: Backend | None = None
    code_version: int
    config: dict[str, Any]
    inputs: dict[RelativePath, dict[RelativePath, TaskFileInput]] = Field(default_factory=dict)
    """Files that are known already."""
    made: dict[RelativePath, tuple[MadeFiles, ...]] = Field(default_factory=dict)
    """Input name -> files of earlier tasks of the chain."""
    toolchain: Toolchain
    when: StepCondition | None = None


class ChainFile(BaseModel):
    """A chain as it is handed to `genai-stage job`."""

    model_config = _FROZEN

    kind: Literal["chain"] = "chain"
    first: TaskFile
    then: tuple[ChainStep, ...]


def is_wanted(step: ChainStep, records: Sequence[Record]) -> bool:
    """Whether a step's condition holds.

    Args:
        step: Of a chain.
        records: Of the steps before it, in order.
    """
    if step.when is None:
        return True
    found = records[step.when.step].facts.get("within") is True
    return found == step.when.within


def task_file(step: ChainStep, chain: ChainFile, records: Sequence[Record]) -> TaskFile:
    """Fill a step's inputs in.

    Args:
        step: Of the chain.
        chain: Whose first task says what all have in common.
        records: Of the steps before it, in order.

    Raises:
        GenAIError: A file that must be there is not, or two have one path.
    """
    inputs = {name: dict(files) for name, files in step.inputs.items()}
    for name, selections in step.made.items():
        files = inputs.setdefault(name, {})
        for selection in selections:
            _add(step.id, name, files, selection, records[selection.step])
    inputs = {name: files for name, files in inputs.items() if files}
    key = task_key(
        step.operation,
        step.code_version,
        toolchain_id=Digest(step.toolchain.id),
        config=step.config,
        inputs=_identities(inputs),
    )
    return TaskFile(
        id=step.id,
        operation=step.operation,
        backend=step.backend,
        key=key,
        code_version=step.code_version,
        config=step.config,
        inputs=inputs,
        toolchain=step.toolchain,
        slug=chain.first.slug,
        source=chain.first.source,
        threads=chain.first.threads,
    )


def _add(
    step: str, name: str, files: dict[str, TaskFileInput], selection: MadeFiles, record: Record
) -> None:
    absent = unmet(selection.patterns, record.outputs)
    if absent:
        raise GenAIError(f"{record.operation} left no {', '.join(absent)}", where=step)
    for path in matches(selection.patterns, record.outputs):
        output = record.outputs[path]
        file = TaskFileInput(sha256=output.sha256, size=output.size, semantic=output.semantic)
        if files.setdefault(path, file) != file:
            raise GenAIError(f"input {name} would hold two files {path}", where=step)


def _identities(
    inputs: Mapping[str, Mapping[str, TaskFileInput]],
) -> dict[str, dict[str, Digest]]:
    return {
        name: {path: Digest(file.identity) for path, file in files.items()}
        for name, files in inputs.items()
    }
