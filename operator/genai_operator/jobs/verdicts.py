"""What a task's Jobs mean: does it run, has it failed for good, shall it be tried again. Pure.

exit code 2 (bad input)          failed, at once
out of memory                    once more with twice the memory; a second time: failed
the store did not answer         once more after a pause, as often as it takes
nothing is at the source's address ever later, as often as it takes
bytes of an input were lost      what made them is looked up again, then once more
anything else                    `retries` times more, after growing pauses
a node died, was drained ...     the Job controller replaces the pod; no attempt is spent
a node refused the pod           once more, as often as it takes: the Job controller calls it failed
it ran into its time limit       failed, at once; where the limit was another build's, once more
its pod cannot start             made anew where it would be written differently now (`renewal`)

A build answers for the Jobs that it claims: what others tried with less memory or less time, before
it asked, is no failure of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from genai_core.errors import (
    BadInput,
    CorruptBlob,
    DeadlineExceeded,
    GenAIError,
    Interrupted,
    NoSpace,
    OutOfMemory,
    SourceNotFound,
    StoreUnavailable,
    StoreUnreadable,
    ToolchainMismatch,
    ToolFailed,
    from_dict,
)
from genai_core.names import Digest
from genai_operator.jobs.attempts import name_of, place_of, step_of
from genai_operator.jobs.renewal import Renewal, Wanted, renewal
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.pod import Ending, PodView

__all__ = ["Verdict", "judge"]

_MOST_IN_VAIN = 3
_PAUSES = (1.0, 10.0, 30.0, 60.0)
_ABSENT_PAUSES = (15.0, 30.0, 60.0, 120.0, 300.0)
_WORDS_SECONDS = 5.0
_LEAVING_SECONDS = 2.0
"""Not everybody who waits for that is told that a Job is gone at last."""
_RENEWED_SECONDS = 1.0
_FREE_KEPT = 4
"""Of attempts that cost nothing, and so may be any number, the last few stay to be looked at."""
_KILLED = 137
_REFUSALS = {
    "NodeAffinity",
    "NodeShutdown",
    "OutOfcpu",
    "OutOfmemory",
    "OutOfpods",
    "OutOfephemeral-storage",
    "Terminated",
    "UnexpectedAdmissionError",
}
_STORE = (StoreUnavailable, StoreUnreadable)


class RecordLost(GenAIError):
    """A task succeeds again and again, and what it records does not stay."""

    code = "RecordLost"


@dataclass(frozen=True)
class Verdict:
    """Of one task.

    Attributes:
        running: A Job is at it, or a pause before the next attempt is.
        error: It failed for good.
        attempt: Number of the next attempt.
        memory_bytes: That the next attempt needs at least; 0: as planned.
        inputs_lost: The last attempt found bytes of an input missing.
        pause: Seconds until the next attempt.
        log: Digest of the last failed attempt's log in the store.
        retried: Why there is to be another attempt; empty for the first.
        retried_for: The same in one word of a small set, for counting.
        waits_for: What the next attempt waits for is the store's, or the source's, to mend.
        tries: Attempts so far.
        spent: Jobs of attempts that nobody needs to know of any more.
        renewal: The Job that is at it never started, and is to be made anew.
    """

    running: bool = False
    error: GenAIError | None = None
    attempt: int = 1
    memory_bytes: int = 0
    inputs_lost: bool = False
    pause: float = 0.0
    log: str = ""
    retried: str = ""
    retried_for: str = ""
    waits_for: GenAIError | None = None
    tries: int = 0
    spent: tuple[JobView, ...] = ()
    renewal: Renewal | None = None


@dataclass(frozen=True)
class _Failure:
    job: JobView
    error: GenAIError
    oom: bool = False
    log: str = ""
    refused: bool = False

    @property
    def free(self) -> bool:
        """It costs no attempt."""
        return self.refused or isinstance(self.error, (*_STORE, SourceNotFound))


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
    following = 1 + max(own, default=0)
    counted = [
        job
        for job in attempts
        if job.deleting or job.state is not JobState.FAILED or not owner or owner in job.owners
    ]
    if not counted:
        return Verdict(attempt=following)
    active = [job for job in counted if job.state is JobState.ACTIVE]
    if any(job.deleting for job in counted):  # its name is free when it is gone
        verdict = Verdict(running=True, pause=_LEAVING_SECONDS)
    elif active:
        verdict = _at_work(active[-1], pods, wanted, now)
    else:
        verdict = _judged(
            counted, pods, retries=retries, now=now, derivation=derivation, seconds=task_seconds
        )
    return replace(verdict, attempt=following, tries=len(counted))


def _at_work(
    job: JobView, pods: Mapping[str, list[PodView]], wanted: Wanted | None, now: datetime
) -> Verdict:
    found = renewal(job, pods.get(job.name, ()), wanted, now=now) if wanted else None
    if found is None:
        return Verdict(running=True)
    if found.after > 0:
        return Verdict(running=True, pause=found.after)
    return Verdict(running=True, pause=_RENEWED_SECONDS, renewal=found)


def _judged(
    attempts: list[JobView],
    pods: Mapping[str, list[PodView]],
    *,
    retries: int,
    now: datetime,
    derivation: Digest | None,
    seconds: int,
) -> Verdict:
    last = attempts[-1]
    gone = Verdict(retried="its record is gone", retried_for="RecordGone")
    # Its record was looked up in vain: it was taken away since, so this is no failure.
    if last.state is JobState.SUCCEEDED:
        return _in_vain(attempts, gone, name_of(last, place_of(last, derivation)), now)
    left = _until(last, _WORDS_SECONDS, now)
    if left > 0 and not any(pod.ending for pod in pods.get(last.name, ())):
        # Jobs and pods come by different watches: the pod's own words are worth a moment.
        return Verdict(running=True, pause=left)
    failures = []
    for job in attempts:
        seen = pods.get(job.name, ())
        place = place_of(job, derivation)
        if job.state is JobState.FAILED and step_of(seen) in {None, place}:
            failures.append(_failure(job, seen, place, seconds))
        elif job is last:
            return gone  # the chain had gone past it
    failure = failures[-1]
    error = failure.error
    if _is_final(error) and not failure.refused:
        return Verdict(error=error, log=failure.log)
    if failure.oom:
        return _out_of_memory(failures, name_of(last, place_of(last, derivation)))
    if failure.free:
        return _again(failures, len(failures), now)
    costly = sum(not f.oom and not f.free for f in failures)
    if costly > retries:
        return Verdict(error=error, log=failure.log)
    return _again(failures, costly, now)


def _in_vain(attempts: list[JobView], gone: Verdict, task: str, now: datetime) -> Verdict:
    """It succeeded and its record is not there: once may be an accident, always is a fault."""
    times = 0
    for job in reversed(attempts):
        if job.state is not JobState.SUCCEEDED:
            break
        times += 1
    if times > _MOST_IN_VAIN:
        error = RecordLost(
            f"it ran {times} times and each time its record was gone from the store afterwards",
            where=task,
            remedy="look for what deletes under the store's prefix, then request the build anew",
        )
        return replace(gone, error=error, retried="", retried_for="")
    left = _until(attempts[-1], _PAUSES[times - 2], now) if times > 1 else 0.0
    return replace(gone, running=left > 0, pause=max(left, 0.0))


def _is_final(error: GenAIError) -> bool:
    """Another attempt cannot help. A full disk may be another node's next time."""
    if isinstance(error, (NoSpace, SourceNotFound, *_STORE)):
        return False
    return isinstance(error, (BadInput, ToolchainMismatch, DeadlineExceeded))


