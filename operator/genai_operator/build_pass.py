"""What one pass over a build works on, shared by the modules that do the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from genai_core.kinds.build import BuildSpec
from genai_core.store.s3_location import S3Location
from genai_operator.api import Json
from genai_operator.jobs import Owner
from genai_operator.status import State
from genai_operator.views import JobState, JobView, PodView

__all__ = ["JOINED_SECONDS", "WATCHED_SECONDS", "BuildPass", "held_up", "standing"]

WATCHED_SECONDS = 60.0
"""A build in progress is looked at that often even if nothing seems to happen."""
JOINED_SECONDS = 0.2
"""One that claimed a Job that others had made is looked at again so soon."""
_PODLESS = timedelta(seconds=20)


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
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When this generation, or request, was taken up."""
    after: float | None = None
    joined: bool = False
    """It claimed a Job that was there: what became of that before the claim, nobody told it."""
    source: tuple[str, str, str] | None = None
    store: S3Location | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def fresh(self) -> bool:
        """Nothing was decided yet for this generation and request."""
        return (
            self.status.get("observedGeneration") != self.generation
            or self.status.get("requestedAt", "") != self.requested
        )


def standing(jobs: Iterable[JobView], *, queued: bool) -> tuple[State, str]:
    """State and reason of a build whose tasks have these Jobs.

    Args:
        jobs: At whose end the build goes on.
        queued: Further ones were made, for a queue to admit.
    """
    active = [job for job in jobs if job.state is JobState.ACTIVE]
    if (active or queued) and all(job.suspended for job in active):
        return State.WAITING, "WaitingForAdmission"
    return State.BUILDING, "Progressing"


def held_up(
    jobs: Iterable[JobView],
    pods: Mapping[str, list[PodView]],
    *,
    now: datetime,
    queued: bool = False,
) -> str:
    """Why a task does not begin though it has a Job: the first such reason.

    Args:
        jobs: At whose end the build goes on.
        pods: Job's name -> pods.
        now: The time.
        queued: Further Jobs were made, for a queue to admit.
    """
    for job in jobs:
        if job.state is not JobState.ACTIVE or job.deleting:
            continue
        if job.suspended:
            return f"; {job.task} waits to be admitted by its queue"
        seen = pods.get(job.name, ())
        for pod in seen:
            if pod.waiting:
                return f"; {job.task} waits: {pod.waiting}"
        # A quota, a missing service account, pod security: only Events of the Job tell which.
        if not seen and job.started_at is not None and now - job.started_at > _PODLESS:
            ask = f"kubectl -n {job.namespace} describe job {job.name}"
            return f"; {job.task} gets no pod: see {ask}"
    return "; it waits to be admitted by its queue" if queued else ""
