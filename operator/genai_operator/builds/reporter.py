"""Writes a build's status, and tells people what it means: Events, log lines, counters.

Only what changed is written. An Event tells of a transition: of Ready, its reason, and the
generation and request that this is about.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from genai_core.reasons import Reason
from genai_operator.builds.status import Outcome, build_status
from genai_operator.kube.apiserver.api import Api
from genai_operator.kube.build import build_view
from genai_operator.kube.status.conditions import condition_of, ready_of
from genai_operator.kube.status.status_writer import StatusWriter, Written
from genai_operator.kube.times import parse_time
from genai_operator.kube.values import Json
from genai_operator.kube.watch.observed import Observed
from genai_operator.metric_labels import operation_label
from genai_operator.metrics import BUILD_SECONDS, BUILDS_ENDED, TASKS

__all__ = ["Reporter"]

log = logging.getLogger("genai_operator.builds.reporter")

UNKNOWN_ARCHITECTURE = "UnknownArchitecture"
"""A warning of ingest that begins so is an Event too: what is built may not be the model."""
_GOING_WELL = {Reason.PROGRESSING, Reason.BUILT, Reason.SUSPENDED}


class Reporter:
    """See the module's docstring."""

    def __init__(self, api: Api, observed: Observed) -> None:
        self._timing = observed.timing
        self._writer = StatusWriter(
            api,
            "genaibuilds",
            "GenAIBuild",
            keep=lambda value: observed.builds.put(value, build_view(value)),
            stands=_stands,
            timing=observed.timing,
        )

    async def report(self, value: Json, outcome: Outcome) -> None:
        """Write the status if it changed, and an event of what that means to people."""
        meta = value["metadata"]
        previous = value.get("status") or {}
        generation = meta.get("generation", 0)
        status = build_status(outcome, previous, generation=generation, now=self._timing.now())
        reason = ready_of(status)[1]
        written = await self._writer.write(value, status, warning=reason not in _GOING_WELL)
        if written is Written.NOT:
            return
        if written is Written.OTHERWISE:
            _count_end(meta, previous, status, self._timing.now())
            build = f"{meta['namespace']}/{meta['name']}"
            log.info("build changed", extra={"build": build, "reason": reason})
        newer = condition_of(status, "ToolchainOutdated")
        if newer is not None and condition_of(previous, "ToolchainOutdated") is None:
            await self._writer.event(value, newer["reason"], newer["message"])
        for text in status.get("warnings", ()):
            if text.startswith(UNKNOWN_ARCHITECTURE) and text not in previous.get("warnings", ()):
                await self._writer.event(value, UNKNOWN_ARCHITECTURE, text, warning=True)


def _stands(status: Mapping[str, Any]) -> tuple[object, ...]:
    """What an event tells of: Ready, its reason, and of which generation and request."""
    return (*ready_of(status), status.get("observedGeneration"), status.get("requestedAt", ""))


def _count_end(
    meta: Mapping[str, Any], previous: Mapping[str, Any], status: Mapping[str, Any], now: datetime
) -> None:
    """A generation came to its end, whatever that is."""
    ready, reason = ready_of(status)
    if ready == "Unknown":
        return
    BUILDS_ENDED.labels(reason=reason).inc()
    if ready != "True":
        return
    for stage in status.get("stages", ()):
        TASKS.labels(operation=operation_label(stage["operation"]), result="cached").inc(
            stage["cached"]
        )
    before = condition_of(previous, "Ready")
    # A spec that changed and was built already: no pass found it unfinished.
    if before is None or before["status"] != "True":
        since = before["lastTransitionTime"] if before else meta["creationTimestamp"]
        BUILD_SECONDS.observe((now - parse_time(since)).total_seconds())