def _again(failures: list[_Failure], times: int, now: datetime) -> Verdict:
    failure = failures[-1]
    pauses = _ABSENT_PAUSES if isinstance(failure.error, SourceNotFound) else _PAUSES
    left = _until(failure.job, pauses[min(times, len(pauses)) - 1], now)
    return Verdict(
        running=left > 0,
        memory_bytes=failure.job.memory_bytes,
        inputs_lost=isinstance(failure.error, CorruptBlob),
        pause=max(left, 0.0),
        log=failure.log,
        retried=str(failure.error),
        retried_for=failure.error.code,
        waits_for=failure.error if isinstance(failure.error, (*_STORE, SourceNotFound)) else None,
        spent=tuple(f.job for f in failures if f.free)[:-_FREE_KEPT],
    )


def _until(job: JobView, seconds: float, now: datetime) -> float:
    """Seconds left of a pause that began when a Job ended; none where there is no such time."""
    if job.ended_at is None:
        return 0.0
    return (job.ended_at + timedelta(seconds=seconds) - now).total_seconds()


def _out_of_memory(failures: list[_Failure], task: str) -> Verdict:
    given = failures[-1].job.memory_bytes
    if sum(f.oom for f in failures) > 1:
        error = OutOfMemory(
            f"it needs more than {given >> 20} MiB of memory",
            where=task,
            remedy="give more in spec.run.resources, or split the model into more parts",
        )
        return Verdict(error=error, log=failures[-1].log)
    return Verdict(
        memory_bytes=2 * given,
        retried=f"it was out of memory with {given >> 20} MiB",
        retried_for=OutOfMemory.code,
    )


