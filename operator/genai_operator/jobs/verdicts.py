"""What the attempts at one task come to: a closed union, and what is common to its members.

Whoever reads a verdict matches on it and ends with `assert_never`: when a member is added, mypy
names each place that has to know of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from genai_core.errors import CorruptBlob, GenAIError, SourceNotFound
from genai_operator.jobs.failures import STORE_FAULTS
from genai_operator.jobs.renewal import Renewal
from genai_operator.kube.job import JobView

__all__ = [
    "BackingOff",
    "NextAttempt",
    "PermanentFailure",
    "Renew",
    "Retry",
    "Running",
    "Unfailed",
    "Verdict",
    "is_running",
    "pause_of",
    "retry_of",
]


@dataclass(frozen=True)
class Retry:
    """Why a task is tried again.

    Attributes:
        why: In words.
        reason: In one word of a small set, for counting.
        error: That the last attempt failed with; None where it did not fail, or lacked memory.
            An error equals only itself, so `why` and `reason` are compared instead.
        tries: Attempts so far.
        spent: Jobs of attempts that nobody needs to know of any more.
    """

    why: str
    reason: str
    error: GenAIError | None = field(default=None, compare=False)
    tries: int = 0
    spent: tuple[JobView, ...] = ()

    @property
    def inputs_lost(self) -> bool:
        """The last attempt found bytes of an input missing."""
        return isinstance(self.error, CorruptBlob)

    @property
    def waits_for(self) -> GenAIError | None:
        """The fault of the store, or of the source, that has to be mended first."""
        return self.error if isinstance(self.error, (*STORE_FAULTS, SourceNotFound)) else None


@dataclass(frozen=True)
class Running:
    """A Job is at the task, is on its way out, or has ended and its pod's words are awaited.

    Attributes:
        pause: Seconds until it is looked at again whatever happens; 0: events are enough.
    """

    pause: float = 0.0


@dataclass(frozen=True)
class Renew:
    """The Job that is at the task never started, and is to be made anew.

    Attributes:
        renewal: That Job, and its next rendering.
        pause: As in `Running`.
    """

    renewal: Renewal
    pause: float


@dataclass(frozen=True)
class BackingOff:
    """A pause before the next attempt.

    Attributes:
        retry: Why there is to be one.
        pause: Seconds left of it.
    """

    retry: Retry
    pause: float


@dataclass(frozen=True)
class NextAttempt:
    """An attempt is to be started now.

    Attributes:
        number: Of the attempt, from 1.
        memory_bytes: That it needs at least; 0: as planned.
        retry: Why it is tried again; None: nothing failed before that counts.
    """

    number: int = 1
    memory_bytes: int = 0
    retry: Retry | None = None


@dataclass(frozen=True)
class PermanentFailure:
    """The task failed for good.

    Attributes:
        error: What went wrong.
        log: Digest of the last attempt's log in the store; empty where it left none.
    """

    error: GenAIError
    log: str = ""


Unfailed: TypeAlias = Running | Renew | BackingOff | NextAttempt
Verdict: TypeAlias = Unfailed | PermanentFailure
"""What the attempts at one task come to."""


def is_running(verdict: Verdict) -> bool:
    """Whether nothing is to be started now: a Job is at it, or a pause before the next attempt."""
    match verdict:
        case Running() | Renew() | BackingOff():
            return True
        case NextAttempt() | PermanentFailure():
            return False
        case _:
            assert_never(verdict)


def pause_of(verdict: Verdict) -> float:
    """Seconds until the task is looked at again, whatever happens; 0: events are enough."""
    match verdict:
        case Running(pause=pause) | Renew(pause=pause) | BackingOff(pause=pause):
            return pause
        case NextAttempt() | PermanentFailure():
            return 0.0
        case _:
            assert_never(verdict)


def retry_of(verdict: Verdict) -> Retry | None:
    """Why the task is tried again, now or after a pause; None where it is not."""
    match verdict:
        case BackingOff(retry=retry) | NextAttempt(retry=retry):
            return retry
        case Running() | Renew() | PermanentFailure():
            return None
        case _:
            assert_never(verdict)
