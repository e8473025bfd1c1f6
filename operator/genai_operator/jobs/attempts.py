"""Which Jobs were attempts at a task: those that began with it, and those that came to it. Pure.

A Job of several tasks bears the key of its first; the others are known by their derivations, and a
failure is an attempt at the one that its pod had come to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from genai_core.names import Digest, Key
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.pod import PodView

__all__ = ["Attempts", "group", "name_of", "place_of", "step_of"]


def group(jobs: Iterable[JobView]) -> dict[Key, list[JobView]]:
    """Attempts by key of their first task, in order."""
    by_key: dict[Key, list[JobView]] = {}
    for job in sorted(jobs, key=lambda job: job.attempt):
        by_key.setdefault(job.key, []).append(job)
    return by_key


class Attempts:
    """Which Jobs were attempts at a task: those that began with it, and those that came to it."""

    def __init__(self, jobs: Iterable[JobView], pods: Mapping[str, list[PodView]]) -> None:
        self._pods = pods
        self._by_key = group(jobs)
        self._by_derivation: dict[Digest, list[JobView]] = {}
        for attempts in self._by_key.values():
            for job in attempts:
                for link in job.chain:
                    self._by_derivation.setdefault(link.derivation, []).append(job)

    @property
    def any_chain(self) -> bool:
        """Whether derivations matter at all."""
        return bool(self._by_derivation)

    def at(self, key: Key, derivation: Digest | None) -> list[JobView]:
        """The attempts at a task, in order."""
        begun = self._by_key.get(key, [])
        joined = self._by_derivation.get(derivation, ()) if derivation else ()
        if not joined:
            return begun
        further = [
            job
            for job in joined
            if job.key != key
            and (job.state is not JobState.FAILED or self._came_to(job, place_of(job, derivation)))
        ]
        return sorted([*begun, *further], key=lambda job: (job.created_at, job.attempt))

    def _came_to(self, job: JobView, place: int) -> bool:
        step = step_of(self._pods.get(job.name, ()))
        return step is None or step >= place


def place_of(job: JobView, derivation: Digest | None) -> int:
    """Where in a Job's chain a task stands; 0 = it is the first."""
    for number, link in enumerate(job.chain, 1):
        if link.derivation == derivation:
            return number
    return 0


def step_of(pods: Iterable[PodView]) -> int | None:
    """Where a Job's last pod ended; None where it left no word of it."""
    ended = [pod for pod in pods if pod.ending is not None]
    if not ended:
        return None
    last = max(ended, key=lambda pod: pod.created_at)
    return last.ending.step if last.ending else None


def name_of(job: JobView, place: int) -> str:
    """The task that stands there."""
    return job.chain[place - 1].task if place else job.task
