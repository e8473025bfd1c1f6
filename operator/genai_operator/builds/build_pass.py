"""What one pass over a build works on, shared by the modules that do the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from genai_core.kinds.build import BuildSpec
from genai_core.names import SourceName
from genai_core.store.address import StoreAddress
from genai_operator.builds.status import ResolvedEntry
from genai_operator.jobs.job_manifest import Owner
from genai_operator.kube.values import Json

__all__ = ["JOINED_SECONDS", "STARTED_SECONDS", "WATCHED_SECONDS", "BuildPass"]

WATCHED_SECONDS = 60.0
"""A build in progress is looked at that often even if nothing seems to happen."""
STARTED_SECONDS = 11.0
"""One that made a Job is looked at again so soon: by then it counts as held up (`jobs.holds`)."""
JOINED_SECONDS = 0.2
"""One that claimed a Job that others had made is looked at again so soon."""


@dataclass
class BuildPass:
    """What one pass works on."""

    value: Json
    spec: BuildSpec
    owner: Owner
    namespace: str
    generation: int
    requested: str
    status: Mapping[str, Any]
    since: datetime
    """When this generation, or request, was taken up."""
    after: float | None = None
    joined: bool = False
    """It claimed a Job that was there: what became of that before the claim, nobody told it."""
    started: bool = False
    """It made a Job: nothing tells of one that gets no pod."""
    sources: dict[SourceName, ResolvedEntry] = field(default_factory=dict)
    store: StoreAddress | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def fresh(self) -> bool:
        """Nothing was decided yet for this generation and request."""
        return (
            self.status.get("observedGeneration") != self.generation
            or self.status.get("requestedAt", "") != self.requested
        )

    def look_after(self, seconds: float | None) -> None:
        """Look at it again so soon, if not sooner."""
        if seconds is not None:
            self.after = min(seconds, WATCHED_SECONDS if self.after is None else self.after)
