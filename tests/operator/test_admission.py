"""Jobs that a queue admits: made suspended, and said to be waited for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from genai_core.names import Key
from genai_operator.build_pass import held_up, standing
from genai_operator.decide import judge
from genai_operator.status import State
from genai_operator.views import JobState, JobView, PodView, job_view

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = JobView(
    namespace="ns", name="job", uid="u", key=Key("a" * 64), operation="convert", task="convert/x",
    scope="s", attempt=1, memory_bytes=1, owners=frozenset({"b"}), state=JobState.ACTIVE,
    created_at=NOW, suspended=True,
)  # fmt: skip
RUNNING = replace(JOB, suspended=False)
WAITING = (State.WAITING, "WaitingForAdmission")
BUILDING = (State.BUILDING, "Progressing")


def seen(**spec: Any) -> JobView | None:
    meta = {
        "namespace": "ns", "name": "job", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {"genai-operator.dev/key": "a" * 64},
    }  # fmt: skip
    return job_view({"metadata": meta, "spec": spec})


def test_a_build_waits_while_nothing_of_it_is_admitted() -> None:
    assert standing([JOB, JOB], queued=False) == WAITING
    assert standing([JOB, RUNNING], queued=False) == BUILDING
    assert standing([], queued=True) == WAITING
    assert standing([RUNNING], queued=True) == BUILDING
    assert standing([], queued=False) == BUILDING
    assert standing([replace(JOB, state=JobState.SUCCEEDED)], queued=False) == BUILDING
    assert held_up([JOB], {}, now=NOW) == "; convert/x waits to be admitted by its queue"
    assert held_up([RUNNING], {}, now=NOW) == ""


def test_a_job_without_a_pod_is_said_and_where_the_reason_stands() -> None:
    begun = replace(RUNNING, started_at=NOW)
    later = NOW + timedelta(seconds=30)
    assert held_up([begun], {}, now=NOW + timedelta(seconds=10)) == ""
    assert held_up([begun], {}, now=later) == (
        "; convert/x gets no pod: see kubectl -n ns describe job job"
    )
    pod = PodView("ns", "p", "u", "job", "", "Pending", NOW)
    assert held_up([begun], {"job": [pod]}, now=later) == ""
    assert held_up([replace(begun, deleting=True)], {}, now=later) == ""


def test_a_job_that_lost_its_turn_is_no_failed_attempt() -> None:
    view = seen(suspend=True)
    assert view is not None
    assert view.suspended
    verdict = judge([view], {}, retries=0, now=NOW)
    assert (verdict.running, verdict.error) == (True, None)
    assert not seen(suspend=False).suspended  # type: ignore[union-attr]
