"""How a rollout is judged by the Deployment's counts and its pods' words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from genai_operator.deployments.rollout import failure, standing
from genai_operator.kube.pod import Ending, PodView, WorkloadView, pod_view, workload_view

OLD, NEW = "0" * 16, "1" * 16
REVISION = f"sha256:{'a' * 64}"


def workload(**given: Any) -> WorkloadView:
    counts = {"wanted": 2, "replicas": 2, "updated": 2, "ready": 2, "available": 2}
    fixed = {
        "namespace": "n",
        "name": "chat",
        "uid": "w",
        "owners": frozenset({"u"}),
        "revision": "",
    }
    return WorkloadView(
        **{**fixed, "rendering": NEW, "current": True, "late": False, **counts, **given}
    )


def pod(number: int, rendering: str = NEW, *, ready: bool = True, **given: Any) -> PodView:
    return PodView(
        namespace="n", name=f"chat-{number}", uid=f"p{number}", job="", node="node1",
        phase="Running", created_at=datetime(2026, 1, 1, tzinfo=UTC), deployment="chat",
        revision=REVISION, rendering=rendering, ready=ready, **given,
    )  # fmt: skip


def said(code: str, exit_code: int = 2) -> Ending:
    error = {"code": code, "message": "golden tokens differ", "where": "", "remedy": ""}
    return Ending(exit_code, "Error", {"error": error})


def stands(view: WorkloadView | None, *pods: PodView, settled: bool = False) -> tuple[str, str]:
    found = standing(NEW, view, pods, revision=REVISION, settled=settled)
    return found.ready, found.reason


def test_standing_is_serving_when_every_pod_is_new_and_answers() -> None:
    assert stands(workload(), pod(1), pod(2)) == ("True", "Serving")
    assert standing(NEW, workload(), [pod(1), pod(2)], revision=REVISION, settled=False).complete
    for unfinished in (
        workload(current=False),
        workload(rendering=OLD),
        workload(replicas=3, ready=3),
        workload(updated=1),
        workload(ready=1),
    ):
        assert stands(unfinished, pod(1), pod(2)) == ("Unknown", "Progressing")
    assert stands(None) == ("Unknown", "Progressing")
    # Counts may be older than what the pods say.
    assert stands(workload(), pod(1), pod(2, ready=False)) == ("Unknown", "Progressing")


def test_standing_is_not_ready_when_no_pod_answers_that_did() -> None:
    down = workload(ready=0)
    lost = [pod(1, ready=False), pod(2, ready=False)]
    assert stands(down, *lost, settled=True) == ("False", "NoPodReady")
    assert stands(down, *lost) == ("Unknown", "Progressing")


def test_standing_is_ready_when_no_pod_is_wanted() -> None:
    none = workload(wanted=0, replicas=0, updated=0, ready=0)
    assert stands(none, settled=True) == ("True", "ScaledToZero")


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (pod(1, ready=False, ending=said("GoldenMismatch")), "GoldenMismatch"),
        (pod(1, ready=False, ending=said("BadInput")), "BadInput"),
        (pod(1, ready=False, restarts=3, ending=Ending(137, "OOMKilled")), "limits.memory"),
        (pod(1, ready=False, restarts=3, ending=Ending(1, "Error", words="bang")), "bang"),
    ],
)
def test_failure_is_named_when_a_pod_says_what_no_retry_cures(one: PodView, words: str) -> None:
    assert words in failure(NEW, workload(ready=2, updated=1), [pod(8, OLD), pod(9, OLD), one])


@pytest.mark.parametrize(
    "one",
    [
        pod(1, ready=False, restarts=1, ending=Ending(137, "OOMKilled")),
        pod(1, ready=False, restarts=9, ending=said("StoreUnreadable")),
        pod(1, ready=False, restarts=9, ending=said("StoreNotReady", 1)),
        pod(1, OLD, ready=False, ending=said("GoldenMismatch")),
        pod(1, ready=False, deleting=True, ending=said("GoldenMismatch")),
        pod(1, ready=False, waiting="0/2 nodes", hold="Unschedulable"),
    ],
)
def test_failure_is_none_when_it_may_yet_come_right(one: PodView) -> None:
    assert failure(NEW, workload(ready=0), [one]) == ""


def test_failure_is_one_pods_own_when_another_one_serves() -> None:
    broken = pod(1, ready=False, restarts=9, ending=Ending(1, "Error"))
    assert failure(NEW, workload(ready=1), [broken, pod(2)]) == ""


def test_failure_says_what_holds_the_pods_when_time_is_over() -> None:
    held = pod(1, ready=False, waiting="manifest unknown", hold="ImagePullFailed")
    why = failure(NEW, workload(ready=0, late=True), [held])
    assert why == "there was no progress in time; ImagePullFailed: manifest unknown"
    assert failure(NEW, workload(late=True, rendering=OLD), [held]) == ""


def _value(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "chat-1", "namespace": "n", "uid": "p",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"genai-operator.dev/deployment": "chat"},
            "ownerReferences": [
                {"kind": "ReplicaSet", "name": "chat-7f64", "uid": "r", "controller": True},
            ],
            "annotations": {
                "genai-operator.dev/revision": REVISION, "genai-operator.dev/rendering": NEW,
            },
        },
        "status": status,
    }  # fmt: skip


def test_pod_view_reads_a_servers_pod() -> None:
    fetched = {"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}, "restartCount": 0}
    failed = {
        "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {
            "terminated": {"exitCode": 2, "message": '{"error": {"code": "GoldenMismatch"}}'}
        },
    }
    view = pod_view(_value(initContainerStatuses=[fetched], containerStatuses=[failed]))
    assert view is not None
    assert (view.deployment, view.revision, view.rendering) == ("chat", REVISION, NEW)
    assert (view.ready, view.restarts, view.job) == (False, 2, "")
    assert view.ending is not None
    assert view.ending.message["error"]["code"] == "GoldenMismatch"
    good = _value(
        initContainerStatuses=[fetched],
        containerStatuses=[{"state": {"running": {}}, "restartCount": 0}],
        conditions=[{"type": "Ready", "status": "True"}],
    )
    running = pod_view(good)
    assert running is not None
    assert (running.ready, running.ending) == (True, None)


def test_workload_view_reads_ours_alone() -> None:
    value = _value()
    value["metadata"] |= {"generation": 3, "ownerReferences": [{"uid": "u"}]}
    value["spec"] = {"replicas": 2}
    late = {"type": "Progressing", "reason": "ProgressDeadlineExceeded"}
    value["status"] = {"observedGeneration": 2, "readyReplicas": 1, "conditions": [late]}
    view = workload_view(value)
    assert view is not None
    assert (view.current, view.wanted, view.ready, view.late) == (False, 2, 1, True)
    assert view.owners == {"u"}
    value["metadata"]["labels"] = {}
    assert workload_view(value) is None
