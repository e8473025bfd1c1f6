"""Why a build's Jobs do not begin, in words that say what to change. Pure.

WaitingForAdmission   a queue has not admitted it
NotAdmitted           the cluster makes no pod of it: a quota, a policy, a missing service account
Unschedulable         no node takes its pod
ImagePullFailed       its image does not come
ContainerNotCreated   its container cannot be made: a Secret, a key of it, is not there; a volume
                      cannot be mounted, its network not be set up (`standings`)
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from genai_core.reasons import Reason
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.pod import PodView

__all__ = ["ADMISSION", "BLOCKED", "NOT_ADMITTED", "Hold", "Standing", "hold_of", "standing"]

ADMISSION = Reason.WAITING_FOR_ADMISSION
NOT_ADMITTED = Reason.NOT_ADMITTED
_UNSCHEDULABLE = Reason.UNSCHEDULABLE
BLOCKED = (NOT_ADMITTED, _UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED, Reason.CONTAINER_NOT_CREATED)
"""Reasons that are the cluster's: somebody has to change something in it, or in the build."""
_RIPE = timedelta(seconds=10)
"""What ends by itself within that time is nothing to alarm people with."""
_REMEDIES = (
    ("affinity", "change spec.run.nodeSelector or spec.run.affinity, or label a node"),
    ("selector", "change spec.run.nodeSelector or spec.run.affinity, or label a node"),
    ("taint", "add the taint to spec.run.tolerations, or a node without it"),
    ("persistentvolumeclaim", "change spec.run.scratch.storageClassName, or make the claim"),
    ("volume", "change spec.run.scratch.storageClassName, or make the claim"),
    ("insufficient", "lower spec.run.resources, or add a node"),
)
_IMAGE = "correct spec.image of the GenAITarget, or spec.run.imagePullSecrets"
_CONTAINER = "make it, or name another in the ArtifactStore, or in spec.model"


@dataclass(frozen=True)
class Hold:
    """Why a Job does not begin.

    Attributes:
        reason: One word of a small set.
        message: Task, cause, and what to change.
        after: Seconds until it counts; none are left when that is 0.
        podless: The Job, where no pod is made of it.
    """

    reason: str
    message: str
    after: float = 0.0
    podless: JobView | None = None


@dataclass(frozen=True)
class Standing:
    """How a build stands whose tasks have Jobs.

    Attributes:
        works: Some of it runs, or is about to.
        held: Why a task does not begin though it has a Job; empty if all do.
        after: Seconds until it may stand otherwise though nothing happens.
        podless: The Job that is called so in `held`, where no pod is made of it.
        creating: A Job and its pod, whose container is being made for long; nothing else holds it.
    """

    works: bool
    reason: str
    held: str = ""
    after: float | None = None
    podless: JobView | None = None
    creating: tuple[JobView, PodView] | None = None

    def message(self, doing: str) -> str:
        """What the build does, and what holds it up."""
        return f"{doing}; {self.held}" if self.held else doing


def standing(
    jobs: Collection[JobView],
    pods: Mapping[str, Sequence[PodView]],
    *,
    now: datetime,
    queued: bool = False,
) -> Standing:
    """Judge the Jobs at whose end a build goes on.

    What only waits for room, or for a queue, is the build's state where nothing else of it runs:
    the others' end may be all that it waits for. Everything else is so at once.

    Args:
        jobs: At whose end the build goes on.
        pods: Job's name -> pods.
        now: The time.
        queued: Further Jobs were made, for a queue to admit.
    """
    active = [job for job in jobs if job.state is JobState.ACTIVE and not job.deleting]
    holds = [hold_of(job, pods.get(job.name, ()), now) for job in active]
    known = [hold for hold in holds if hold is not None]
    if queued:
        known.append(Hold(ADMISSION, "it waits to be admitted by its queue"))
    ripe = [hold for hold in known if hold.after <= 0]
    later = min((hold.after for hold in known if hold.after > 0), default=None)
    idle = len(ripe) == len(active) + queued
    for hold in sorted(ripe, key=lambda hold: hold.reason in {ADMISSION, _UNSCHEDULABLE}):
        if idle or hold.reason not in {ADMISSION, _UNSCHEDULABLE}:
            return Standing(
                reason=hold.reason,
                held=hold.message,
                after=later,
                podless=hold.podless,
                works=False,
            )
    shown = next((hold.message for hold in known if hold.reason != NOT_ADMITTED), "")
    shown = ripe[0].message if ripe else shown
    creating, ripens = _creating(active, pods, now)
    if ripens is not None:
        later = min(later or ripens, ripens)
    return Standing(
        works=True, reason=Reason.PROGRESSING, held=shown, after=later, creating=creating
    )


def _creating(
    active: Sequence[JobView], pods: Mapping[str, Sequence[PodView]], now: datetime
) -> tuple[tuple[JobView, PodView] | None, float | None]:
    """The oldest pod whose container is being made for long; and seconds until the next is."""
    found = [
        (pod.created_at, (job, pod))
        for job in active
        for pod in pods.get(job.name, ())
        if pod.creating and pod.is_of(job) and not pod.deleting
    ]
    young = [(at + _RIPE - now).total_seconds() for at, _ in found if at + _RIPE > now]
    old = [entry for at, entry in found if at + _RIPE <= now]
    oldest = min(old, key=lambda entry: entry[1].created_at) if old else None
    return oldest, min(young, default=None)


def hold_of(job: JobView, pods: Sequence[PodView], now: datetime) -> Hold | None:
    """Why an active Job does not begin; None where it runs, or is about to."""
    if job.suspended:
        return Hold(ADMISSION, f"{job.task} waits to be admitted by its queue")
    live = [pod for pod in pods if not pod.ended]
    for pod in live:
        if pod.hold and not pod.started:
            after = (pod.created_at + _RIPE - now).total_seconds()
            words = f"{job.task} waits: {pod.waiting}; {_remedy(pod)}"
            return Hold(pod.hold, words, max(after, 0.0))
    # A quota, a missing service account, pod security: only Events of the Job tell which.
    if not pods and job.started_at is not None:
        after = (job.started_at + _RIPE - now).total_seconds()
        ask = shlex.join(["kubectl", "-n", job.namespace, "describe", "job", job.name])
        return Hold(NOT_ADMITTED, f"{job.task} gets no pod: see {ask}", max(after, 0.0), job)
    return None


def _remedy(pod: PodView) -> str:
    if pod.hold == Reason.IMAGE_PULL_FAILED:
        return _IMAGE
    if pod.hold == Reason.CONTAINER_NOT_CREATED:
        return _CONTAINER
    for word, remedy in _REMEDIES:
        if word in pod.waiting.lower():
            return remedy
    return "change spec.run, which says where pods may run"
