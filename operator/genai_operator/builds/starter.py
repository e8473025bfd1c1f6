"""Creates a build's Jobs; a further attempt at a task is counted, logged and told in an Event.

The Event names task, attempt and reason. A build posts a burst of them, then one a minute: a node
that refuses a thousand pods is one fault and not a thousand. The next says how many were left out.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from genai_operator.builds.build_pass import BuildPass
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.applier import Applier
from genai_operator.jobs.job_manifest import JobRequest, scope_of
from genai_operator.jobs.verdicts import NextAttempt, Retry
from genai_operator.kube.job import JobState, JobView
from genai_operator.metric_labels import operation_label
from genai_operator.metrics import TASK_RETRIES
from genai_operator.timing import SYSTEM, Timing

__all__ = ["Starter"]

log = logging.getLogger("genai_operator.builds.starter")

_BURST = 10.0
_SECONDS_A_PIECE = 60.0
_TAKEN_SECONDS = 1.0


class Starter:
    """See the module's docstring."""

    def __init__(self, applier: Applier, *, timing: Timing = SYSTEM) -> None:
        self._applier = applier
        self._timing = timing
        self._starting: list[tuple[tuple[str, str], JobRequest]] = []
        self._allowances: dict[str, _Allowance] = {}

    async def start(
        self,
        build: BuildPass,
        request: JobRequest,
        attempt: NextAttempt,
        *,
        access: StoreAccess,
        newer: Iterable[JobView] = (),
    ) -> None:
        """Create a Job, or claim the one of that name.

        Nothing is started where another build has begun one of its tasks since this one was looked
        at, under the name of another Job: that would make it twice. It is looked at again.

        Args:
            build: The build.
            request: The Job.
            attempt: Which attempt it is, and why.
            access: To store and source.
            newer: Jobs that have come to light since the build was looked at.

        Raises:
            Waiting: See `Applier.create`.
            Stalled: Likewise.
        """
        place = (request.namespace, scope_of(access.address, build.spec.run))
        if self._is_taken(place, request, newer):
            log.info("another job makes it", extra={"task": request.task})
            build.look_after(_TAKEN_SECONDS)
            return
        entry = place, request
        self._starting.append(entry)
        try:
            build.joined |= await self._applier.create(
                request, build.owner, run=build.spec.run, access=access
            )
        finally:
            self._starting.remove(entry)
        build.started = True
        if attempt.retry is not None:
            for job in attempt.retry.spent:
                await self._applier.release(job, build.owner.uid)
            await self._tell(build, request, attempt.retry)

    def _is_taken(
        self, place: tuple[str, str], request: JobRequest, newer: Iterable[JobView]
    ) -> bool:
        """Whether another Job makes some of it; the one of the same name is joined instead."""
        others: list[JobView | JobRequest] = [
            job for there, job in self._starting if there == place
        ]
        others += [job for job in newer if job.state is JobState.ACTIVE]
        own = request.key, request.attempt
        return any((job.key, job.attempt) != own and request.makes & job.makes for job in others)

    def keep(self, uids: Collection[str]) -> None:
        """Forget builds that are gone."""
        for uid in self._allowances.keys() - set(uids):
            del self._allowances[uid]

    async def _tell(self, build: BuildPass, request: JobRequest, retry: Retry) -> None:
        log.info("task tried again", extra={"task": request.task, "why": retry.why})
        TASK_RETRIES.labels(operation=operation_label(request.operation), reason=retry.reason).inc()
        now = self._timing.monotonic()
        allowance = self._allowances.setdefault(build.owner.uid, _Allowance(now))
        if not allowance.take(now):
            return
        why = retry.why.removeprefix(f"{request.task}: ")
        more = f" ({allowance.left_out} more since the last)" if allowance.left_out else ""
        allowance.left_out = 0
        await self._applier.event(
            build.value,
            "GenAIBuild",
            reason="TaskRetried",
            message=f"attempt {retry.tries + 1} at {request.task}: {why}{more}",
            warning=True,
        )


class _Allowance:
    """How many Events a build may still post."""

    def __init__(self, now: float) -> None:
        self._tokens = _BURST
        self._at = now
        self.left_out = 0

    def take(self, now: float) -> bool:
        self._tokens = min(self._tokens + (now - self._at) / _SECONDS_A_PIECE, _BURST)
        self._at = now
        if self._tokens < 1:
            self.left_out += 1
            return False
        self._tokens -= 1
        return True
