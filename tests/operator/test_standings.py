"""Jobs of which the cluster makes no pod: said in its own words, asked for once in a while."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fake_apiserver import FakeApiserver
from test_holds import JOB

from genai_operator.jobs.holds import Standing
from genai_operator.jobs.standings import Standings
from genai_operator.kube.apiserver.api import ApiError
from genai_operator.kube.pod import PodView
from genai_operator.kube.watch.observed import Observed
from genai_operator.timing import Timing

QUOTA = (
    'Error creating: pods "job-x" is forbidden: exceeded quota: q, requested: pods=1, used: '
    "pods=0, limited: pods=0"
)
OLD = datetime.now(UTC) - timedelta(minutes=1)
STUCK = replace(JOB, created_at=OLD, started_at=OLD)


def said(api: FakeApiserver, uid: str, *events: dict[str, Any]) -> FakeApiserver:
    """Events about an object, the last one newest; they are listed newest first."""
    for n, event in enumerate(events):
        meta = {"namespace": "ns", "name": f"e{9 - n}"}
        at = f"2026-01-01T00:00:0{n}Z"
        about = {"involvedObject": {"uid": uid}, "lastTimestamp": at}
        api.put("events", {"metadata": meta, **about, **event})
    return api


def saying(*messages: str, error: Exception | None = None) -> FakeApiserver:
    """The Job controller's, about one Job."""
    failed = [{"reason": "FailedCreate", "message": text} for text in messages]
    api = said(FakeApiserver(), JOB.uid, {"reason": "Suspended", "message": "other"}, *failed)
    other = {"reason": "FailedCreate", "message": "of another Job"}
    meta, about = {"namespace": "ns", "name": "other"}, {"involvedObject": {"uid": "another"}}
    api.put("events", {"metadata": meta, **about, **other})
    if error is not None:
        api.refuse(error)
    return api


def asked(api: FakeApiserver) -> list[Any]:
    return [call.how for call in api.asked("list", "events")]


def stands(api: FakeApiserver, times: int = 1, clock: Any = lambda: 0.0) -> Standing:
    standings = Standings(api, Observed(Timing(monotonic=clock)))
    found = None
    for _ in range(times):
        found = asyncio.run(standings.of("ns", [STUCK]))
    assert found is not None
    assert found.reason == "NotAdmitted"
    return found


def test_of_says_what_the_job_controller_said_last_and_what_to_change() -> None:
    api = saying("Error creating: older", QUOTA)
    found = stands(api)
    assert found.held == (
        "convert/x gets no pod: its pod is forbidden: exceeded quota: q, requested: pods=1, "
        "used: pods=0, limited: pods=0; raise the quota, or lower spec.run.resources"
    )
    assert asked(api) == [{"namespace": "ns", "about": "u", "most": 20}]
    assert found.after == 15


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ('error looking up service account ns/x: serviceaccount "x" not found',
         "spec.run.serviceAccountName"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', "namespace enforces"),
        ("Pod is invalid: requests: must be less than or equal to cpu limit of 200m",
         "spec.run.resources"),
        ('no PriorityClass with name high was found', "spec.run.priorityClassName"),
    ],
)  # fmt: skip
def test_of_names_the_field_to_change(message: str, field: str) -> None:
    assert field in stands(saying(message)).held


@pytest.mark.parametrize("error", [None, ApiError(403, "Forbidden", "no"), TimeoutError()])
def test_of_tells_where_to_look_when_nobody_says_it(error: Exception | None) -> None:
    assert "describe job" in stands(saying(error=error)).held


def test_of_asks_once_in_a_while_and_nothing_of_jobs_that_go_well() -> None:
    api = saying(QUOTA)
    stands(api, times=5)
    assert len(asked(api)) == 1
    ticks = iter(range(0, 1000, 10))
    stands(api, times=5, clock=lambda: float(next(ticks)))
    assert 2 < len(asked(api)) < 6
    well = saying(error=AssertionError())
    asyncio.run(Standings(well, Observed()).of("ns", [replace(JOB, started_at=None)]))
    assert asked(well) == []


