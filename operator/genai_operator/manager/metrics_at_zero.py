"""Counters that stand at 0 before anything is counted."""

from __future__ import annotations

from collections.abc import Iterable

from genai_core.errors import OutOfMemory, codes
from genai_core.reasons import Reason
from genai_operator.kube.job import JobState
from genai_operator.metric_labels import OPERATION_LABELS
from genai_operator.metrics import (
    BUILDS_ENDED,
    QUEUE_SECONDS,
    RECONCILE_SECONDS,
    TASK_RETRIES,
    TASK_SECONDS,
    TASKS,
    WATCH_MISSED,
)

__all__ = ["begin_at_zero"]

_ENDED = (JobState.SUCCEEDED.value, JobState.FAILED.value)


def begin_at_zero(kinds: Iterable[str], watched: Iterable[str]) -> None:
    """Show the counters that dashboards and alerts read as an increase.

    Prometheus takes a series that begins at 1 for one that never grew: the first build, task or
    retry of its kind would be on no panel and in no alert.

    Args:
        kinds: Plurals of what has a reconciler.
        watched: Plurals of what is watched.
    """
    for operation in OPERATION_LABELS:
        for result in (*_ENDED, "cached"):
            TASKS.labels(operation=operation, result=result)
        for result in _ENDED:
            TASK_SECONDS.labels(operation=operation, result=result)
        TASK_RETRIES.labels(operation=operation, reason=OutOfMemory.code)
    for reason in {Reason.BUILT.value, *codes()}:
        BUILDS_ENDED.labels(reason=reason)
    for kind in kinds:
        QUEUE_SECONDS.labels(kind=kind)
        RECONCILE_SECONDS.labels(kind=kind, result="ok")
    for kind in watched:
        WATCH_MISSED.labels(kind=kind)
