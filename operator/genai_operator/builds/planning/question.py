"""What is asked about a build, and what a look at it answers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from genai_core.errors import GenAIError
from genai_core.names import TaskId
from genai_core.store.protocol import RecordRef
from genai_core.tasks.record import Record
from genai_operator.builds.planning.job_requests import Looks, Setting
from genai_operator.jobs.job_manifest import JobRequest
from genai_operator.jobs.renewal import Renewal
from genai_operator.jobs.verdicts import NextAttempt
from genai_operator.kube.job import JobView
from genai_operator.kube.pod import PodView
from genai_planner.execution.advance import Advice
from genai_planner.plan import Plan

__all__ = ["Question", "Survey"]


@dataclass(frozen=True)
class Question:
    """A build, as far as it is known without looking.

    Attributes:
        setting: What its Jobs have in common.
        owner: The build's UID.
        since: When it asked for what it asks now, to the second.
        jobs: Of the build's namespace and scope.
        pods: Job's name -> pods.
        looks: How its Jobs would be written now; None: those that are there stay as they are.
    """

    setting: Setting
    owner: str
    since: datetime
    jobs: Sequence[JobView]
    pods: Mapping[str, list[PodView]]
    now: datetime
    looks: Looks | None = None


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        start: Jobs that are to be created.
        needed: UIDs of the Jobs that do, did or failed to do something of this build.
        active: Jobs that are at a task of this build.
        failed: (task, error, digest of the log) in the plan's order.
        containers: Target -> the record of its package.
        fidelity: Target -> what its fidelity task found, where there is one.
        refs: The records of all tasks that have a key.
        made: Operation -> tasks whose result stands, and did not when the build asked for it.
        after: Seconds until it has to be looked at again, whatever happens.
        retried: The attempts at tasks that start again.
        renewals: Jobs that never started, and are to be made anew.
        waits_for: Faults of the store, or the source, that further attempts wait for.
        warnings: The plan's and those of the tasks whose result stands, in the plan's order.
    """

    plan: Plan
    advice: Advice
    start: tuple[JobRequest, ...]
    needed: frozenset[str]
    active: tuple[JobView, ...]
    failed: tuple[tuple[TaskId, GenAIError, str], ...]
    containers: Mapping[str, Record]
    refs: frozenset[RecordRef] = frozenset()
    made: Mapping[str, int] = field(default_factory=dict)
    fidelity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    after: float | None = None
    retried: Mapping[TaskId, NextAttempt] = field(default_factory=dict)
    renewals: tuple[Renewal, ...] = ()
    waits_for: tuple[GenAIError, ...] = ()
    warnings: tuple[str, ...] = ()
