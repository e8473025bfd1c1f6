"""Events of Jobs and pods -> the watch cache, and which Jobs those who claim them must hear of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from genai_operator.kube.job import JobState, JobView, job_view
from genai_operator.kube.pod import PodView, pod_view
from genai_operator.kube.watch.cache import Cache
from genai_operator.kube.watch.kinds import Change
from genai_operator.kube.watch.observed import Observed

__all__ = ["JobIntake", "PodIntake", "told"]


def told(job: JobView) -> Change[JobView]:
    """Something about a Job that its claimants must hear of, though it is as it was."""
    return Change("jobs", (job.namespace, job.name), job, job)


class JobIntake:
    """Takes in the events of Jobs.

    Args:
        observed: The watch cache.
        ended: Told of each Job that was seen to end.
    """

    def __init__(self, observed: Observed, *, ended: Callable[[JobView], None]) -> None:
        self._observed = observed
        self._ended = ended

    @property
    def cache(self) -> Cache[JobView]:
        """What is known of Jobs."""
        return self._observed.jobs

    def take(self, value: Mapping[str, Any], *, deleted: bool) -> list[Change[JobView]]:
        """Take in a Job; of the change, `owners` are those who must hear of it."""
        job = job_view(value)
        if job is None:
            return []
        if deleted:
            self.cache.drop(job.namespace, job.name, job.uid)
            self._observed.leave(job)
            return [Change("jobs", (job.namespace, job.name), job, None)]
        before = self.cache.get(job.namespace, job.name)
        if not self.cache.put(value, job):
            return []
        if before is not None and before.uid == job.uid:
            if before.state is JobState.ACTIVE and job.state is not JobState.ACTIVE:
                self._ended(job)
            owners = before.owners | job.owners  # a claim of ours may be newer than this event
            if replace(before, owners=job.owners, started_at=job.started_at) == job:
                owners = job.owners - before.owners  # what they joined was told to others
            job = replace(job, owners=owners)
        return [Change("jobs", (job.namespace, job.name), before, job)]

    def vanished(self, namespace: str, name: str, *, uid: str) -> list[Change[JobView]]:
        """Take in that a Job is gone, of which no watch told."""
        job = self.cache.drop(namespace, name, uid)
        if job is None:
            return []
        self._observed.leave(job)
        return [Change("jobs", (namespace, name), job, None)]


class PodIntake:
    """Takes in the events of pods: those who claim a pod's Job must hear of some."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed

    @property
    def cache(self) -> Cache[PodView]:
        """What is known of pods."""
        return self._observed.pods

    def take(self, value: Mapping[str, Any], *, deleted: bool) -> list[Change[Any]]:
        """Take in a pod."""
        pod = pod_view(value)
        if pod is None:
            return []
        place = pod.namespace, pod.name
        if deleted:
            self.cache.drop(*place, pod.uid)
            return [Change("pods", place, pod, None), *self._left(pod)]
        before = self.cache.get(*place)
        if not self.cache.put(value, pod):
            return []
        changes = [Change("pods", place, before, pod), *self._left(pod)]
        job = self._observed.jobs.get(pod.namespace, pod.job)
        if job is None:
            return changes
        # The Job may have been seen to fail before the pod's own words arrived.
        late = pod.ending is not None and job.state is JobState.FAILED
        # And that it succeeded is known seconds before the Job says so.
        done = pod.succeeded and not (before and before.succeeded)
        if late or done or pod.waiting != (before.waiting if before else ""):
            changes.append(told(job))
        return changes

    def vanished(self, namespace: str, name: str, *, uid: str) -> list[Change[Any]]:
        """Take in that a pod is gone, of which no watch told."""
        pod = self.cache.drop(namespace, name, uid)
        if pod is None:
            return []
        return [Change("pods", (namespace, name), pod, None), *self._left(pod)]

    def _left(self, pod: PodView) -> list[Change[Any]]:
        """Deleted Jobs that ended with this pod."""
        return [
            Change("jobs", (job.namespace, job.name), job, None) for job in self._observed.left(pod)
        ]
