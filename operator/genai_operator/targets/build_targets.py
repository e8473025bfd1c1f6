"""GenAITargets -> what the planner calls targets, images and toolchains. Pure.

A target declares the versions of the libraries in its image, so a plan can be made without that
image. Tasks that several targets share are run in the first one's image: where the declarations of
a build's targets differ, the build is refused rather than built twice under two names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from genai_core import chips
from genai_core.canonical import digest_json
from genai_core.errors import GenAIError
from genai_core.kinds.documents.reading import read_served
from genai_core.kinds.target import TargetSpec
from genai_core.names import Backend
from genai_core.operations import OPERATIONS, ChipConfig
from genai_core.reasons import Reason
from genai_core.tasks.keys import toolchain_id
from genai_core.tasks.task_file import Toolchain
from genai_core.tasks.toolchain import ABSENT
from genai_operator.errors import Stalled
from genai_planner.plan import Task
from genai_planner.targets import Target

__all__ = [
    "BuildTarget",
    "Toolchains",
    "build_target",
    "needed_libraries",
    "runs_in",
    "target_problem",
    "toolchain_digest",
    "toolchains",
]

Toolchains = Mapping[tuple[str, Backend | None], Toolchain]


@dataclass(frozen=True)
class BuildTarget:
    """A GenAITarget as a build uses it."""

    target: Target
    image: str
    versions: Mapping[str, str]
    node_selector: Mapping[str, str] = field(default_factory=dict)


def needed_libraries(backend: Backend) -> tuple[str, ...]:
    """Distributions that the operations of a backend compute with."""
    found = {
        name: None for row in OPERATIONS if row.backend in (None, backend) for name in row.libraries
    }
    return tuple(found)


def target_problem(spec: TargetSpec) -> tuple[str, str] | None:
    """Reason and message why nothing can be built for it; None where something can."""
    if spec.image is None:
        htp = spec.backend is Backend.HTP
        value = "stages.htpImage" if htp else "stages.image"
        build = "build one with make image-htp and " if htp else ""
        return (
            Reason.IMAGE_NOT_CONFIGURED,
            f"it has no image of the stages; {build}set spec.image by digest (chart: {value})",
        )
    lacking = [name for name in needed_libraries(spec.backend) if name not in spec.toolchain]
    if lacking:
        return (
            Reason.TOOLCHAIN_NOT_DECLARED,
            f"spec.toolchain lacks {', '.join(lacking)}; see genai-stage toolchain of the image",
        )
    if spec.backend is Backend.HTP:
        try:
            _chip(spec)
        except GenAIError as error:
            return error.code, str(error)
    return None


def build_target(name: str, value: Mapping[str, Any]) -> BuildTarget:
    """Read a GenAITarget.

    Raises:
        Stalled: It cannot be used; says why.
    """
    spec = read_served(TargetSpec, value["spec"], where=f"GenAITarget {name}")
    problem = target_problem(spec)
    if problem is not None:
        raise Stalled(problem[0], f"GenAITarget {name}: {problem[1]}")
    assert spec.image is not None
    chip = None
    if spec.backend is Backend.HTP:
        known = _chip(spec)
        chip = ChipConfig(soc_model=known.soc_model, dsp_arch=known.dsp_arch)
    return BuildTarget(
        Target(name, spec.backend, chip, dict(spec.compilation)),
        spec.image,
        dict(spec.toolchain),
        dict(spec.node_selector),
    )


def _chip(spec: TargetSpec) -> chips.Chip:
    if spec.chipset is not None:
        return chips.by_name(spec.chipset)
    assert spec.dsp_arch is not None
    assert spec.soc_model is not None
    return chips.by_number(spec.soc_model, int(spec.dsp_arch.removeprefix("v")))


def toolchains(targets: Sequence[BuildTarget]) -> dict[tuple[str, Backend | None], Toolchain]:
    """Operation and backend -> what it computes with, for the targets of one build.

    Raises:
        Stalled: Two targets declare different versions of a library that both use.
    """
    versions: dict[str, tuple[str, str]] = {}
    for target in targets:
        for library in needed_libraries(target.target.backend):
            known = versions.setdefault(library, (target.versions[library], target.target.name))
            if known[0] != target.versions[library]:
                raise Stalled(
                    Reason.TOOLCHAINS_DIFFER,
                    f"GenAITargets {known[1]} and {target.target.name} declare {library} "
                    f"{known[0]} and {target.versions[library]}; one build needs one version",
                )
    by_operation = {}
    for row in OPERATIONS:
        used = {name: versions.get(name, (ABSENT, ""))[0] for name in row.libraries}
        by_operation[row.name, row.backend] = Toolchain(id=toolchain_id(used), versions=used)
    return by_operation


def toolchain_digest(targets: Sequence[BuildTarget]) -> str:
    """One short name for all that a build's results depend on beside its spec and its model."""
    backends = {target.target.backend for target in targets}
    return digest_json(
        {
            "libraries": {
                target.target.name: {
                    name: target.versions[name] for name in needed_libraries(target.target.backend)
                }
                for target in targets
            },
            "operations": {
                f"{row.name}/{row.backend or 'any'}": row.code_version
                for row in OPERATIONS
                if row.backend is None or row.backend in backends
            },
        }
    )[:16]


def runs_in(task: Task, targets: Sequence[BuildTarget]) -> BuildTarget:
    """Whose image a task runs in."""
    for target in targets:
        if target.target.name == task.target:
            return target
    for target in targets:
        if task.backend in {None, target.target.backend}:
            return target
    return targets[0]
