"""The interface of an operation, as the runner calls it.

An operation is `run(inputs, config, out, context) -> StageResult`: it reads folders, writes files
into an empty private folder, and knows neither stores nor clusters. The runner fetches, calls,
hashes and commits.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Inputs = Mapping[str, Path]
"""Input name -> folder of its files. Never written to."""

log = logging.getLogger("genai_stages")


@dataclass(frozen=True)
class Context:
    """Where a task runs; nothing here may change what it writes.

    Attributes:
        scratch: A private folder on the same disk as the output, removed after the task.
        threads: How many threads a stage may keep busy.
    """

    scratch: Path
    threads: int = 1


@dataclass(frozen=True)
class StageResult:
    """What an operation reports beside the files that it wrote.

    Attributes:
        facts: JSON values that later tasks or the planner read; part of the record, so they must
            follow from the inputs alone.
        notes: JSON measurements (drift, unused encodings, sizes): the record keeps them apart from
            identity, and the container's report shows them.
        warnings: Sentences for the user.
        semantic: Relative path -> digest (64 hex) for files whose bytes carry a clock or a path;
            it then stands for the file in the keys of later tasks.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    semantic: Mapping[str, str] = field(default_factory=dict)


class OperationModule(Protocol):
    """A module of `genai_stages.operations`."""

    def run(self, inputs: Inputs, config: Any, out: Path, context: Context) -> StageResult:
        """Do the work; raise a GenAIError where it cannot be done."""
        ...
