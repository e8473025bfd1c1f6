"""What a pass asks to be done with Jobs: decided here and in `survey`, applied by `JobWriter`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from genai_operator.builds.build_pass import BuildPass
from genai_operator.builds.starter import Starter
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.applier import Applier
from genai_operator.jobs.holds import Standing
from genai_operator.jobs.job_manifest import JobRequest, scope_of
from genai_operator.jobs.renewal import Renewal
from genai_operator.jobs.verdicts import BackingOff, NextAttempt, Renew, Running, Unfailed
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.watch.observed import Observed
from genai_operator.steps import Wait

__all__ = ["JobChanges", "JobWriter", "Start", "changes_of", "wait_of"]

_CREATED_AT_ONCE = 8


@dataclass(frozen=True)
class Start:
    """A Job that is to be created.

    Attributes:
        attempt: Which attempt it is, and why.
        access: To the store, and to the source that it reads.
    """

    request: JobRequest
    attempt: NextAttempt
    access: StoreAccess


@dataclass(frozen=True)
class JobChanges:
    """What is to be done with Jobs.

    Attributes:
        renew: Never started, and written anew.
        claim: Others may have made them; nothing where the build claims them already.
    """

    start: tuple[Start, ...] = ()
    renew: tuple[Renewal, ...] = ()
    claim: tuple[JobView, ...] = ()


def changes_of(
    verdict: Unfailed, request: JobRequest, attempts: Sequence[JobView], *, access: StoreAccess
) -> JobChanges:
    """What is to be done for one question, whose Jobs so far were judged. Pure.

    Args:
        verdict: On those Jobs.
        request: The first attempt, as it was planned.
        attempts: In order.
        access: To the store, and to the source that it reads.
    """
    match verdict:
        case NextAttempt(number=number, memory_bytes=least):
            memory = max(request.memory_bytes, least)
            request = replace(request, attempt=number, memory_bytes=memory)
            return JobChanges(start=(Start(request, verdict, access),))
        case Renew(renewal=renewal):
            return JobChanges(renew=(renewal,))
        case Running() | BackingOff():
            active = [job for job in attempts[-1:] if job.state is JobState.ACTIVE]
            return JobChanges(claim=tuple(active))
        case _:
            assert_never(verdict)


def wait_of(stands: Standing, doing: str) -> Wait:
    """What a build waits for whose Jobs stand so. Pure."""
    return Wait(stands.reason, stands.message(doing), works=stands.works)


class JobWriter:
    """Applies what a pass asks for."""

    def __init__(self, observed: Observed, applier: Applier, starter: Starter) -> None:
        self._observed = observed
        self._applier = applier
        self._starter = starter

    async def apply(
        self, build: BuildPass, changes: JobChanges, *, known: Collection[str] | None = None
    ) -> None:
        """Make Jobs anew, create some, claim others.

        Args:
            build: The build's pass; it notes what it has joined and started.
            changes: What is asked for.
            known: UIDs of the Jobs that were there when that was decided: one that has come to
                light since may be at the same. None: it does not matter.

        Raises:
            Waiting: See `Applier.create`; the others are created all the same.
            Stalled: Likewise.
        """
        free = asyncio.Semaphore(_CREATED_AT_ONCE)

        async def create(start: Start) -> None:
            async with free:
                newer: list[JobView] = []
                if known is not None:
                    scope = scope_of(start.access.address, build.spec.run)
                    jobs = self._observed.jobs_of(build.namespace, scope)
                    newer = [job for job in jobs if job.uid not in known]
                await self._starter.start(
                    build, start.request, start.attempt, access=start.access, newer=newer
                )

        for found in changes.renew:
            await self._applier.renew(found, build.owner)
        problems = await asyncio.gather(*map(create, changes.start), return_exceptions=True)
        renewed = {found.job.uid for found in changes.renew}
        for job in changes.claim:
            if not job.deleting and job.uid not in renewed:
                build.joined |= await self._applier.claim(job, build.owner)
        for problem in problems:
            if problem is not None:
                raise problem
