"""The toolchain of an operation: versions of the libraries that its output depends on.

Read from the installed distributions' metadata, so neither numpy nor onnx is imported: a build
that finds everything cached never loads them.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata

from genai_core.errors import ToolchainMismatch
from genai_core.operations import Operation
from genai_core.tasks.keys import toolchain_id
from genai_core.tasks.task_file import Toolchain

ABSENT = "absent"
"""Version of a library that is not installed."""


@cache
def version_of(distribution: str) -> str:
    """The installed version of a distribution, or `absent`."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ABSENT


def toolchain_of(operation: Operation) -> Toolchain:
    """The toolchain that this environment offers for an operation."""
    versions = {name: version_of(name) for name in operation.libraries}
    return Toolchain(id=toolchain_id(versions), versions=versions)


def check_toolchain(operation: Operation, wanted: Toolchain) -> None:
    """Refuse to compute with other libraries than the plan was made for.

    Raises:
        ToolchainMismatch: Names every library that differs.
    """
    here = toolchain_of(operation)
    if here.id == wanted.id:
        return
    names = sorted(here.versions.keys() | wanted.versions.keys())
    differing = [
        f"{name} {here.versions.get(name, ABSENT)} (planned: {wanted.versions.get(name, ABSENT)})"
        for name in names
        if here.versions.get(name, ABSENT) != wanted.versions.get(name, ABSENT)
    ]
    raise ToolchainMismatch(
        f"this environment has {', '.join(differing) or 'another toolchain id'}",
        where=operation.name,
        remedy="run it with the image or environment that the plan names, or plan again here",
    )
