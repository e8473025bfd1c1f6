"""What a build meets of its store, or its source: called by its name, looked at again, told on."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from test_passes import Room, build
from test_verdicts import NOW as THEN
from test_verdicts import judged, said

from genai_core.errors import (
    BadModel,
    GenAIError,
    SourceNotFound,
    StoreUnavailable,
    StoreUnreadable,
)
from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, TaskId
from genai_core.sources.build_sources import BuildSource
from genai_core.sources.resolved import RESOLVE
from genai_core.store.address import StoreAddress
from genai_operator.builds import resolver
from genai_operator.builds.build_pass import BuildPass
from genai_operator.builds.build_steps import BuildContext
from genai_operator.builds.references import SourceAccess
from genai_operator.builds.sources import SourcePlace
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.job_manifest import Owner
from genai_operator.jobs.verdicts import BackingOff, NextAttempt, PermanentFailure
from genai_operator.kube.status.status_phase import Phase
from genai_operator.kube.watch.kinds import Ref
from genai_operator.manager.controller import Controller
from genai_operator.settings import Settings
from genai_operator.steps import Stall, Wait
from genai_operator.stores.reconciler import StoreReconciler

GONE = SourceNotFound("there is nothing", where="s3://models/x")


def a_pass() -> BuildPass:
    spec = BuildSpec.model_validate({"model": {"source": "s3://models/x"}, "targets": ["cpu"]})
    return BuildPass(build(), spec, Owner("b", "build"), "n", 1, "", {}, THEN)


def outcomes(error: Exception, times: int = 1) -> tuple[list[tuple[Phase, str, float | None]], Any]:
    """What passes that meet an error come to, and which stores are doubted."""
    room, doubted = Room(), []
    room.builds._doubt = lambda namespace, name: doubted.append((namespace, name))
    found = []

    async def fails(_: Any) -> Any:
        raise error

    room.builds._steps.load = fails  # type: ignore[method-assign,assignment]
    for _ in range(times):
        one = a_pass()
        outcome = asyncio.run(room.builds._outcome(one))
        found.append((outcome.state, outcome.reason, one.after))
    return found, doubted


def test_a_missing_source_is_waited_for_ever_more_seldom_and_is_no_fault_of_the_store() -> None:
    found, doubted = outcomes(GONE, times=7)
    assert {(state, reason) for state, reason, _ in found} == {(Phase.WAITING, "SourceNotFound")}
    assert [after for _, _, after in found] == [15, 30, 60, 120, 240, 300, 300]
    assert doubted == []


@pytest.mark.parametrize(
    "error", [StoreUnavailable("it does not answer"), StoreUnreadable("access is denied")]
)
def test_whoever_meets_a_fault_of_the_store_has_it_tried(error: GenAIError) -> None:
    found, doubted = outcomes(error)
    assert found == [(Phase.WAITING, "StoreNotReady", 5.0)]
    assert doubted == [("n", "default")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreUnreadable("access is denied"), "SourceUnreadable"),
        (StoreUnavailable("it does not answer"), "SourceNotReady"),
        (GONE, "SourceNotFound"),
    ],
)
def test_a_fault_of_the_source_is_not_called_the_stores(
    monkeypatch: pytest.MonkeyPatch, error: GenAIError, reason: str
) -> None:
    def list_source(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(resolver, "list_source", list_source)
    room = Room()
    place = SourcePlace("s3://models/x", StoreAddress("models", "x"))
    source = BuildSource(MODEL, "s3://models/x", "spec.model.source")
    access = SourceAccess(source, place, StoreAccess("s3://b/p", secret="s"))

    class Opened:
        credentials, where = object(), StoreAddress("genai", "n")

    with pytest.raises((Waiting, SourceNotFound)) as raised:
        asyncio.run(room.builds._resolver._question(a_pass(), Opened(), access))  # type: ignore[arg-type]
    found = raised.value
    assert isinstance(found, Waiting | SourceNotFound)
    assert (found.reason if isinstance(found, Waiting) else found.code) == reason


def test_doubt_has_a_store_tried_once_when_several_builds_doubt_it() -> None:
    api = Room().api
    controller = Controller(api, Settings())
    store = Ref("artifactstores", "n", "default")
    reconciler: StoreReconciler = controller.kinds["artifactstores"].reconciler  # type: ignore[assignment]

    def asked() -> list[Ref]:
        """Whom three builds that meet a fault have woken."""
        for _ in range(3):
            reconciler.doubt("n", "default")
        found = [asyncio.run(controller.queue.get()) for _ in range(len(controller.queue))]
        for ref in found:
            controller.queue.done(ref)
        return found

    assert asked() == [store]
    asyncio.run(reconciler.reconcile("n", "default"))
    assert asked() == [store], "there is no such store, so it was not tried"
    value = {"metadata": {"namespace": "n", "name": "default", "uid": "s", "generation": 1},
             "spec": {"bucket": "abc", "secretRef": {"name": "s3"}}}  # fmt: skip
    controller.observed.stores.put(value, value)
    api.put("artifactstores", value)
    asyncio.run(reconciler.reconcile("n", "default"))
    assert asked() == [], "it was tried a moment ago"


def test_a_pod_that_finds_no_source_is_sent_again_after_ever_longer_pauses() -> None:
    for count, seconds in enumerate((15, 30, 60, 120, 300, 300), 1):
        now = judged([said(GONE, 2)] * count, retries=0, ended_at=None)
        assert isinstance(now, NextAttempt)
        late = judged(
            [said(GONE, 2)] * count, retries=0, ended_at=THEN - timedelta(seconds=seconds - 1)
        )
        assert isinstance(late, BackingOff)
        assert round(late.pause) == 1
        assert late.retry.waits_for is not None
    bad = judged([said(BadModel("no onnx"), 2)])
    assert isinstance(bad, PermanentFailure)
    assert isinstance(bad.error, BadModel)


@pytest.mark.parametrize(
    ("known", "resolved", "result", "shown"),
    [
        ("SourceNotFound", False, Wait("Progressing", "resolving", works=True), "SourceNotFound"),
        ("SourceNotFound", False, Waiting("Progressing", "resolve has ended"), "SourceNotFound"),
        ("SourceNotFound", True, Wait("Progressing", "1/5", works=True), "Progressing"),
        ("SourceNotFound", False, Wait("Unschedulable", "no room"), "Unschedulable"),
        ("SourceNotFound", False, Stall("BadModel", "no onnx"), "BadModel"),
        ("Progressing", False, Wait("Progressing", "resolving", works=True), "Progressing"),
    ],
)
def test_outcome_stays_source_not_found_while_the_source_is_looked_at_again(
    known: str, resolved: bool, result: Any, shown: str
) -> None:
    room = Room()
    before = {"type": "Ready", "status": "Unknown", "reason": known, "message": "no folder x"}

    async def load(context: BuildContext) -> Any:
        context.question = object() if resolved else None  # type: ignore[assignment]
        if isinstance(result, Exception):
            raise result
        return result

    room.builds._steps.load = load  # type: ignore[method-assign]
    for generation in (1, 2):
        spec = BuildSpec.model_validate({"model": {"source": "s3://models/x"}, "targets": ["cpu"]})
        status = {"observedGeneration": generation, "conditions": [before]}
        one = BuildPass(build(), spec, Owner("b", "build"), "n", 1, "", status, THEN)
        outcome = asyncio.run(room.builds._outcome(one))
        if generation == 1:
            assert outcome.reason == shown
            kept = shown == known == "SourceNotFound"
            assert (outcome.message == "no folder x") == kept
            assert outcome.state is not Phase.BUILDING or not kept
        else:  # of a spec that nobody has looked at yet
            assert outcome.reason in {result.reason, "Progressing"}


def test_a_model_that_was_looked_at_too_early_is_looked_at_again() -> None:
    room = Room()

    async def fails(_: Any) -> Any:
        error = BadModel("there is no .onnx in it")
        raise Stalled("BadModel", str(error), failure=(TaskId(RESOLVE), error, ""))

    async def renewed(_: Any) -> float:
        return 3000.0

    room.builds._steps.load = fails  # type: ignore[method-assign,assignment]
    room.builds._rest.renewed = renewed  # type: ignore[method-assign,assignment]
    assert [room.work() for _ in range(6)] == [30, 60, 120, 240, 480, 600]
    ready = room.api.statuses[-1]["status"]["conditions"][0]
    assert (ready["status"], ready["reason"]) == ("False", "BadModel")
