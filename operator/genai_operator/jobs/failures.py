"""Why a Job failed, by its last pod's own words, else by the Job controller's. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from genai_core.errors import (
    DeadlineExceeded,
    GenAIError,
    Interrupted,
    NoSpace,
    OutOfMemory,
    SourceNotFound,
    StoreUnavailable,
    StoreUnreadable,
    ToolFailed,
    from_dict,
)
from genai_operator.jobs.attempts import name_of
from genai_operator.kube.job import JobView
from genai_operator.kube.pod import Ending, PodView

__all__ = ["STORE_FAULTS", "JobFailure", "failure_of"]

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
STORE_FAULTS = (StoreUnavailable, StoreUnreadable)


@dataclass(frozen=True)
class JobFailure:
    """Of one Job.

    Attributes:
        job: The Job.
        error: What went wrong.
        oom: Its pod was out of memory.
        log: Digest of its log in the store; empty where it left none.
        refused: A node refused its pod, or its limit was shorter than the task's is now.
    """

    job: JobView
    error: GenAIError
    oom: bool = False
    log: str = ""
    refused: bool = False

    @property
    def free(self) -> bool:
        """It costs no attempt."""
        return self.refused or isinstance(self.error, (*STORE_FAULTS, SourceNotFound))


def failure_of(job: JobView, pods: Iterable[PodView], place: int, seconds: int) -> JobFailure:
    """Why a Job failed.

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
        return JobFailure(job, ToolFailed(pod.message or pod.reason, where=task), refused=True)
    if ending is not None and ending.reason == "OOMKilled":
        return JobFailure(job, OutOfMemory("it was out of memory", where=task), oom=True)
    if pod is not None and pod.reason == "Evicted":
        # For its own fault, and it was told to stop: that is not what it failed of.
        return JobFailure(
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
        return JobFailure(job, error, log=_log(ending), refused=shorter)
    if said is not None:
        return JobFailure(job, said, oom=isinstance(said, OutOfMemory), log=_log(ending))
    return JobFailure(job, ToolFailed(_words(job, ending), where=task))


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
