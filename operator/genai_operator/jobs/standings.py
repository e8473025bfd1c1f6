"""How a build's Jobs stand, with the cluster's own words where Events alone have them.

A Job may get no pod: because of a quota, a policy, a missing service account. A pod's container may
not be created: a volume cannot be mounted, or a network cannot be set up. Only Events say why. They
are listed once in a while, for what stands still because of that, and for nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import aiohttp

from genai_core.reasons import Reason
from genai_operator.jobs.holds import Standing, standing
from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.job import JobView
from genai_operator.kube.pod import PodView
from genai_operator.kube.watch.observed import Observed

__all__ = ["Standings"]

_ASKED_SECONDS = 15.0
_SILENT_SECONDS = 5.0
"""Between two listings while there is no Event: a pod that is scheduled late also fails late."""
_MOST_EVENTS = 20
_MOST_WORDS = 500
_POD = re.compile(r'^pods "[^"]*" ')
_POD_REMEDIES = (
    ("quota", "raise the quota, or lower spec.run.resources"),
    ("serviceaccount", "make the account, or change spec.run.serviceAccountName"),
    ("service account", "make the account, or change spec.run.serviceAccountName"),
    ("PriorityClass", "make the class, or change spec.run.priorityClassName"),
    ("PodSecurity", "change what the namespace enforces"),
    ("limit", "change spec.run.resources, or the namespace's LimitRange"),
    ("maximum", "change spec.run.resources, or the namespace's LimitRange"),
    ("minimum", "change spec.run.resources, or the namespace's LimitRange"),
)
_FAILURES = frozenset(
    {
        *("FailedMount", "FailedAttachVolume", "FailedMapVolume"),
        *("FailedCreatePodSandBox", "FailedPodSandBoxStatus", "NetworkNotReady"),
    }
)
_CREATION_REMEDIES = (
    ("secret", "make it, or name another in the ArtifactStore, or in spec.model"),
    ("configmap", "make it"),
    ("claim", "change spec.run.scratch.storageClassName, or mend the volume"),
    ("volume", "change spec.run.scratch.storageClassName, or mend the volume"),
)
_NODE = "the node's network or runtime fails: whoever runs the cluster mends that"


class Standings:
    """See the module's docstring."""

    def __init__(self, api: Api, observed: Observed) -> None:
        self._api = api
        self._observed = observed
        self._known: dict[str, tuple[float, str, str]] = {}

    async def of(
        self, namespace: str, jobs: Collection[JobView], *, queued: bool = False
    ) -> Standing:
        """How the Jobs stand that a build or a store waits for."""
        pods = self._observed.pods_of(namespace)
        stands = standing(jobs, pods, now=self._observed.timing.now(), queued=queued)
        if stands.podless is not None:
            return await self._podless(stands, stands.podless)
        if stands.creating is not None:
            return await self._creating(stands, *stands.creating)
        return stands

    async def _podless(self, stands: Standing, job: JobView) -> Standing:
        """Of a Job without a pod, in the Job controller's words."""
        event = await self._event(job, job.uid, _latest_refusal)
        soon = _soon(stands, event)
        if not event:
            return replace(stands, after=soon)
        words = _POD.sub("its pod ", event.removeprefix("Error creating: "))  # its name changes
        remedy = next((remedy for word, remedy in _POD_REMEDIES if word in words), "")
        held = f"{job.task} gets no pod: {words}"
        return replace(stands, held=f"{held}; {remedy}" if remedy else held, after=soon)

    async def _creating(self, stands: Standing, job: JobView, pod: PodView) -> Standing:
        """Of a pod without a container, in the kubelet's words, if its last Event is a failure."""
        words = await self._event(job, pod.uid, _latest_failure)
        soon = _soon(stands, words)
        if not words:
            return replace(stands, after=soon)
        plain = words.lower()
        remedy = next((remedy for word, remedy in _CREATION_REMEDIES if word in plain), _NODE)
        return replace(
            stands,
            works=False,
            reason=Reason.CONTAINER_NOT_CREATED,
            held=f"{job.task} waits: {words}; {remedy}",
            after=soon,
        )

    def keep(self, uids: Collection[str]) -> None:
        """Forget Jobs that are gone."""
        for uid in self._known.keys() - set(uids):
            del self._known[uid]

    async def _event(
        self, job: JobView, about: str, choose: Callable[[list[dict[str, Any]]], str]
    ) -> str:
        """What Events say of a Job or its pod; empty where nobody says, or they may not be read."""
        at, uid, known = self._known.get(job.uid, (float("-inf"), "", ""))
        if uid == about and self._observed.timing.monotonic() - at < _pause(known):
            return known
        try:
            events, _ = await self._api.list(
                "events", namespace=job.namespace, about=about, most=_MOST_EVENTS
            )
        except (ApiError, aiohttp.ClientError, TimeoutError):
            events = []
        words = " ".join(choose(events).split())[:_MOST_WORDS]
        self._known[job.uid] = (self._observed.timing.monotonic(), about, words)
        return words


def _pause(words: str) -> float:
    return _ASKED_SECONDS if words else _SILENT_SECONDS


def _soon(stands: Standing, words: str) -> float:
    """Seconds until Events are listed again, or the standing changes by itself."""
    return min(_pause(words), stands.after or _ASKED_SECONDS)


def _latest_refusal(events: list[dict[str, Any]]) -> str:
    failed = [event for event in events if event.get("reason") == "FailedCreate"]
    return str(max(failed, key=_seen_at).get("message", "")) if failed else ""


def _latest_failure(events: list[dict[str, Any]]) -> str:
    """The kubelet's, if it has said nothing else since: what it tries again may have succeeded.

    What others say of the pod meanwhile, a node's controller or a scaler, tells nothing of that.
    """
    last = max(filter(_of_kubelet, events), key=_seen_at, default=None)
    failed = last is not None and last.get("reason") in _FAILURES
    return str(last.get("message", "")) if last is not None and failed else ""


def _of_kubelet(event: dict[str, Any]) -> bool:
    component = (event.get("source") or {}).get("component") or event.get("reportingComponent")
    return component in {None, "", "kubelet"}


def _seen_at(event: dict[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