def _failure(job: JobView, pods: Iterable[PodView], place: int, seconds: int) -> _Failure:
    """Why a Job failed: its last pod's own words, else the Job controller's.

    Args:
        job: The Job.
        pods: Of it.
        place: Of the task in its chain.
        seconds: How long the task may run now; 0: not said.
    """
    task = name_of(job, place)
    ordered = sorted(pods, key=lambda pod: pod.created_at)
    ended = [pod for pod in ordered if pod.ending is not None]
    pod = ended[-1] if ended else (ordered[-1] if ordered else None)
    ending = pod.ending if pod else None
    if pod is not None and _refused(pod):
        return _Failure(job, ToolFailed(pod.message or pod.reason, where=task), refused=True)
    if ending is not None and ending.reason == "OOMKilled":
        return _Failure(job, OutOfMemory("it was out of memory", where=task), oom=True)
    if pod is not None and pod.reason == "Evicted":
        # For its own fault, and it was told to stop: that is not what it failed of.
        return _Failure(
            job,
            NoSpace(
                pod.message or "it was evicted",
                where=task,
                remedy="raise spec.run.scratch.size, or give more room in spec.run.resources",
            ),
        )
    said: GenAIError | None = None
    if ending is not None and isinstance(ending.message.get("error"), dict):
        said = from_dict(ending.message["error"])
    late = pod is not None and pod.reason == "DeadlineExceeded"
    if isinstance(said, DeadlineExceeded) or (
        # Told to stop, it says that it was stopped; why, it does not know.
        late and (said is None or isinstance(said, Interrupted))
    ):
        given = job.task_seconds
        error = DeadlineExceeded(
            "it ran for longer than spec.run.activeDeadlineSeconds allows"
            + (f" ({given} s)" if given else ""),
            where=task,
            remedy="raise it, or give more in spec.run.resources",
        )
        shorter = 0 < given < seconds
        return _Failure(job, error, log=_log(ending), refused=shorter)
    if said is not None:
        return _Failure(job, said, oom=isinstance(said, OutOfMemory), log=_log(ending))
    return _Failure(job, ToolFailed(_words(job, ending), where=task))


def _log(ending: Ending | None) -> str:
    return str(ending.message.get("log", "")) if ending is not None else ""


def _refused(pod: PodView) -> bool:
    """A node would not have the pod, or not any more; nothing that the task did.

    The kubelet marks what it evicts for want of room as disrupted, which costs nothing; but not
    what it refuses when it starts, even of pods that ran.
    """
    return pod.reason in _REFUSALS or (
        pod.reason == "Evicted" and pod.message.startswith(("The node ", "Pod was rejected"))
    )


def _words(job: JobView, ending: Ending | None) -> str:
    if ending is not None:
        killed = ending.exit_code == _KILLED
        how = "was killed" if killed else f"ended with exit code {ending.exit_code}"
        return f"its process {how}" + (f"; its log ends: {ending.words}" if ending.words else "")
    return job.message or job.reason or "its pod is gone"
