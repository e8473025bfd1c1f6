"""Helper Jobs of a build: sent, retried and claimed like its tasks."""

from __future__ import annotations

from dataclasses import replace

from genai_core.helper_jobs import HelperAnswer
from genai_core.names import Key
from genai_operator.builds.build_pass import WATCHED_SECONDS, BuildPass
from genai_operator.builds.job_changes import JobWriter, changes_of
from genai_operator.errors import of_error
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.attempts import group
from genai_operator.jobs.helper_jobs import HELPER_BYTES, Document, HelperJobs
from genai_operator.jobs.holds import Standing
from genai_operator.jobs.job_manifest import JobRequest, given_memory, scope_of
from genai_operator.jobs.retries import judge
from genai_operator.jobs.verdicts import NextAttempt, PermanentFailure, Verdict, pause_of
from genai_operator.kube.watch.observed import Observed
from genai_operator.targets.build_targets import BuildTarget

__all__ = ["BuildHelperJobs"]


class BuildHelperJobs:
    """See the module's docstring.

    Args:
        jobs: What all helper Jobs have in common.
        observed: The watch cache.
        writer: Applies what is to be done with Jobs.
    """

    def __init__(self, jobs: HelperJobs, observed: Observed, writer: JobWriter) -> None:
        self.jobs = jobs
        self._observed = observed
        self._writer = writer

    async def ask(
        self,
        build: BuildPass,
        document: Document,
        key: Key,
        *,
        access: StoreAccess,
        target: BuildTarget,
    ) -> HelperAnswer | Standing:
        """Send a Job, or listen to the one that was sent.

        Returns:
            What it told; while it is under way, how it stands.

        Raises:
            Stalled: It failed for good.
            Waiting: The store cannot be used now.
        """
        scope = scope_of(access.address, build.spec.run)
        attempts = group(self._observed.jobs_of(build.namespace, scope)).get(key, [])
        request = JobRequest(
            namespace=build.namespace,
            key=key,
            operation=document.kind,
            task=document.kind,
            document=document,
            image=target.image,
            memory_bytes=given_memory(build.spec.run) or HELPER_BYTES,
            node_selector=target.node_selector,
        )
        verdict: Verdict = NextAttempt()
        if attempts:
            for job in self.jobs.unheard(attempts[-1:]):
                answer = await self.jobs.hear(job)
                if answer is not None:
                    return answer
            # One that did answer was no attempt at what is asked once more.
            tried = [job for job in attempts if not self.jobs.answered(job)]
            if tried:
                verdict = judge(
                    tried,
                    self._observed.pods_of(build.namespace),
                    retries=build.spec.run.retries,
                    now=self._observed.timing.now(),
                    owner=build.owner.uid,
                    wanted=request.wanted(build.owner, run=build.spec.run, access=access),
                    task_seconds=build.spec.run.active_deadline_seconds,
                )
            if isinstance(verdict, NextAttempt):
                verdict = replace(verdict, number=attempts[-1].attempt + 1)
        if isinstance(verdict, PermanentFailure):
            raise of_error(verdict.error)
        await self._writer.apply(build, changes_of(verdict, request, attempts, access=access))
        build.after = pause_of(verdict) or WATCHED_SECONDS
        stands = await self.jobs.standings.of(build.namespace, attempts)
        build.look_after(stands.after)
        return stands
