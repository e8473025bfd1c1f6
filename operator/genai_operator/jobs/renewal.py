"""Which Jobs are made anew because they cannot start as they were written. Pure.

An edit reaches a Job whose pod has not started: whoever it was written for has it written anew.
Others that share it let it stand while it may yet start. Where it cannot, and theirs differs, they
have it written their way; should that not start either, turns come ever more seldom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from genai_operator.jobs.holds import ADMISSION, hold_of
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.pod import PodView

__all__ = ["Renewal", "Wanted", "renewal"]

_UNSEEN = timedelta(seconds=5)
"""A pod that was begun a moment ago may not have been seen."""
_TURN_SECONDS = 10.0
_LONGEST_TURN_SECONDS = 600.0
_MOST_DOUBLED = 10


@dataclass(frozen=True)
class Wanted:
    """How a Job would be written now.

    Attributes:
        digest: See `jobs.job_manifest.appearance`.
        author: UID of the build, or store, that it would be written for.
    """

    digest: str
    author: str


@dataclass(frozen=True)
class Renewal:
    """A Job that is to be made anew.

    Attributes:
        turn: Of the new rendering.
        after: Seconds until then.
    """

    job: JobView
    turn: int = 0
    after: float = 0.0


def renewal(
    job: JobView, pods: Sequence[PodView], wanted: Wanted, *, now: datetime
) -> Renewal | None:
    """Judge one Job; None where it stays as it is."""
    if job.state is not JobState.ACTIVE or job.deleting:
        return None
    known = job.rendering
    live = [pod for pod in pods if not pod.ended]
    if any(pod.started for pod in live) or (pods and not live):  # or the Job is about to end
        return None
    if known is not None and known.digest == wanted.digest:
        return None
    if known is not None and known.author == wanted.author:
        unseen = not live and not job.suspended
        after = (job.created_at + _UNSEEN - now).total_seconds() if unseen else 0.0
        return Renewal(job, after=max(after, 0.0))
    hold = hold_of(job, pods, now)
    if hold is None or hold.reason == ADMISSION:
        return None
    turn = known.turn if known is not None else 0
    pause = min(_TURN_SECONDS * 2 ** min(turn, _MOST_DOUBLED), _LONGEST_TURN_SECONDS)
    left = (job.created_at + timedelta(seconds=pause if turn else 0.0) - now).total_seconds()
    if not live:  # podless is not said at once
        left = max(left, hold.after)
    return Renewal(job, turn=turn + 1, after=max(left, 0.0))
