"""What the passes of a build have in common while it asks for the same: its plan, names and keys.

Each pass begins with the spec, the Jobs and the store, and nothing that is kept here decides
anything: it is all worked out from those. But to plan, name and key a thousand tasks anew for each
Job that ends takes longer than a Job should have to wait.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from genai_core.kinds.build import BuildSpec
from genai_core.names import Backend, Digest, Key, TaskId
from genai_core.record import Record
from genai_operator.requests import Setting
from genai_planner.chains import derivations
from genai_planner.expand import expand
from genai_planner.graph import FileRef, Plan, Result, result_of
from genai_planner.machine import KnownKeys
from genai_planner.shape import ModelShape
from genai_planner.source_view import SourceView
from genai_planner.targets import Target

__all__ = ["Planned", "Plans"]


@dataclass(frozen=True)
class _Asked:
    """What a plan and its keys follow from."""

    spec: BuildSpec
    targets: Sequence[Target]
    view: SourceView
    shape: ModelShape | None
    source: Mapping[str, FileRef]
    toolchains: Mapping[tuple[str, Backend | None], Digest]


@dataclass
class Planned:
    """A plan, and what follows from it.

    Attributes:
        source: Role -> file of the model's source.
        toolchains: (operation, backend) -> toolchain id.
        keys: For `advance`: of the tasks that had one before.
    """

    plan: Plan
    source: Mapping[str, FileRef]
    toolchains: Mapping[tuple[str, Backend | None], Digest]
    keys: KnownKeys = field(default_factory=dict)
    _results: dict[Key, tuple[Record, Result]] = field(default_factory=dict)

    @cached_property
    def derivations(self) -> Mapping[TaskId, Digest]:
        """Of every task."""
        return derivations(self.plan, source=self.source, toolchains=self.toolchains)

    def result(self, record: Record) -> Result:
        """A record as the planner takes it; the same object for the same record."""
        known = self._results.get(record.key)
        if known is None or known[0] is not record:
            known = self._results[record.key] = record, result_of(record)
        return known[1]


class Plans:
    """The plans of builds, one build in one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bool | None], tuple[_Asked, Planned]] = {}

    def of(self, owner: str, setting: Setting, shape: ModelShape | None) -> Planned:
        """The plan of a build.

        Args:
            owner: The build's UID.
            setting: What it asks for.
            shape: See `expand`; it, a forecast and none are kept side by side.

        Raises:
            GenAIError: See `expand`.
        """
        asked = _asked(setting, shape)
        kind = (owner, shape.exact if shape else None)
        known = self._known.get(kind)
        if known is None or known[0] != asked:
            plan = expand(asked.spec, targets=asked.targets, source=asked.view, shape=shape)
            known = self._known[kind] = asked, Planned(plan, asked.source, asked.toolchains)
        return known[1]

    def forget(self, owner: str) -> None:
        """It rests: there may be many of those."""
        for shape in (None, False, True):
            self._known.pop((owner, shape), None)

    def keep(self, owners: Collection[str]) -> None:
        """Forget all others."""
        for kind in [kind for kind in list(self._known) if kind[0] not in owners]:
            self._known.pop(kind, None)


def _asked(setting: Setting, shape: ModelShape | None) -> _Asked:
    files = setting.source.files
    return _Asked(
        spec=setting.spec,
        targets=[target.target for target in setting.targets],
        view=SourceView(
            frozenset(files),
            sum(file.size for file in files.values()),
            setting.source.weight_bits,
        ),
        shape=shape,
        source={role: FileRef(Digest(f.sha256), f.size) for role, f in files.items()},
        toolchains={row: Digest(chain.id) for row, chain in setting.toolchains.items()},
    )
