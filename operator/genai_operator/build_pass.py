"""What one pass over a build works on, shared by the modules that do the work."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from genai_core.kinds.build import BuildSpec
from genai_operator.api import Json
from genai_operator.decide import Verdict
from genai_operator.jobs import JobRequest, Owner
from genai_operator.metrics import TASK_RETRIES
from genai_operator.status import State
from genai_operator.views import JobState, JobView, PodView

__all__ = ["WATCHED_SECONDS", "BuildPass", "count_retry", "held_up", "standing"]

log = logging.getLogger("genai_operator.build")

WATCHED_SECONDS = 60.0
"""A build in progress is looked at that often even if nothing seems to happen."""


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
    after: float | None = None
    source: tuple[str, str, str] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def fresh(self) -> bool:
        """Nothing was decided yet for this generation and request."""
        return (
            self.status.get("observedGeneration") != self.generation
            or self.status.get("requestedAt", "") != self.requested
        )


def count_retry(request: JobRequest, verdict: Verdict) -> None:
    """Say that a task is tried again."""
    log.info("task tried again", extra={"task": request.task, "why": verdict.retried})
    TASK_RETRIES.labels(operation=request.operation, reason=verdict.retried_for).inc()


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
    jobs: Iterable[JobView], pods: Mapping[str, list[PodView]], *, queued: bool = False
) -> str:
    """Why a task does not begin though it has a Job: the first such reason.

    Args:
        jobs: At whose end the build goes on.
        pods: Job's name -> pods.
        queued: Further Jobs were made, for a queue to admit.
    """
    for job in jobs:
        if job.state is JobState.ACTIVE and job.suspended:
            return f"; {job.task} waits to be admitted by its queue"
        for pod in pods.get(job.name, ()):
            if job.state is JobState.ACTIVE and pod.waiting:
                return f"; {job.task} waits: {pod.waiting}"
    return "; it waits to be admitted by its queue" if queued else ""
