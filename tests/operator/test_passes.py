"""Passes that something overtakes: an edit, another object of that name, a pod that is gone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_core.kinds.build import BuildSpec
from genai_core.names import Key
from genai_core.sources.build_sources import sources_of
from genai_core.store.address import StoreAddress
from genai_core.wire import REQUESTED_AT
from genai_operator.builds.build_pass import BuildPass
from genai_operator.builds.build_steps import BuildContext
from genai_operator.builds.reconciler import BuildReconciler
from genai_operator.builds.references import SourceAccess
from genai_operator.builds.sources import SourcePlace
from genai_operator.builds.status import Outcome, build_status
from genai_operator.errors import Waiting
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.applier import Applier
from genai_operator.jobs.job_manifest import JobRequest, Owner, render
from genai_operator.jobs.retries import judge
from genai_operator.jobs.verdicts import NextAttempt, PermanentFailure, Running
from genai_operator.kube.apiserver.api import ApiError, NotLeading
from genai_operator.kube.build import build_view
from genai_operator.kube.job import JobState, JobView, job_view
from genai_operator.kube.pod import Ending, PodView, pod_view
from genai_operator.kube.status.status_phase import Phase
from genai_operator.kube.watch.observed import Observed
from genai_operator.settings import Settings
from genai_operator.stores.open_stores import Stores

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = {"model": {"source": "s3://models/x"}, "targets": ["nowhere"]}
GROUP = "genai-operator.dev"


def build(**meta: Any) -> dict[str, Any]:
    known = {
        "namespace": "n", "name": "b", "uid": "build", "generation": 1, "resourceVersion": "1",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return {"metadata": known | meta, "spec": SPEC}


def a_job(name: str, *owners: str, ended: str = "", version: int = 5) -> dict[str, Any]:
    condition = {"type": ended, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return {
        "metadata": {
            "namespace": "n", "name": name, "uid": f"uid-{name}", "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {f"{GROUP}/key": "a" * 64, f"{GROUP}/task": "convert/1"},
            "ownerReferences": [{"uid": uid} for uid in owners],
        },
        "status": {"conditions": [condition] if ended else []},
    }  # fmt: skip


def a_pod(job: str, *, message: str = "", version: int = 6) -> dict[str, Any]:
    ended = {"exitCode": 2, "reason": "Error", "message": message}
    return {
        "metadata": {
            "namespace": "n", "name": f"{job}-pod", "uid": f"{job}-pod",
            "resourceVersion": str(version), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"batch.kubernetes.io/job-name": job},
        },
        "status": {
            "phase": "Failed" if message else "Running",
            "containerStatuses": [{"state": {"terminated": ended} if message else {}}],
        },
    }  # fmt: skip


class Room:
    def __init__(self, *jobs: dict[str, Any], pods: tuple[dict[str, Any], ...] = ()) -> None:
        self.api, self.observed = FakeApiserver(), Observed()
        self.api.put("genaibuilds", build())
        stores = Stores(self.api, Settings())
        self.builds = BuildReconciler(self.api, self.observed, stores)
        for job in jobs:
            self.api.put("jobs", job)
            view = job_view(job)
            assert view is not None
            self.observed.jobs.put(job, view)
        for pod in pods:
            seen = pod_view(pod)
            assert seen is not None
            self.observed.pods.put(pod, seen)
        self.observed.builds.put(build(), build_view(build()))

    def work(self) -> float | None:
        return asyncio.run(self.builds.reconcile("n", "b"))

    def job(self, name: str) -> JobView:
        found = self.observed.jobs.get("n", name)
        assert found is not None
        return found


@pytest.mark.parametrize(
    ("edit", "after"),
    [
        ({}, 60.0),
        ({"labels": {"a": "b"}}, 60.0),
        ({"generation": 2}, 0.0),
        ({"annotations": {REQUESTED_AT: "now"}}, 0.0),
    ],
)
def test_an_edit_that_our_own_write_tells_of_is_worked_on_at_once(
    edit: dict[str, Any], after: float
) -> None:
    """Its event comes later and shows nothing that is not known by then."""
    room = Room()
    room.api.put("genaibuilds", build(**edit))
    assert room.work() == after


def test_when_it_was_asked_for_stays_through_passes_and_restarts() -> None:
    room = Room()
    unseen = build() | {"status": {"observedGeneration": -1}}  # what the apiserver fills in
    room.observed.builds.put(unseen, build_view(unseen))
    room.work()
    assert room.api.statuses[-1]["status"]["startedAt"] == "2026-01-01T00:00:00Z", "its creation"
    # Another pass, or another process, of the same generation: with something else to say.
    shown = room.api.statuses[-1]["status"] | {"conditions": []}
    known = build(resourceVersion="200") | {"status": shown | {"startedAt": "2026-02-02T00:00:00Z"}}
    room.observed.builds.put(known, build_view(known))
    room.work()
    assert room.api.statuses[-1]["status"]["startedAt"] == "2026-02-02T00:00:00Z"
    edited = build(resourceVersion="300", generation=2) | {"status": known["status"]}
    room.observed.builds.put(edited, build_view(edited))
    room.work()
    assert room.api.statuses[-1]["status"]["startedAt"] > "2026-02-02T00:00:00Z"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("a record of another version"), True),
        (ApiError(403, "Forbidden", "cannot patch jobs"), True),
        (ApiError(500, "InternalError", "etcd is away"), False),
        (ApiError(500, "InternalError", 'failed calling webhook "wh.example"'), True),
        (ApiError(409, "Conflict", "it changed"), False),
        (TimeoutError(), False),
        (NotLeading(), False),
    ],
)
def test_what_time_alone_does_not_heal_is_shown(
    monkeypatch: pytest.MonkeyPatch, error: Exception, shown: bool
) -> None:
    room = Room()

    async def fails(_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(room.builds, "_pass", fails)
        for _ in range(3):
            with pytest.raises(type(error)):
                room.work()
            room.builds.tidy()
    statuses = [written["status"]["conditions"][0] for written in room.api.statuses]
    assert [s["reason"] for s in statuses] == (["OperatorError"] if shown else []), "and once"
    assert all(str(error) in s["message"] and s["status"] == "Unknown" for s in statuses)
    room.work()
    assert room.api.statuses[-1]["status"]["conditions"][0]["reason"] == "TargetNotFound"


def test_a_build_at_rest_stays_good_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room()
    ready = [{"type": "Ready", "status": "True", "reason": "Built"}]
    known = build(resourceVersion="2")
    known["status"] = {"observedGeneration": 1, "conditions": ready}
    room.observed.builds.put(known, build_view(known))

    async def fails(_: Any) -> None:
        raise ValueError("odd")

    monkeypatch.setattr(room.builds._rest, "renewed", fails)
    for _ in range(3):
        with pytest.raises(ValueError, match="odd"):
            room.work()
    assert room.api.statuses == []


def test_a_status_is_of_one_object_and_not_of_the_next_one_of_that_name() -> None:
    """Deleted and applied again during a pass: it would rest on what is not its own."""
    room = Room()
    room.api.put("genaibuilds", build(uid="anew"))
    assert room.work() == 0.0
    assert [bool(written["status"]) for written in room.api.statuses] == [True, False]
    seen = room.observed.builds.get("n", "b")
    assert seen is not None
    assert (seen.uid, seen.value["status"]) == ("anew", {})
    assert room.api.reasons == []


def test_what_a_failed_task_said_is_known_when_its_pod_is_gone() -> None:
    said = '{"error": {"code": "BadModel", "message": "no such node"}, "log": "d1"}'
    room = Room(a_job("j", "build", ended="Failed"), pods=(a_pod("j", message=said),))
    known = build(resourceVersion="2") | {"status": {"observedGeneration": 1}}
    room.observed.builds.put(known, build_view(known))
    room.work()
    assert room.job("j").noted is not None
    assert room.api.deleted == []
    writes = room.api.version
    room.work()
    assert room.api.version == writes, "once"
    room.observed.pods.drop("n", "j-pod", "j-pod")
    later = NOW + timedelta(hours=1)
    verdict = judge([room.job("j")], room.observed.pods_of("n"), retries=2, now=later)
    assert isinstance(verdict, PermanentFailure)
    assert (str(verdict.error), verdict.log) == ("no such node", "d1")
    anew = Room(*room.api.of("jobs"))  # another process
    verdict = judge([anew.job("j")], anew.observed.pods_of("n"), retries=2, now=later)
    assert isinstance(verdict, PermanentFailure)
    assert (str(verdict.error), verdict.log) == ("no such node", "d1")


def test_a_request_tries_again_what_failed_though_another_build_claims_it_too() -> None:
    room = Room(a_job("own", "build", ended="Failed"), a_job("both", "build", "x", ended="Failed"))
    spec = BuildSpec.model_validate(SPEC)
    one = BuildPass(build(), spec, Owner("b", "build"), "n", 1, "", {}, NOW)
    asyncio.run(room.builds._claims.forget_failures(one))
    assert room.api.deleted == ["own"]
    assert room.job("both").owners == {"x"}
    later = NOW + timedelta(hours=1)
    verdict = judge([room.job("both")], {}, retries=0, now=later, owner="build")
    assert verdict == NextAttempt(2)


def test_a_request_is_not_lost_on_a_build_that_has_to_wait_first() -> None:
    room = Room(a_job("j", "build", ended="Failed"))
    asked = build(resourceVersion="2", annotations={REQUESTED_AT: "now"})
    asked["status"] = {"observedGeneration": 1}
    room.observed.builds.put(asked, build_view(asked))
    room.work()
    assert room.api.statuses[-1]["status"]["conditions"][0]["reason"] == "TargetNotFound"
    assert room.api.deleted == ["j"]


def test_why_a_source_cannot_be_resolved_is_shown_with_its_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = '{"error": {"code": "BadModel", "message": "no model in it"}, "log": "d1"}'
    room = Room(a_job("j", "build", ended="Failed"), pods=(a_pod("j", message=said),))
    request = JobRequest(
        namespace="n", key=Key("a" * 64), operation="resolve", task="resolve",
        document=BuildSpec.model_validate(SPEC), image="i", memory_bytes=1,
    )  # fmt: skip
    spec = BuildSpec.model_validate(SPEC)
    one = BuildPass(build(), spec, Owner("b", "build"), "n", 1, "", {"observedGeneration": 1}, NOW)
    store = StoreAccess(address="s3://b/p", secret="s")
    access = SourceAccess(sources_of(spec)[0], SourcePlace("s3://models/x"), store)

    async def load(context: BuildContext) -> Any:
        one = context.build
        one.store = StoreAddress("b", "p")
        return await room.builds._resolver._send(one, request, [room.job("j")], access)

    monkeypatch.setattr(room.builds._steps, "load", load)
    outcome = asyncio.run(room.builds._outcome(one))
    status = build_status(outcome, {}, generation=1, now=NOW)
    assert status["failures"] == [
        {"task": "resolve", "reason": "BadModel", "message": "no model in it",
         "log": "s3://b/p/blobs/d1/d1"}
    ]  # fmt: skip
    assert room.api.deleted == []


def test_a_job_that_was_deleted_by_us_is_waited_for_like_any_other() -> None:
    room = Room(a_job("j", "build"), pods=(a_pod("j"),))
    job = room.job("j")
    asyncio.run(room.builds._applier.delete(job))
    (left,) = room.observed.jobs_of("n", "")
    verdict = judge([left], {}, retries=2, now=NOW)
    assert isinstance(verdict, Running), "its pod has seconds left"
    pod = pod_view(a_pod("j", message="{}", version=7))
    assert pod is not None
    room.observed.pods.put(a_pod("j", message="{}", version=7), pod)
    assert [gone.uid for gone in room.observed.left(pod)] == [job.uid]
    assert room.observed.jobs_of("n", "") == []


def test_what_a_claim_tells_beside_the_claim_is_left_to_the_watch() -> None:
    """Else its event would be no news and wake nobody."""
    room = Room(a_job("j", "x"))
    room.api.put("jobs", a_job("j", "x", ended="Complete", version=8))
    asyncio.run(room.builds._applier.claim(room.job("j"), Owner("b", "build")))
    assert room.job("j").owners == {"x", "build"}
    assert room.job("j").state is JobState.ACTIVE
    entry = room.observed.jobs.entry("n", "j")
    assert entry is not None
    assert entry.version == 5, "so that a comparison finds what the watch never tells"


def test_a_job_of_that_name_that_has_ended_already_is_looked_at_at_once() -> None:
    room = Room()
    request = JobRequest(
        namespace="n", key=Key("a" * 64), operation="convert", task="convert/1",
        document=BuildSpec.model_validate(SPEC), image="i@sha256:" + "0" * 64, memory_bytes=1,
    )  # fmt: skip
    applier = Applier(room.api, room.observed)
    access = StoreAccess(address="s3://b/p", secret="s")
    run = BuildSpec.model_validate(SPEC).run
    name = render(request, Owner("b", "build"), run=run, access=access)["metadata"]["name"]
    room.api.put("jobs", a_job(name, "build", ended="Failed"))
    create = applier.create(request, Owner("b", "build"), run=run, access=access)
    assert asyncio.run(create), "it is to be looked at again"
    assert room.job(name).state is JobState.FAILED
    (theirs,) = room.api.of("jobs")
    del theirs["metadata"]["annotations"]
    room.api.put("jobs", theirs)
    room.observed.jobs.drop("n", name, f"uid-{name}")
    with pytest.raises(Waiting, match="did not make: delete it"):
        asyncio.run(applier.create(request, Owner("b", "build"), run=run, access=access))


def test_what_came_to_light_during_a_look_is_not_taken_for_unneeded() -> None:
    """Its making was not answered, and the look began before the watch told of it."""
    room = Room(a_job("known", "build"), a_job("shared", "build"))
    claimed = room.observed.claimed_by("build")
    late = job_view(a_job("late", "build"))
    assert late is not None
    room.observed.jobs.put(a_job("late", "build"), late)
    joined = replace(room.job("shared"), owners=frozenset({"build", "x"}))
    room.observed.jobs.amend("n", "shared", joined)
    room.api.put("jobs", a_job("shared", "build", "x"))
    asyncio.run(room.builds._claims.release(claimed, "build", keep=["other"]))
    assert room.api.deleted == ["known"]
    assert room.job("shared").owners == {"x"}, "another build has joined it meanwhile"
    assert room.job("late").owners == {"build"}


def test_a_name_is_not_taken_while_pods_of_its_last_job_run() -> None:
    room = Room(a_job("j", "build"), pods=(a_pod("j"),))
    request = JobRequest(
        namespace="n", key=Key("a" * 64), operation="convert", task="convert/1",
        document=BuildSpec.model_validate(SPEC), image="i@sha256:" + "0" * 64, memory_bytes=1,
    )  # fmt: skip
    access = StoreAccess(address="s3://b/p", secret="s")
    run = BuildSpec.model_validate(SPEC).run
    owner = Owner("b", "build")
    name = render(request, owner, run=run, access=access)["metadata"]["name"]
    room.observed.leaving["u"] = (replace(room.job("j"), name=name), 1e12)
    with pytest.raises(Waiting, match="being removed"):
        asyncio.run(room.builds._applier.create(request, owner, run=run, access=access))


def test_create_joins_a_job_that_is_known_by_now_when_its_name_is_free_again() -> None:
    """It was made since the build was looked at, and is deleted: no watch has told of that yet."""
    request = JobRequest(
        namespace="n", key=Key("a" * 64), operation="convert", task="convert/1",
        document=BuildSpec.model_validate(SPEC), image="i@sha256:" + "0" * 64, memory_bytes=1,
    )  # fmt: skip
    access, run = StoreAccess(address="s3://b/p", secret="s"), BuildSpec.model_validate(SPEC).run
    owner = Owner("b", "build")
    name = render(request, owner, run=run, access=access)["metadata"]["name"]
    room = Room(a_job(name, "other"), pods=(a_pod(name),))
    room.api.remove("jobs", name, namespace="n")
    assert asyncio.run(room.builds._applier.create(request, owner, run=run, access=access))
    assert room.observed.is_leaving("n", name), "its pod is waited for"
    with pytest.raises(Waiting, match="being removed"):
        asyncio.run(room.builds._applier.create(request, owner, run=run, access=access))


def test_a_job_that_is_found_gone_is_not_claimed_again_and_again() -> None:
    room = Room(a_job("j", "x"))
    job = room.job("j")
    assert asyncio.run(room.builds._applier.claim(job, Owner("b", "build")))
    assert not asyncio.run(room.builds._applier.claim(room.job("j"), Owner("b", "build")))
    room.api.remove("jobs", "j", namespace="n")
    asyncio.run(room.builds._applier.claim(job, Owner("c", "other")))
    assert room.observed.jobs.get("n", "j") is None


def test_claim_leaves_a_job_alone_that_has_the_name_of_the_one_it_meant() -> None:
    room = Room(a_job("j", "x"))
    job = room.job("j")
    another = a_job("j", "x", version=9)
    another["metadata"]["uid"] = "another"
    room.api.put("jobs", another)
    asyncio.run(room.builds._applier.claim(job, Owner("b", "build")))
    assert room.observed.jobs.get("n", "j") is None, "the one that was meant is gone"
    asyncio.run(room.builds._applier.delete(job))
    (there,) = room.api.of("jobs")
    assert there["metadata"]["ownerReferences"] == [{"uid": "x"}]


def test_what_is_gone_is_forgotten() -> None:
    room = Room(a_job("j", "build"))
    room.builds._steps._lost |= {"uid-j", "long-gone"}
    room.builds._helpers._heard |= {"uid-j", "long-gone"}
    room.builds._leases.rest("build")
    room.builds._leases.rest("deleted")
    room.builds.tidy()
    assert room.builds._steps._lost == {"uid-j"}
    assert room.builds._helpers._heard == {"uid-j"}
    assert set(room.builds._leases._due) == {"build"}


def test_a_noted_pod_stands_beside_no_real_one() -> None:
    observed = Observed()
    noted = PodView("n", "p", "", "j", "node", "Failed", NOW, ending=Ending(1, "Error"))
    job = job_view(a_job("j", "build", ended="Failed"))
    assert job is not None
    observed.jobs.put(a_job("j"), replace(job, noted=noted))
    assert observed.pods_of("n") == {"j": [noted]}
    assert observed.pods_of("other") == {}
    real = pod_view(a_pod("j", message="{}"))
    assert real is not None
    observed.pods.put(a_pod("j"), real)
    assert observed.pods_of("n") == {"j": [real]}


def test_an_unknown_architecture_is_one_warning_event() -> None:
    room = Room()
    reporter = room.builds._reporter
    text = "UnknownArchitecture: mamba is not among the known ones"
    for state, progress in ((Phase.BUILDING, "1/5"), (Phase.BUILDING, "2/5"), (Phase.READY, "")):
        known = room.observed.builds.get("n", "b")
        assert known is not None
        outcome = Outcome(state, "Progressing", progress, warnings=[text, "another"])
        asyncio.run(reporter.report(known.value, outcome))
    assert room.api.reasons.count("UnknownArchitecture") == 1


def test_a_target_that_stands_twice_is_the_users_to_mend_and_no_error_of_ours() -> None:
    room = Room()
    twice = build(resourceVersion="2")
    twice["spec"] = SPEC | {"targets": ["cpu", "cpu"]}
    room.observed.builds.put(twice, build_view(twice))
    assert room.work() is None
    ready = room.api.statuses[-1]["status"]["conditions"][0]
    assert (ready["status"], ready["reason"]) == ("False", "InvalidSpec")
    assert ready["message"] == "spec.targets: it holds cpu twice: keep one of them"
