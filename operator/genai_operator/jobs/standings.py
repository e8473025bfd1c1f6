"""How a build's Jobs stand, with the cluster's own words where it makes no pod of one.

A quota, a policy, a missing account: only the Job controller's Events of the Job say which. They
are asked for once in a while, of what stands still because of that, and of nothing else.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import aiohttp

from genai_operator.jobs.holds import Standing, standing
from genai_operator.kube.client import Api, ApiError
from genai_operator.kube.job import JobView
from genai_operator.kube.observed import Observed

__all__ = ["Standings"]

_ASKED_SECONDS = 15.0
_MOST_EVENTS = 20
_MOST_WORDS = 500
_POD = re.compile(r'^pods "[^"]*" ')
_REMEDIES = (
    ("quota", "raise the quota, or lower spec.run.resources"),
    ("serviceaccount", "make the account, or change spec.run.serviceAccountName"),
    ("service account", "make the account, or change spec.run.serviceAccountName"),
    ("PriorityClass", "make the class, or change spec.run.priorityClassName"),
    ("PodSecurity", "change what the namespace enforces"),
    ("limit", "change spec.run.resources, or the namespace's LimitRange"),
    ("maximum", "change spec.run.resources, or the namespace's LimitRange"),
    ("minimum", "change spec.run.resources, or the namespace's LimitRange"),
)


class Standings:
    """See the module's docstring."""

    def __init__(
        self, api: Api, observed: Observed, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._observed = observed
        self._clock = clock
        self._known: dict[str, tuple[float, str]] = {}

    async def of(
        self, namespace: str, jobs: Collection[JobView], *, queued: bool = False
    ) -> Standing:
        """Judge the Jobs at whose end a build, or a store, goes on."""
        pods = self._observed.pods_of(namespace)
        found = standing(jobs, pods, now=datetime.now(UTC), queued=queued)
        if found.podless is None:
            return found
        words = await self._words(found.podless)
        soon = min(_ASKED_SECONDS, found.after or _ASKED_SECONDS)
        if not words:
            return replace(found, after=soon)
        remedy = next((remedy for word, remedy in _REMEDIES if word in words), "")
        held = f"{found.podless.task} gets no pod: {words}"
        return replace(found, held=f"{held}; {remedy}" if remedy else held, after=soon)

    def keep(self, uids: Collection[str]) -> None:
        """Forget Jobs that are gone."""
        for uid in self._known.keys() - set(uids):
            del self._known[uid]

    async def _words(self, job: JobView) -> str:
        """Why no pod is made of it; empty where nobody says, or it may not be read."""
        at, known = self._known.get(job.uid, (float("-inf"), ""))
        if self._clock() - at < _ASKED_SECONDS:
            return known
        try:
            events, _ = await self._api.list(
                "events", namespace=job.namespace, about=job.uid, most=_MOST_EVENTS
            )
        except (ApiError, aiohttp.ClientError, TimeoutError):
            events = []
        failed = [event for event in events if event.get("reason") == "FailedCreate"]
        words = str(max(failed, key=_seen_at).get("message", "")) if failed else ""
        words = " ".join(words.split()).removeprefix("Error creating: ")[:_MOST_WORDS]
        words = _POD.sub("its pod ", words)  # each try has another name
        self._known[job.uid] = (self._clock(), words)
        return words


def _seen_at(event: dict[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
