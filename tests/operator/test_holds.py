"""What holds a build up: in a word for programs, and in words that say what to change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from genai_core.names import Key
from genai_operator.jobs.holds import hold_of, standing
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.pod import PodView, pod_view

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=12)
JOB = JobView(
    namespace="ns", name="job", uid="u", key=Key("a" * 64), operation="convert", task="convert/x",
    scope="s", attempt=1, memory_bytes=1, owners=frozenset({"b"}), state=JobState.ACTIVE,
    created_at=NOW, started_at=NOW,
)  # fmt: skip
OTHER = replace(JOB, name="other", uid="o", task="compile/y")
NO_NODE = (
    "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector. no new claims "
    "to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful."
)


def pod(job: JobView = JOB, **status: Any) -> PodView:
    meta = {
        "namespace": "ns", "name": f"{job.name}-p", "uid": f"{job.name}-p",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"batch.kubernetes.io/job-name": job.name},
    }  # fmt: skip
    found = pod_view({"metadata": meta, "status": {"phase": "Pending"} | status})
    assert found is not None
    return found


def unscheduled(message: str = NO_NODE) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {"conditions": [condition | {"message": message}]}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"state": state}]}


RUNS = pod(OTHER, phase="Running")


@pytest.mark.parametrize(
    ("status", "reason", "said"),
    [
        (unscheduled(), "Unschedulable", "spec.run.nodeSelector"),
        (unscheduled("0/1 nodes are available: 1 Insufficient memory."), "Unschedulable",
         "spec.run.resources"),
        (unscheduled("1 node(s) had untolerated taint {npu: }"), "Unschedulable",
         "spec.run.tolerations"),
        (unscheduled("pod has unbound immediate PersistentVolumeClaims. not found"),
         "Unschedulable", "spec.run.scratch.storageClassName"),
        (waiting("ErrImagePull", "not found"), "ImagePullFailed", "GenAITarget"),
        (waiting("ImagePullBackOff"), "ImagePullFailed", "spec.run.imagePullSecrets"),
        (waiting("InvalidImageName"), "ImagePullFailed", "GenAITarget"),
        (waiting("CreateContainerConfigError", 'secret "s3" not found'), "ContainerNotCreated",
         'secret "s3" not found'),
    ],
)  # fmt: skip
def test_standing_names_the_reason_and_what_to_change(
    status: dict[str, Any], reason: str, said: str
) -> None:
    held = pod(**status)
    assert standing([JOB], {"job": [held]}, now=NOW).works, "it may yet start"
    found = standing([JOB], {"job": [held]}, now=LATER)
    assert (found.works, found.reason) == (False, reason)
    assert found.message("1/5").startswith("1/5; convert/x waits: ")
    assert said in found.held


def test_standing_is_looked_at_again_when_a_hold_begins_to_count() -> None:
    found = standing([JOB], {}, now=NOW + timedelta(seconds=4))
    assert (found.reason, found.held, found.after) == ("Progressing", "", 6.0)
    found = standing([JOB], {}, now=LATER)
    assert (found.works, found.reason) == (False, "NotAdmitted")
    assert found.held == "convert/x gets no pod: see kubectl -n ns describe job job"
    starting = pod(**waiting("ContainerCreating"))
    assert hold_of(JOB, [starting], LATER) is None
    assert standing([replace(JOB, deleting=True)], {}, now=LATER).reason == "Progressing"


def test_standing_of_what_waits_for_room_is_good_while_others_run() -> None:
    full = pod(**unscheduled("1 Insufficient cpu"))
    pods = {"job": [full], "other": [RUNS]}
    found = standing([JOB, OTHER], pods, now=LATER)
    assert (found.works, found.reason) == (True, "Progressing")
    assert "Insufficient cpu" in found.held
    # What nobody's end can heal is said at once.
    pods = {"job": [pod(**waiting("ImagePullBackOff"))], "other": [RUNS]}
    assert standing([JOB, OTHER], pods, now=LATER).reason == "ImagePullFailed"


def test_the_schedulers_words_hold_nothing_that_a_user_cannot_act_on() -> None:
    assert pod(**unscheduled()).waiting == (
        "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
    )


def test_a_pull_reads_the_same_between_two_tries() -> None:
    tried = pod(**waiting("ErrImagePull", "rpc error: not found"))
    backed = waiting(
        "ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: rpc error: not found'
    )
    assert pod(**backed).waiting == tried.waiting == "rpc error: not found"
