"""What the passes of a build have in common while it asks for the same: its plan, names and keys.

Each pass begins with the spec, the Jobs and the store, and nothing that is kept here decides
anything: it is all worked out from those. But to plan, name and key a thousand tasks anew for each
Job that ends takes longer than a Job should have to wait.
"""

from __future__ import annotations

from collections.abc import Collection

from genai_core.names import Digest
from genai_core.sources.resolved import ResolvedSource
from genai_operator.builds.planning.job_requests import Setting
from genai_planner.phases import BuildPlanner, BuildRequest
from genai_planner.plan import FileRef
from genai_planner.sources import Source

__all__ = ["Plans"]


class Plans:
    """The planners of builds, one build in one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[str, BuildPlanner] = {}

    def of(self, owner: str, setting: Setting) -> BuildPlanner:
        """The planner of a build: the one that is known, as long as the same is asked for.

        Args:
            owner: The build's UID.
            setting: What it asks for.
        """
        request = _request(setting)
        known = self._known.get(owner)
        if known is None or known.request != request:
            known = self._known[owner] = BuildPlanner(request)
        return known

    def forget(self, owner: str) -> None:
        """It rests: there may be many of those."""
        self._known.pop(owner, None)

    def keep(self, owners: Collection[str]) -> None:
        """Forget all others."""
        for owner in [owner for owner in list(self._known) if owner not in owners]:
            self._known.pop(owner, None)


def _request(setting: Setting) -> BuildRequest:
    return BuildRequest(
        spec=setting.spec,
        targets=tuple(target.target for target in setting.targets),
        sources={name: _source(resolved) for name, resolved in setting.sources.items()},
        toolchains=setting.toolchains,
    )


def _source(resolved: ResolvedSource) -> Source:
    return Source(
        {role: FileRef(Digest(file.sha256), file.size) for role, file in resolved.files.items()},
        resolved.config,
        resolved.weight_bits,
    )
