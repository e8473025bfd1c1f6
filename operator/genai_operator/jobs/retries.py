"""What a task's Jobs mean: does it run, has it failed for good, shall it be tried again. Pure.

exit code 2 (bad input)          failed, at once
out of memory                    once more with twice the memory; a second time: failed
the store did not answer         once more after a pause, as often as it takes
nothing is at the source's address after ever longer pauses, as often as it takes
bytes of an input were lost      the tasks that made them are looked up again, then once more
anything else                    `retries` times more, after growing pauses
a node died, was drained ...     the Job controller replaces the pod; no attempt is spent
a node refused the pod           once more, as often as it takes: the Job controller calls it failed
it ran into its time limit       failed, at once; where the limit was another build's, once more
its pod cannot start             made anew where it would be written differently now (`renewal`)

A build answers for the Jobs that it claims: what others tried with less memory or less time, before
it asked, is no failure of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from genai_core.errors import (
    BadInput,
    DeadlineExceeded,
    GenAIError,
    NoSpace,
    OutOfMemory,
    SourceNotFound,
    ToolchainMismatch,
)
from genai_core.names import Digest
from genai_operator.jobs.attempts import name_of, place_of, step_of
from genai_operator.jobs.failures import STORE_FAULTS, JobFailure, failure_of
from genai_operator.jobs.renewal import Wanted, renewal
from genai_operator.jobs.verdicts import (
    BackingOff,
    NextAttempt,
    PermanentFailure,
    Renew,
    Retry,
    Running,
    Verdict,
)
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.pod import PodView

__all__ = ["judge"]

_MOST_IN_VAIN = 3
_PAUSES = (1.0, 10.0, 30.0, 60.0)
_ABSENT_PAUSES = (15.0, 30.0, 60.0, 120.0, 300.0)
_WORDS_SECONDS = 5.0
_LEAVING_SECONDS = 2.0
"""Not everybody who waits for that is told that a Job is gone at last."""
_RENEWED_SECONDS = 1.0
_FREE_KEPT = 4
"""Of attempts that cost nothing, and so may be any number, the last few stay to be looked at."""


class RecordLost(GenAIError):
    """A task succeeds again and again, and what it records does not stay."""

    code = "RecordLost"


def judge(
    attempts: list[JobView],
    pods: Mapping[str, list[PodView]],
    *,
    retries: int,
    now: datetime,
    owner: str = "",
    derivation: Digest | None = None,
    wanted: Wanted | None = None,
    task_seconds: int = 0,
) -> Verdict:
    """Judge the attempts of one task.

    Args:
        attempts: Jobs that began with the task or came to it, in order; not empty.
        pods: Job's name -> pods.
        retries: Of the build.
        now: The time.
        owner: The build's UID; empty: all attempts are its own.
        derivation: Of the task, where it may stand further back in a chain.
        wanted: How its Job would be written now; None: it stays as it is.
        task_seconds: How long the task may run now; 0: not said.
    """
    own = [job.attempt for job in attempts if place_of(job, derivation) == 0]
    number = 1 + max(own, default=0)
    counted = [
        job
        for job in attempts
        if job.deleting or job.state is not JobState.FAILED or not owner or owner in job.owners
    ]
    if not counted:
        return NextAttempt(number)
    active = [job for job in counted if job.state is JobState.ACTIVE]
    if any(job.deleting for job in counted):  # its name is free when it is gone
        return Running(_LEAVING_SECONDS)
    if active:
        return _at_work(active[-1], pods, wanted, now)
    return _Ended(counted, number, now).judged(
        pods, retries=retries, derivation=derivation, seconds=task_seconds
    )


def _at_work(
    job: JobView, pods: Mapping[str, list[PodView]], wanted: Wanted | None, now: datetime
) -> Running | Renew:
    anew = renewal(job, pods.get(job.name, ()), wanted, now=now) if wanted else None
    if anew is None:
        return Running()
    if anew.after > 0:
        return Running(anew.after)
    return Renew(anew, _RENEWED_SECONDS)


@dataclass(frozen=True)
class _Ended:
    """Attempts that have all ended.

    Attributes:
        attempts: In order; not empty.
        number: Of the next attempt.
        now: The time.
    """

    attempts: list[JobView]
    number: int
    now: datetime

    def judged(
        self,
        pods: Mapping[str, list[PodView]],
        *,
        retries: int,
        derivation: Digest | None,
        seconds: int,
    ) -> Verdict:
        last = self.attempts[-1]
        task = name_of(last, place_of(last, derivation))
        # Its record was looked up in vain: it was taken away since, so this is no failure.
        if last.state is JobState.SUCCEEDED:
            return self._record_gone(task)
        left = _left(last, _WORDS_SECONDS, self.now)
        if left > 0 and not any(pod.ending for pod in pods.get(last.name, ())):
            # Jobs and pods come by different watches: the pod's own words are worth a moment.
            return Running(left)
        failures = []
        for job in self.attempts:
            job_pods = pods.get(job.name, ())
            place = place_of(job, derivation)
            if job.state is JobState.FAILED and step_of(job_pods) in {None, place}:
                failures.append(failure_of(job, job_pods, place, seconds))
            elif job is last:  # the chain had gone past it
                return NextAttempt(self.number, retry=self._record_gone_retry())
        failure = failures[-1]
        if _is_final(failure.error) and not failure.refused:
            return PermanentFailure(failure.error, failure.log)
        if failure.oom:
            return self._out_of_memory(failures, task)
        if failure.free:
            return self._again(failures, len(failures))
        costly = sum(not f.oom and not f.free for f in failures)
        if costly > retries:
            return PermanentFailure(failure.error, failure.log)
        return self._again(failures, costly)

    def _record_gone_retry(self) -> Retry:
        return Retry("its record is gone", "RecordGone", tries=len(self.attempts))

    def _record_gone(self, task: str) -> Verdict:
        """It succeeded and its record is not there: once may be an accident, always is a fault."""
        times = 0
        for job in reversed(self.attempts):
            if job.state is not JobState.SUCCEEDED:
                break
            times += 1
        if times > _MOST_IN_VAIN:
            return PermanentFailure(
                RecordLost(
                    f"it ran {times} times and each time its record was gone from the store "
                    "afterwards",
                    where=task,
                    remedy="look for what deletes under the store's prefix, then request the "
                    "build anew",
                )
            )
        seconds = _PAUSES[times - 2] if times > 1 else None
        return self._after(seconds, self._record_gone_retry())

    def _again(self, failures: list[JobFailure], times: int) -> BackingOff | NextAttempt:
        failure = failures[-1]
        pauses = _ABSENT_PAUSES if isinstance(failure.error, SourceNotFound) else _PAUSES
        retry = Retry(
            str(failure.error),
            failure.error.code,
            error=failure.error,
            tries=len(self.attempts),
            spent=tuple(f.job for f in failures if f.free)[:-_FREE_KEPT],
        )
        seconds = pauses[min(times, len(pauses)) - 1]
        return self._after(seconds, retry, memory_bytes=failure.job.memory_bytes)

    def _after(
        self, seconds: float | None, retry: Retry, *, memory_bytes: int = 0
    ) -> BackingOff | NextAttempt:
        """The next attempt, so many seconds after the last ended; None: at once."""
        left = _left(self.attempts[-1], seconds, self.now) if seconds is not None else 0.0
        if left > 0:
            return BackingOff(retry, left)
        return NextAttempt(self.number, memory_bytes, retry)

    def _out_of_memory(
        self, failures: list[JobFailure], task: str
    ) -> NextAttempt | PermanentFailure:
        given = failures[-1].job.memory_bytes
        if sum(f.oom for f in failures) > 1:
            error = OutOfMemory(
                f"it needs more than {given >> 20} MiB of memory",
                where=task,
                remedy="give more in spec.run.resources, or split the model into more parts",
            )
            return PermanentFailure(error, failures[-1].log)
        retry = Retry(
            f"it was out of memory with {given >> 20} MiB",
            OutOfMemory.code,
            tries=len(self.attempts),
        )
        return NextAttempt(self.number, memory_bytes=2 * given, retry=retry)


def _is_final(error: GenAIError) -> bool:
    """Another attempt cannot help. A full disk may be another node's next time."""
    if isinstance(error, (NoSpace, SourceNotFound, *STORE_FAULTS)):
        return False
    return isinstance(error, (BadInput, ToolchainMismatch, DeadlineExceeded))


def _left(job: JobView, seconds: float, now: datetime) -> float:
    """Seconds left of a pause that began when a Job ended; none where there is no such time."""
    if job.ended_at is None:
        return 0.0
    return (job.ended_at + timedelta(seconds=seconds) - now).total_seconds()
