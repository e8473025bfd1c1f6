"""A task as it is handed to `genai-stage`: one JSON file, the same on a laptop and in a Job.

`genai-stage run TASK.json --store STORE --result RESULT.json` fetches the inputs, runs the
operation, commits the record and writes what came of it. Data goes from store to store; the two
JSON files are all that passes between the planner's side and the worker's.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from genai_core.errors import BadInput
from genai_core.files.paths import RelativePath
from genai_core.names import Backend
from genai_core.wire import Variable

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class TaskFileInput(BaseModel):
    """One file of an input."""

    model_config = _FROZEN

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the bytes; always verified against this."""
    size: int
    semantic: str | None = None
    """Stands for the file in the key where its bytes carry a clock."""
    path: str | None = None
    """A file of the source model outside the store: a local path, or an `s3://` address.

    None: a blob of the store.
    """

    @property
    def identity(self) -> str:
        """The digest that enters the key."""
        return self.semantic or self.sha256


class Toolchain(BaseModel):
    """The libraries that an operation computes with."""

    model_config = _FROZEN

    id: str
    versions: dict[str, str]


class TaskFile(BaseModel):
    """Everything that a worker needs to know."""

    model_config = _FROZEN

    schema_version: Literal[1] = 1
    id: str
    operation: str
    backend: Backend | None = None
    key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    code_version: int
    config: dict[str, Any]
    inputs: dict[RelativePath, dict[RelativePath, TaskFileInput]]
    """Input name -> relative path -> file; the stage sees each input as one folder."""
    toolchain: Toolchain
    slug: str = "model"
    """Readable name of the model: the first folder level of the store's view."""
    source: str = ""
    """Where the main input came from, for people; not part of the key."""
    threads: int = 1


class TaskResult(BaseModel):
    """What came of a task."""

    model_config = _FROZEN

    schema_version: Literal[1] = 1
    id: str
    outcome: Literal["run", "cached", "failed"]
    error: dict[str, str] | None = None
    """`GenAIError.as_dict()` where it failed."""
    exit_code: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    warnings: list[str] = Field(default_factory=list)
    record: str | None = None
    """Key of the record, where who asked could not know it."""
    facts: dict[str, int | bool] = Field(default_factory=dict)
    """What a helper Job found out."""


TASK_VARIABLE = Variable.TASK
_LARGEST_VARIABLE = 120_000
_MOST_VARIABLES = 6
"""With the rest of a Job below the 1.5 MB that an apiserver's store takes, and below a process's
2 MB of arguments and environment."""


def pack(document: BaseModel) -> str:
    """A document as an environment variable carries it: nothing a shell or kubelet would expand."""
    text = document.model_dump_json(exclude_none=True).encode()
    return base64.b64encode(zlib.compress(text, 9)).decode()


def task_variables(document: BaseModel, *, where: str = "task") -> dict[str, str]:
    """The environment variables that hand a document to a pod.

    One, unless it is so large that Linux would not start the process (E2BIG: a variable has less
    than 128 KiB): then several, GENAI_TASK, GENAI_TASK_2 and so on.

    Raises:
        BadInput: It is larger than a Job can be.
    """
    text = pack(document)
    size = _LARGEST_VARIABLE
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    if len(parts) > _MOST_VARIABLES:
        raise BadInput(
            f"its description takes {len(text)} bytes, and a pod can be given "
            f"{size * _MOST_VARIABLES}",
            where=where,
            remedy="build fewer graphs at once, or shorten golden.prompts",
        )
    return {
        TASK_VARIABLE if number == 1 else f"{TASK_VARIABLE}_{number}": part
        for number, part in enumerate(parts, 1)
    }


def packed_task(environment: Mapping[str, str]) -> bytes:
    """The JSON that `task_variables` wrote.

    Raises:
        KeyError: There is none.
        ValueError: It is damaged.
    """
    parts = [environment[TASK_VARIABLE]]
    while (part := environment.get(f"{TASK_VARIABLE}_{len(parts) + 1}")) is not None:
        parts.append(part)
    return unpack("".join(parts))


def unpack(text: str) -> bytes:
    """The JSON that `pack` packed."""
    return zlib.decompress(base64.b64decode(text))
