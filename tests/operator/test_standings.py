"""Jobs of which the cluster makes no pod: said in its own words, asked for once in a while."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
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


class Events:
    """An apiserver's, about one Job."""

    def __init__(self, *messages: str, error: Exception | None = None) -> None:
        self.messages = messages
        self.error = error
        self.asked: list[dict[str, Any]] = []

    async def list(self, plural: str, **how: Any) -> Any:
        self.asked.append({"plural": plural, **how})
        if self.error is not None:
            raise self.error
        made = [
            {"reason": "FailedCreate", "message": text, "lastTimestamp": f"2026-01-01T00:00:0{n}Z"}
            for n, text in enumerate(self.messages)
        ]
        return [{"reason": "Suspended", "message": "other"}, *made], 1


def stands(api: Events, times: int = 1, clock: Any = lambda: 0.0) -> Standing:
    standings = Standings(api, Observed(Timing(monotonic=clock)))  # type: ignore[arg-type]
    found = None
    for _ in range(times):
        found = asyncio.run(standings.of("ns", [STUCK]))
    assert found is not None
    assert found.reason == "NotAdmitted"
    return found


def test_of_says_what_the_job_controller_said_last_and_what_to_change() -> None:
    api = Events("Error creating: older", QUOTA)
    found = stands(api)
    assert found.held == (
        "convert/x gets no pod: its pod is forbidden: exceeded quota: q, requested: pods=1, "
        "used: pods=0, limited: pods=0; raise the quota, or lower spec.run.resources"
    )
    assert api.asked == [{"plural": "events", "namespace": "ns", "about": "u", "most": 20}]
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
    assert field in stands(Events(message)).held


@pytest.mark.parametrize("error", [None, ApiError(403, "Forbidden", "no"), TimeoutError()])
def test_of_tells_where_to_look_when_nobody_says_it(error: Exception | None) -> None:
    assert "describe job" in stands(Events(error=error)).held


def test_of_asks_once_in_a_while_and_nothing_of_jobs_that_go_well() -> None:
    api = Events(QUOTA)
    stands(api, times=5)
    assert len(api.asked) == 1
    ticks = iter(range(0, 1000, 10))
    stands(api, times=5, clock=lambda: float(next(ticks)))
    assert 2 < len(api.asked) < 6
    well = Events(error=AssertionError())
    asyncio.run(Standings(well, Observed()).of("ns", [replace(JOB, started_at=None)]))  # type: ignore[arg-type]
    assert well.asked == []


MADE = datetime.now(UTC) - timedelta(seconds=20)
CREATING = PodView(
    "ns", "p", "pod-uid", JOB.name, node="node1", phase="Pending", created_at=MADE
)  # fmt: skip
MOUNT = 'MountVolume.SetUp failed for volume "ca" : secret "ca" not found'
SANDBOX = "Failed to create pod sandbox: plugin type=bridge failed (add): no addresses left"


class PodEvents:
    """An apiserver's, about one pod: (reason, message), the last one newest."""

    def __init__(self, *events: tuple[str, str]) -> None:
        self.events, self.asked = events, []  # type: ignore[var-annotated]
        self.by: dict[str, str] = {}

    async def list(self, _plural: str, **how: Any) -> Any:
        self.asked.append(how["about"])
        made = [
            {
                "reason": reason,
                "message": text,
                "lastTimestamp": f"2026-01-01T00:00:0{n}Z",
                "source": {"component": self.by.get(reason, "kubelet")},
            }
            for n, (reason, text) in enumerate(self.events)
        ]
        return made[::-1], 1


def creating(api: PodEvents, pod: PodView = CREATING) -> Standing:
    observed = Observed()
    job = replace(JOB, namespace="ns", owners=frozenset({"b"}))
    meta = {"namespace": "ns", "name": pod.name, "uid": pod.uid, "resourceVersion": "1"}
    observed.pods.put({"metadata": meta}, pod)
    return asyncio.run(Standings(api, observed).of("ns", [job]))  # type: ignore[arg-type]


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
    found = creating(PodEvents(("Scheduled", "to node1"), (reason, said)))
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
    found = creating(PodEvents(*events))
    assert (found.works, found.reason) == (True, "Progressing")
    assert found.after == 5, "it is asked again"


def test_of_tells_a_failure_of_late_soon_and_whoever_else_speaks_of_the_pod() -> None:
    """A pod that waited for its node fails when it is old enough to be asked about already."""
    api, now = PodEvents(), 0.0
    observed = Observed(Timing(monotonic=lambda: now))
    meta = {"namespace": "ns", "name": "p", "uid": CREATING.uid, "resourceVersion": "1"}
    observed.pods.put({"metadata": meta}, CREATING)
    standings = Standings(api, observed)  # type: ignore[arg-type]
    job = replace(JOB, namespace="ns", owners=frozenset({"b"}))
    found = asyncio.run(standings.of("ns", [job]))
    assert found.works
    api.events = (("FailedMount", MOUNT), ("TaintManagerEviction", "Cancelling deletion of Pod"))
    api.by = {"TaintManagerEviction": "taint-eviction-controller"}
    now += found.after or 0.0
    found = asyncio.run(standings.of("ns", [job]))
    assert now == 5
    assert (found.works, found.reason) == (False, "ContainerNotCreated")


def test_of_asks_nothing_about_a_pod_that_is_young_or_runs() -> None:
    api = PodEvents(("FailedMount", MOUNT))
    young = creating(api, replace(CREATING, created_at=datetime.now(UTC)))
    assert young.works
    assert young.after is not None
    assert 5 < young.after <= 10, "until it is old enough"
    assert creating(api, replace(CREATING, phase="Running")).works
    assert creating(api, replace(CREATING, node="")).works
    assert api.asked == []
