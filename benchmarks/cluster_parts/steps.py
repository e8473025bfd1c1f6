"""Where the time of a build on a cluster goes, Job by Job, from watches of Jobs and pods.

    asked        the Job is there          (the apiserver has it)
    pod          its pod is there          (the Job controller)
    scheduled    it has a node             (the scheduler)
    running      its container runs        (kubelet, containerd, network)
    ended        its container ended       (seen by the kubelet, which looks once a second)
    next         the next Job is there     (this operator)

What the process itself says of its time parts `ended - running` into start, work and the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster_parts.room import JOBS, PODS, Watch
from harness.cluster import Cluster

__all__ = ["PHASES", "Steps", "critical_path"]

PHASES = (
    "operator", "pod made", "scheduled", "container up", "start, imports", "work", "seen to end",
)  # fmt: skip


@dataclass
class Job:
    """What was seen of one, in seconds of this process's clock."""

    name: str
    task: str
    tasks: int
    asked: float
    pod: float = 0.0
    scheduled: float = 0.0
    running: float = 0.0
    ended: float = 0.0
    words: dict[str, Any] = field(default_factory=dict)

    @property
    def phases(self) -> tuple[float, ...]:
        """Seconds of each phase but the first, which is what came before the Job."""
        start = float(self.words.get("startSeconds", 0.0))
        work = float(self.words.get("seconds", 0.0))
        return (
            self.pod - self.asked,
            self.scheduled - self.pod,
            self.running - self.scheduled,
            start,
            work,
            self.ended - self.running - start - work,
        )


class Steps:
    """Watches the Jobs of a namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._namespace = namespace
        self.jobs: dict[str, Job] = {}
        self._pods: dict[str, dict[str, Any]] = {}
        self._watches = [Watch(cluster, JOBS, self._job), Watch(cluster, PODS, self._pod)]

    def stop(self) -> list[Job]:
        """Watch no more; returns the Jobs that ended, in the order in which they were made."""
        for watch in self._watches:
            watch.stop()
        for name, seen in self._pods.items():
            if name in self.jobs:
                for what, value in seen.items():
                    setattr(self.jobs[name], what, value)
        return sorted((j for j in self.jobs.values() if j.ended), key=lambda job: job.asked)

    def _job(self, _kind: str, value: dict[str, Any], at: float) -> None:
        meta = value["metadata"]
        if meta["namespace"] != self._namespace:
            return
        notes = meta["annotations"]
        chain = json.loads(notes.get("genai-operator.dev/chain", "[]"))
        job = Job(meta["name"], notes["genai-operator.dev/task"], 1 + len(chain), at)
        self.jobs.setdefault(meta["name"], job)

    def _pod(self, _kind: str, value: dict[str, Any], at: float) -> None:
        meta = value["metadata"]
        name = meta["labels"].get("batch.kubernetes.io/job-name", "")
        if meta["namespace"] != self._namespace or not name:
            return
        seen = self._pods.setdefault(name, {"pod": at})
        if value["spec"].get("nodeName"):
            seen.setdefault("scheduled", at)
        for container in value.get("status", {}).get("containerStatuses", ()):
            state = container["state"]
            if "running" in state or "terminated" in state:
                seen.setdefault("running", at)
            if "terminated" in state and "ended" not in seen:
                seen["ended"] = at
                seen["words"] = json.loads(state["terminated"].get("message") or "{}")


def critical_path(jobs: Sequence[Job], began: float) -> list[tuple[Job, tuple[float, ...]]]:
    """The Jobs that each began when the one before ended, back from the last; with their phases."""
    path: list[Job] = []
    last: Job | None = max(jobs, key=lambda job: job.ended, default=None)
    while last is not None:
        path.append(last)
        before = [job for job in jobs if job.ended <= last.asked]
        last = max(before, key=lambda job: job.ended, default=None)
    path.reverse()
    found = []
    for job in path:
        found.append((job, (job.asked - began, *job.phases)))
        began = job.ended
    return found
