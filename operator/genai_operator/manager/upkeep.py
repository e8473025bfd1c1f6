"""Done every few seconds, whatever happens: gauges are set, and what is over is cleared away.

Jobs are deleted when their time is over. A pod whose node is gone never ends by itself: its Job is
made anew on another node, without waiting for a grace period that no kubelet keeps.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from genai_core.names import Key
from genai_operator.deployments.states import DeploymentState, deployment_state
from genai_operator.jobs.holds import BLOCKED
from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.status.conditions import ready_of
from genai_operator.kube.status.status_phase import Phase
from genai_operator.kube.watch.observed import Observed
from genai_operator.metrics import (
    BUILDS,
    BUILDS_BLOCKED,
    DEPLOYMENTS,
    JOBS_ACTIVE,
    QUEUE_DEPTH,
    STORES,
    TARGETS,
)

__all__ = ["Upkeep", "outlived"]

log = logging.getLogger("genai_operator.manager.upkeep")


class Upkeep:
    """See the module's docstring.

    Args:
        api: The apiserver.
        observed: The watch cache.
        wake: Has those who claim a Job looked at.
    """

    def __init__(self, api: Api, observed: Observed, *, wake: Callable[[JobView], None]) -> None:
        self._api = api
        self._observed = observed
        self._wake = wake

    def count(self, due: int) -> None:
        """Every series stands from the start: what is absent cannot be told from an outage.

        Args:
            due: Objects that wait for a worker.
        """
        QUEUE_DEPTH.set(due)
        JOBS_ACTIVE.set(sum(job.state is JobState.ACTIVE for job in self._observed.jobs))
        states = Counter(build.phase or Phase.NEW for build in self._observed.builds)
        for state in Phase:
            BUILDS.labels(state=state).set(states[state])
        reasons = Counter(build.reason for build in self._observed.builds)
        for reason in BLOCKED:
            BUILDS_BLOCKED.labels(reason=reason).set(reasons[reason])
        served = Counter(
            deployment_state(value.get("status") or {}) for value in self._observed.deployments
        )
        for standing in DeploymentState:
            DEPLOYMENTS.labels(state=standing).set(served[standing])
        for gauge, kept in ((STORES, self._observed.stores), (TARGETS, self._observed.targets)):
            ready = Counter(ready_of(value.get("status") or {})[0] for value in kept)
            for status in ("True", "False"):
                gauge.labels(ready=status).set(ready[status])
            gauge.labels(ready="Unknown").set(ready["Unknown"] + ready[""])

    async def clear(self) -> None:
        """Remove what nobody needs any more, and give up what is lost."""
        phases = {build.uid: build.phase for build in self._observed.builds}
        for job in outlived(self._observed.jobs, phases, self._observed.timing.now()):
            await self._delete(job)
        await self._give_up_lost_pods()

    async def _give_up_lost_pods(self) -> None:
        works: dict[str, bool] = {}
        for pod in self._observed.pods:
            if not pod.deleting or pod.phase in {"Succeeded", "Failed"} or not pod.node:
                continue
            if pod.node not in works:
                works[pod.node] = await self._may_still_run(pod.node)
            if works[pod.node]:
                continue
            job = self._observed.jobs.get(pod.namespace, pod.job)
            log.warning("a node is gone", extra={"node": pod.node, "pod": pod.name})
            if job is not None and job.state is JobState.ACTIVE:
                await self._delete(job)
                self._wake(job)
            await self._api.delete("pods", pod.name, namespace=pod.namespace, uid=pod.uid, grace=0)

    async def _may_still_run(self, name: str) -> bool:
        """Whether a node works, or cannot be asked after: its pods are then Kubernetes' to give up.

        An operator for some namespaces has no right to read nodes.
        """
        try:
            node = await self._api.get("nodes", name)
        except ApiError as error:
            if error.code == 403:
                return True
            raise
        return node is not None and _is_ready(node)

    async def _delete(self, job: JobView) -> None:
        await self._api.delete("jobs", job.name, namespace=job.namespace, uid=job.uid)
        self._observed.delete(job)


def outlived(jobs: Iterable[JobView], phases: Mapping[str, str], now: datetime) -> list[JobView]:
    """Jobs that go: those that succeeded, with their failed attempts, when their time is over.

    A failure stays for people to look at, unless all builds that claim it came to a good end all
    the same: a chain that failed half way was gone on with under the next task's name.

    Args:
        jobs: All.
        phases: UID of a build -> its phase.
        now: The time.
    """
    places: dict[tuple[str, str, Key], list[JobView]] = {}
    for job in sorted(jobs, key=lambda job: job.attempt):
        places.setdefault((job.namespace, job.scope, job.key), []).append(job)
    over: list[JobView] = []
    for attempts in places.values():
        last = attempts[-1]
        if last.ended_at is None or now < last.ended_at + timedelta(seconds=last.ttl_seconds):
            continue
        owners = {phases.get(uid, "") for uid in last.owners}
        succeeded = last.state is JobState.SUCCEEDED
        # One that nobody claims was left behind by `kubectl delete --cascade=orphan`.
        if owners.isdisjoint({"Building", "Waiting"}) if succeeded else owners <= {"Ready"}:
            over += attempts
    return over


def _is_ready(node: Mapping[str, Any]) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in node.get("status", {}).get("conditions") or ()
    )
