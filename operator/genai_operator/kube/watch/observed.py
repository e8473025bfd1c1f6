"""What the watches delivered so far, in as few bytes as decisions need.

Watches can lose things (an object that vanished while a connection was down leaves no event), so
the watch cache is compared with a listing now and then: what is gone is dropped, what is newer is
fetched, and a watch that keeps missing things is called deaf.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from genai_operator.kube.build import BuildView
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.pod import PodView, WorkloadView
from genai_operator.kube.watch.cache import Cache
from genai_operator.timing import SYSTEM, Timing

__all__ = ["Observed"]


_UNSEEN_SECONDS = 3.0
"""So long the Job controller may take to hear that a Job is gone: it makes no pod of it after."""


@dataclass
class Observed:
    """The watch cache of all that is watched, and the clocks by which it is judged."""

    timing: Timing = SYSTEM
    builds: Cache[BuildView] = field(default_factory=Cache)
    stores: Cache[dict[str, Any]] = field(default_factory=Cache)
    targets: Cache[dict[str, Any]] = field(default_factory=Cache)
    deployments: Cache[dict[str, Any]] = field(default_factory=Cache)
    jobs: Cache[JobView] = field(default_factory=Cache)
    pods: Cache[PodView] = field(default_factory=Cache)
    workloads: Cache[WorkloadView] = field(default_factory=Cache)
    """Deployments that serve."""
    leaving: dict[str, tuple[JobView, float]] = field(default_factory=dict)
    """UID -> a deleted Job whose pods run, or may: its tasks must not begin again yet. With it the
    time until which pods that were never seen may still appear."""
    _unseen: set[str] = field(default_factory=set)
    """UIDs of those whose pods were not seen: only the apiserver can say that there are none."""

    def jobs_of(self, namespace: str, scope: str) -> list[JobView]:
        """Jobs that a build of this namespace and scope may use, or must wait for."""
        self._forget_left()
        left = [job for job, _ in self.leaving.values()]
        return [
            job for job in (*self.jobs, *left) if job.namespace == namespace and job.scope == scope
        ]

    def leave(self, job: JobView) -> None:
        """A Job is deleted: remember it while a pod of it runs.

        Pods come by another watch: one that was begun a moment ago may not have been seen.
        """
        self._forget_left()
        unseen = job.state is JobState.ACTIVE and not job.suspended and not self._has_pods(job)
        if unseen or self._runs(job):
            gone = replace(job, state=JobState.ACTIVE, deleting=True)
            until = self.timing.monotonic() + (_UNSEEN_SECONDS if unseen else 0.0)
            if job.uid not in self.leaving:
                self.leaving[job.uid] = (gone, until)
                if unseen:
                    self._unseen.add(job.uid)

    def is_leaving(self, namespace: str, name: str) -> bool:
        """A Job of that name is deleted, and its pods may still run."""
        self._forget_left()
        places = ((job.namespace, job.name) for job, _ in self.leaving.values())
        return (namespace, name) in places

    def left(self, pod: PodView) -> list[JobView]:
        """Deleted Jobs that ended with this pod; they are forgotten."""
        gone = [job for job, _ in self.leaving.values() if pod.is_of(job) and not self._runs(job)]
        for job in gone:
            self._forget(job.uid)
        return gone

    def doubtful(self) -> list[JobView]:
        """Deleted Jobs whose pods should have been seen by now, and were not."""
        now = self.timing.monotonic()
        known = ((uid, self.leaving[uid]) for uid in self._unseen)
        return [job for _, (job, until) in known if until < now and not self._runs(job)]

    def settle(self, uid: str) -> bool:
        """Its pods, if any, were asked for and are known; tells whether it has left with that."""
        self._unseen.discard(uid)
        there = uid in self.leaving
        self._forget_left()
        return there and uid not in self.leaving

    def _forget_left(self) -> None:
        now = self.timing.monotonic()
        over = [
            uid
            for uid, (job, until) in self.leaving.items()
            if until < now and uid not in self._unseen and not self._runs(job)
        ]
        for uid in over:
            self._forget(uid)

    def _forget(self, uid: str) -> None:
        del self.leaving[uid]
        self._unseen.discard(uid)

    def _runs(self, job: JobView) -> bool:
        return any(not pod.ended for pod in self._pods(job))

    def _has_pods(self, job: JobView) -> bool:
        return any(True for _ in self._pods(job))

    def _pods(self, job: JobView) -> Iterator[PodView]:
        return (pod for pod in self.pods if pod.is_of(job))

    def servers_of(self, namespace: str, name: str) -> list[PodView]:
        """Pods that serve for a GenAIDeployment."""
        place = (namespace, name)
        return [pod for pod in self.pods if (pod.namespace, pod.deployment) == place]

    def claimed_by(self, uid: str) -> list[JobView]:
        """Jobs that a build claims."""
        return [job for job in self.jobs if uid in job.owners]

    def pods_of(self, namespace: str) -> dict[str, list[PodView]]:
        """Job's name -> pods; where those of a failed one are gone, what was noted of them."""
        by_job: dict[str, list[PodView]] = {}
        for pod in self.pods:
            if pod.namespace != namespace:
                continue
            job = self.jobs.get(namespace, pod.job)
            if job is None or pod.is_of(job):
                by_job.setdefault(pod.job, []).append(pod)
        for job in self.jobs:
            if job.noted is not None and job.namespace == namespace:
                pods = by_job.setdefault(job.name, [])
                if not any(pod.ended for pod in pods):
                    pods.append(job.noted)
        return by_job

    def unnoted(self, uid: str) -> list[tuple[JobView, PodView]]:
        """Failed Jobs of a build, with their last pods, where that is not noted on them yet."""
        last_pods = []
        for job in self.claimed_by(uid):
            if job.state is not JobState.FAILED or job.noted is not None or job.deleting:
                continue
            pods = [pod for pod in self._pods(job) if pod.ended]
            if pods:
                last = max(pods, key=lambda pod: (pod.ending is not None, pod.created_at))
                last_pods.append((job, last))
        return last_pods

    def delete(self, job: JobView) -> None:
        """It was deleted by us; the watch will say so a moment later."""
        self.jobs.drop(job.namespace, job.name, job.uid)
        self.leave(job)