MADE = datetime.now(UTC) - timedelta(seconds=20)
CREATING = PodView(
    "ns", "p", "pod-uid", JOB.name, node="node1", phase="Pending", created_at=MADE
)  # fmt: skip
MOUNT = 'MountVolume.SetUp failed for volume "ca" : secret "ca" not found'
SANDBOX = "Failed to create pod sandbox: plugin type=bridge failed (add): no addresses left"


def by(component: str, reason: str, message: str) -> dict[str, Any]:
    return {"reason": reason, "message": message, "source": {"component": component}}


def of_pod(*events: tuple[str, str]) -> FakeApiserver:
    """The kubelet's, about one pod: (reason, message)."""
    return said(FakeApiserver(), CREATING.uid, *[by("kubelet", *event) for event in events])


def creating(api: FakeApiserver, pod: PodView = CREATING) -> Standing:
    observed = Observed()
    job = replace(JOB, namespace="ns", owners=frozenset({"b"}))
    meta = {"namespace": "ns", "name": pod.name, "uid": pod.uid, "resourceVersion": "1"}
    observed.pods.put({"metadata": meta}, pod)
    return asyncio.run(Standings(api, observed).of("ns", [job]))


@pytest.mark.parametrize(
    ("reason", "said", "todo"),
    [
        ("FailedMount", MOUNT, "make it, or name another"),
        ("FailedAttachVolume", "AttachVolume.Attach failed: no device", "storageClassName"),
        ("FailedCreatePodSandBox", SANDBOX, "the node's network or runtime fails"),
    ],
)
def test_of_says_why_a_container_is_not_made_when_the_kubelet_does(
    reason: str, said: str, todo: str
) -> None:
    found = creating(of_pod(("Scheduled", "to node1"), (reason, said)))
    assert (found.works, found.reason, found.after) == (False, "ContainerNotCreated", 15)
    assert said in found.held
    assert todo in found.held


@pytest.mark.parametrize(
    "events",
    [
        (),
        (("Pulling", "Pulling image"),),
        (("FailedMount", "timed out"), ("Pulling", "Pulling image")),
        (("FailedScheduling", "no room"), ("Scheduled", "to node1")),
    ],
)
def test_of_lets_a_container_be_made_when_nothing_says_that_it_fails(events: Any) -> None:
    found = creating(of_pod(*events))
    assert (found.works, found.reason) == (True, "Progressing")
    assert found.after == 5, "it is asked again"


def test_of_tells_a_failure_of_late_soon_and_whoever_else_speaks_of_the_pod() -> None:
    """A pod that waited for its node fails when it is old enough to be asked about already."""
    api, now = of_pod(), 0.0
    observed = Observed(Timing(monotonic=lambda: now))
    meta = {"namespace": "ns", "name": "p", "uid": CREATING.uid, "resourceVersion": "1"}
    observed.pods.put({"metadata": meta}, CREATING)
    standings = Standings(api, observed)
    job = replace(JOB, namespace="ns", owners=frozenset({"b"}))
    found = asyncio.run(standings.of("ns", [job]))
    assert found.works
    evicting = by("taint-eviction-controller", "TaintManagerEviction", "Cancelling deletion of Pod")
    said(api, CREATING.uid, by("kubelet", "FailedMount", MOUNT), evicting)
    now += found.after or 0.0
    found = asyncio.run(standings.of("ns", [job]))
    assert now == 5
    assert (found.works, found.reason) == (False, "ContainerNotCreated")


def test_of_asks_nothing_about_a_pod_that_is_young_or_runs() -> None:
    api = of_pod(("FailedMount", MOUNT))
    young = creating(api, replace(CREATING, created_at=datetime.now(UTC)))
    assert young.works
    assert young.after is not None
    assert 5 < young.after <= 10, "until it is old enough"
    assert creating(api, replace(CREATING, phase="Running")).works
    assert creating(api, replace(CREATING, node="")).works
    assert asked(api) == []
