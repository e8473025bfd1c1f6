"""Jobs whose pod never started: an edit reaches them, and who shares one is not held up by it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from test_holds import JOB, NOW, pod, unscheduled, waiting
from test_manifest import ACCESS, OWNER, request

from genai_core.kinds.build import Run
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.job_manifest import Owner, render
from genai_operator.jobs.renewal import Renewal, Wanted, renewal
from genai_operator.jobs.retries import judge
from genai_operator.jobs.verdicts import Renew, Running
from genai_operator.kube.job import JobState, JobView, Rendering, job_view
from genai_operator.kube.pod import PodView

MINE, THEIRS = Wanted("mine", "me"), Wanted("theirs", "them")
STUCK = pod(**unscheduled())
RUNNING = pod(phase="Running")
CREATING = pod(**waiting("ContainerCreating"))


def written(by: Wanted, turn: int = 0, **more: Any) -> JobView:
    return replace(JOB, rendering=Rendering(by.digest, turn, by.author), **more)


def renewed(
    job: JobView, wanted: Wanted, *pods: PodView, seconds: float = 1.0
) -> tuple[int, float] | None:
    found: Renewal | None = renewal(job, pods, wanted, now=NOW + timedelta(seconds=seconds))
    return (found.turn, found.after) if found is not None else None


@pytest.mark.parametrize("state", [STUCK, CREATING, pod(**waiting("ErrImagePull"))])
def test_renewal_reaches_my_own_job_when_its_pod_has_not_started(state: PodView) -> None:
    edited = replace(MINE, digest="edited")
    assert renewed(written(MINE), edited, state) == (0, 0.0)
    assert renewed(written(MINE), MINE, state) is None, "nothing is different"
    assert renewed(written(MINE, suspended=True), edited) == (0, 0.0)
    # A pod that was begun a moment ago may not have been seen.
    assert renewed(written(MINE), edited) == (0, 4.0)
    assert renewed(written(MINE), edited, seconds=6) == (0, 0.0)


def test_renewal_leaves_alone_what_runs_or_has_run() -> None:
    edited = replace(MINE, digest="edited")
    done = replace(RUNNING, phase="Succeeded")
    for state in (RUNNING, done, replace(done, phase="Failed")):
        assert renewed(written(MINE), edited, state) is None
    for job in (written(MINE, state=JobState.FAILED), written(MINE, deleting=True)):
        assert renewed(job, edited, STUCK) is None
    assert renewed(written(MINE), edited, replace(STUCK, phase="Failed"), STUCK) == (0, 0.0)


def test_renewal_takes_anothers_job_over_only_when_that_cannot_start() -> None:
    assert renewed(written(THEIRS), MINE, STUCK) == (1, 0.0)
    assert renewed(written(THEIRS), MINE, CREATING) is None
    assert renewed(written(THEIRS, suspended=True), MINE) is None, "the queue is the same for both"
    assert renewed(written(THEIRS), MINE) == (1, 9.0), "without a pod it counts after a while"
    assert renewed(JOB, MINE, STUCK) == (1, 0.0), "an earlier version wrote it"


def test_renewal_takes_turns_ever_more_seldom_when_neither_can_start() -> None:
    waits = [renewed(written(THEIRS, turn), MINE, STUCK, seconds=0) for turn in range(1, 9)]
    assert waits == [(n + 2, min(20.0 * 2**n, 600.0)) for n in range(8)]


def test_judge_tells_which_job_is_to_be_made_anew_and_costs_no_attempt() -> None:
    verdict = judge([written(THEIRS)], {"job": [STUCK]}, retries=0, now=NOW, wanted=MINE)
    assert isinstance(verdict, Renew)
    assert verdict.renewal.turn == 1
    assert judge([written(THEIRS)], {"job": [STUCK]}, retries=0, now=NOW) == Running()
    mine = judge([written(MINE)], {"job": [STUCK]}, retries=0, now=NOW, wanted=MINE)
    assert mine == Running()


EDITS = [
    {"nodeSelector": {"disk": "fast"}}, {"serviceAccountName": "builder"},
    {"resources": {"limits": {"memory": "900Gi"}}}, {"scratch": {"storageClassName": "x"}},
    {"activeDeadlineSeconds": 7}, {"tolerations": [{"operator": "Exists"}]},
    {"imagePullSecrets": [{"name": "pull"}]}, {"topologySpread": False},
    {"affinity": {"nodeAffinity": {}}},
]  # fmt: skip
NO_EDITS = [{"retries": 9}, {"parallelism": 1}, {"ttlSecondsAfterFinished": 1}, {"suspend": True}]


def looks(access: StoreAccess = ACCESS, owner: Owner = OWNER, run: Any = None, **more: Any) -> Any:
    job = render(request(**more), owner, run=Run.model_validate(run or {}), access=access)
    job["metadata"] |= {"uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    view = job_view(job)
    assert view is not None
    assert view.rendering is not None
    return view.rendering


def test_appearance_differs_with_all_that_a_pod_is_given_beside_its_task() -> None:
    plain = looks()
    secret = replace(ACCESS, secret="s3-b")
    moved = replace(ACCESS, source="s3://elsewhere")
    found = [looks(run=run).digest for run in EDITS]
    found += [looks(image="r/stages@sha256:" + "9" * 64).digest, looks(secret).digest]
    found += [looks(node_selector={"a": "b"}).digest, looks(moved, reads_source=True).digest]
    assert len({plain.digest, *found}) == len(found) + 1
    assert [looks(run=run) for run in NO_EDITS] == [plain] * len(NO_EDITS)
    # What follows from the task itself, or from earlier attempts at it.
    assert looks(memory_bytes=9 << 30, attempt=3, seconds=900.0) == plain
    assert looks(moved).digest == plain.digest
    assert plain.author == OWNER.uid


def test_what_is_no_rendering_of_ours_counts_as_none() -> None:
    for text in ("", "x", "a.b.c", "a..u"):
        meta = {
            "namespace": "n", "name": "j", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"genai-operator.dev/key": "k", "genai-operator.dev/rendering": text},
        }  # fmt: skip
        view = job_view({"metadata": meta})
        assert view is not None
        assert view.rendering is None
