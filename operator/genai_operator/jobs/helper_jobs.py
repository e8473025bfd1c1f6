"""Helper Jobs: sent where the operator has no credentials itself, and what they tell.

A Job's answer is read from its pod's log once; whoever asks again after that, or after the log is
gone, sends another Job. Those of a build are its Jobs like any other (`builds.helper_jobs`); those
of a store belong to the ArtifactStore.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import timedelta

from genai_core.canonical import digest_json
from genai_core.errors import GenAIError, ToolFailed, from_dict
from genai_core.helper_jobs import (
    CollectFile,
    HelperAnswer,
    LeaseFile,
    LookFile,
    ProbeFile,
    read_answer,
)
from genai_core.kinds.build import Run
from genai_core.names import Key
from genai_core.reasons import Reason
from genai_operator.errors import Stalled, Waiting, not_enabled, of_error
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.applier import Applier
from genai_operator.jobs.attempts import group
from genai_operator.jobs.holds import Standing
from genai_operator.jobs.job_manifest import JobRequest, Owner, scope_of
from genai_operator.jobs.renewal import renewal
from genai_operator.jobs.standings import Standings
from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.pod import Ending
from genai_operator.kube.watch.observed import Observed
from genai_operator.targets.build_targets import BuildTarget

__all__ = ["HELPER_BYTES", "Document", "HelperJobs", "question_key"]

HELPER_BYTES = 384 << 20
"""What such a Job may use, where nobody says otherwise."""
_MOST_LOG_BYTES = 16 << 20
_WORDS = timedelta(seconds=5)
_AGAIN = timedelta(seconds=30)

Document = LookFile | LeaseFile | ProbeFile | CollectFile


def question_key(*parts: object) -> Key:
    """A key that is the same for the same question."""
    return Key(digest_json({"schema": "genai.errand/1", "parts": [str(part) for part in parts]}))


class HelperJobs:
    """See the module's docstring."""

    def __init__(self, api: Api, observed: Observed, applier: Applier) -> None:
        self._api = api
        self._observed = observed
        self._applier = applier
        self.standings = Standings(api, observed)
        self._heard: set[str] = set()
        self._answered: set[str] = set()

    def answered(self, job: JobView) -> bool:
        """Its answer was read."""
        return job.uid in self._answered

    def keep(self, uids: Collection[str]) -> None:
        """Forget Jobs that are gone."""
        self._heard.intersection_update(uids)
        self.standings.keep(uids)
        self._answered.intersection_update(uids)

    def unheard(self, jobs: Iterable[JobView]) -> list[JobView]:
        """Jobs that did their work and were not listened to yet."""
        left = [job for job in jobs if job.uid not in self._heard]
        pods = {space: self._observed.pods_of(space) for space in {job.namespace for job in left}}
        return [
            job
            for job in left
            # The pod says so seconds before the Job does.
            if job.state is JobState.SUCCEEDED
            or any(pod.succeeded for pod in pods[job.namespace].get(job.name, ()))
        ]

    def ending(self, job: JobView) -> Ending | None:
        """How its pod ended."""
        pods = self._observed.pods_of(job.namespace).get(job.name, ())
        return next((pod.ending for pod in pods if pod.ending is not None), None)

    def may_yet_tell(self, job: JobView) -> bool:
        """It ended a moment ago and its pod was not seen to: they come by different watches."""
        soon = job.ended_at is not None and self._observed.timing.now() < job.ended_at + _WORDS
        return soon and self.ending(job) is None

    async def hear(self, job: JobView) -> HelperAnswer | None:
        """Read a Job's log, once; None where it holds no answer.

        Raises:
            Waiting: Its pod was not seen yet, or logs may not be read.
        """
        pods = self._observed.pods_of(job.namespace).get(job.name, [])
        ended = [pod for pod in pods if pod.ending is not None and pod.ending.exit_code == 0]
        if not ended and job.ended_at and self._observed.timing.now() < job.ended_at + _WORDS:
            raise Waiting(Reason.PROGRESSING, f"{job.task} has ended", after=0.5)
        self._heard.add(job.uid)
        for pod in ended:
            try:
                log = await self._api.read(
                    "pods/log", pod.name, namespace=pod.namespace, most_bytes=_MOST_LOG_BYTES
                )
            except ApiError as error:
                if error.code != 403:
                    raise
                self._heard.discard(job.uid)
                raise not_enabled("read logs of pods", pod.namespace) from error
            answer = read_answer(log) if log else None
            if answer is not None:
                self._answered.add(job.uid)
                return answer
        return None

    async def of_object(
        self,
        namespace: str,
        document: Document,
        key: Key,
        *,
        owner: Owner,
        access: StoreAccess,
        target: BuildTarget,
        anew: bool = False,
    ) -> Ending | None:
        """Send a Job, or see how the one that was sent ended; None while it is under way.

        Args:
            namespace: Of the object.
            document: What is asked.
            key: The same for the same question.
            owner: The object that asks.
            access: To the store.
            target: Whose image is used.
            anew: What an earlier Job found counts for nothing any more.

        Raises:
            Stalled: It says what the user must do.
            Waiting: It says what stands in its way.
        """
        run = Run(retries=0, active_deadline_seconds=1800)
        scope = scope_of(access.address, run)
        attempts = group(self._observed.jobs_of(namespace, scope)).get(key, [])
        request = JobRequest(
            namespace=namespace,
            key=key,
            operation=document.kind,
            task=document.kind,
            document=document,
            image=target.image,
            memory_bytes=HELPER_BYTES,
            node_selector=target.node_selector,
        )
        attempt = 1
        if attempts:
            last = attempts[-1]
            attempt = last.attempt + 1
            for old in attempts[:-1]:
                await self._applier.delete(old)
            if last.deleting or last.state is JobState.ACTIVE:
                wanted = request.wanted(owner, run=run, access=access)
                pods = self._observed.pods_of(namespace).get(last.name, ())
                renewed = renewal(last, pods, wanted, now=self._observed.timing.now())
                if renewed is not None and renewed.after <= 0:
                    await self._applier.renew(renewed, owner)
                return None
            ending = self.ending(last)
            now = self._observed.timing.now()
            if ending is None and last.ended_at and now < last.ended_at + _WORDS:
                return None
            if last.state is JobState.SUCCEEDED and ending is not None and not anew:
                return ending
            if last.state is JobState.FAILED and (
                not last.ended_at or now < last.ended_at + _AGAIN
            ):
                raise _problem(last, ending)
        request = replace(request, attempt=attempt)
        await self._applier.create(request, owner, run=run, access=access)
        return None

    async def waiting(self, namespace: str) -> Standing:
        """How a store's Job stands."""
        jobs = [
            job
            for job in self._observed.jobs
            if job.namespace == namespace and job.operation == "probe"
        ]
        return await self.standings.of(namespace, jobs)


def _problem(job: JobView, ending: Ending | None) -> Stalled | Waiting:
    error: GenAIError = ToolFailed(job.message or "its pod is gone", where=job.task)
    if ending is not None and isinstance(ending.message.get("error"), dict):
        error = from_dict(ending.message["error"])
    return of_error(error)
