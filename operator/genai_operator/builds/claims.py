"""A build's claims on its Jobs, dropped when one is not needed; a Job ends with its last claim."""

from __future__ import annotations

from collections.abc import Iterable

from genai_core.sources.resolved import RESOLVE
from genai_operator.builds.build_pass import BuildPass
from genai_operator.jobs.applier import Applier
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.watch.observed import Observed

__all__ = ["Claims"]


class Claims:
    """See the module's docstring."""

    def __init__(self, observed: Observed, applier: Applier) -> None:
        self._observed = observed
        self._applier = applier

    async def note_endings(self, build: BuildPass) -> None:
        """Write on failed Jobs how their pods ended, while those are there."""
        for job, pod in self._observed.unnoted(build.owner.uid):
            await self._applier.note_ending(job, pod)

    async def forget_failures(self, build: BuildPass) -> None:
        """A new generation, or the user's request, tries again what failed before.

        What other builds claim too stays theirs, and is no failure of this one any more.
        """
        for job in self._observed.claimed_by(build.owner.uid):
            if job.state is JobState.FAILED:
                await self._applier.release(job, build.owner.uid)

    async def keep_failures(self, build: BuildPass) -> None:
        """Drop all but what failed: without that the next pass would begin anew."""
        claimed = self._observed.claimed_by(build.owner.uid)
        failed = [job.uid for job in claimed if job.state is JobState.FAILED]
        await self.release(claimed, build.owner.uid, keep=failed)

    async def release_all(self, uid: str) -> None:
        """Drop all claims of a build."""
        await self.release(self._observed.claimed_by(uid), uid, keep=())

    async def release(self, claimed: list[JobView], uid: str, *, keep: Iterable[str]) -> None:
        """Drop claims on Jobs that are not needed."""
        needed = set(keep)
        for job in claimed:
            # One that resolves is at what an earlier generation asked: its answer is known by now.
            ours = job.operation == RESOLVE and job.state is not JobState.ACTIVE
            unwanted = job.uid not in needed and not ours
            if job.state is not JobState.SUCCEEDED and (unwanted or not needed):
                await self._applier.release(job, uid)
