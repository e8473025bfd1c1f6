"""Jobs that a queue admits: made suspended, and said to be waited for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from genai_core.names import Key
from genai_operator.jobs.holds import hold_of, standing
from genai_operator.jobs.retries import judge
from genai_operator.jobs.verdicts import Running
from genai_operator.kube.job import JobState, JobView, job_view
from genai_operator.kube.times import rfc3339

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = JobView(
    namespace="ns", name="job", uid="u", key=Key("a" * 64), operation="convert", task="convert/x",
    scope="s", attempt=1, memory_bytes=1, owners=frozenset({"b"}), state=JobState.ACTIVE,
    created_at=NOW, suspended=True,
)  # fmt: skip
RUNNING = replace(JOB, suspended=False)
WAITING = (False, "WaitingForAdmission")
BUILDING = (True, "Progressing")


def seen(**spec: Any) -> JobView | None:
    meta = {
        "namespace": "ns", "name": "job", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {"genai-operator.dev/key": "a" * 64},
    }  # fmt: skip
    return job_view({"metadata": meta, "spec": spec})


def stands(jobs: list[JobView], *, queued: bool = False) -> tuple[bool, str]:
    found = standing(jobs, {}, now=NOW, queued=queued)
    return found.works, found.reason


def test_a_build_waits_while_nothing_of_it_is_admitted() -> None:
    assert stands([JOB, JOB]) == WAITING
    assert stands([JOB, RUNNING]) == BUILDING
    assert stands([], queued=True) == WAITING
    assert stands([RUNNING], queued=True) == BUILDING
    assert stands([]) == BUILDING
    assert stands([replace(JOB, state=JobState.SUCCEEDED)]) == BUILDING
    hold = hold_of(JOB, (), NOW)
    assert hold is not None
    assert hold.message == "convert/x waits to be admitted by its queue"
    assert hold_of(RUNNING, (), NOW) is None


def test_a_job_that_lost_its_turn_is_no_failed_attempt() -> None:
    view = seen(suspend=True)
    assert view is not None
    assert view.suspended
    verdict = judge([view], {}, retries=0, now=NOW)
    assert verdict == Running()
    assert not seen(suspend=False).suspended  # type: ignore[union-attr]


def test_a_job_of_which_nobody_says_that_it_began_did_so_when_it_was_made_or_let_go() -> None:
    made, later = "2026-01-01T00:00:00Z", "2026-01-01T00:09:00Z"

    def begun(status: dict[str, Any]) -> str | None:
        meta = {"namespace": "n", "name": "j", "uid": "u", "creationTimestamp": made,
                "annotations": {"genai-operator.dev/key": "a" * 64}}  # fmt: skip
        view = job_view({"metadata": meta, "status": status})
        assert view is not None
        return rfc3339(view.started_at) if view.started_at else None

    def queued(status: str) -> dict[str, Any]:
        return {"conditions": [
            {"type": "Suspended", "status": status, "lastTransitionTime": later}]}  # fmt: skip

    assert begun({}) == made
    assert begun({"startTime": later}) == later
    assert begun(queued("False")) == later
    assert begun(queued("True")) is None
    assert begun(queued("False") | {"startTime": made}) == made
