"""A pass as a list of steps, and how its result reads as conditions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_core.errors import BadModel, GenAIError, StoreUnreadable
from genai_operator.errors import Stalled, Waiting
from genai_operator.kube.status.conditions import ready_of, summary
from genai_operator.kube.status.status_writer import StatusWriter, Written, plain_status
from genai_operator.kube.times import parse_time
from genai_operator.steps import DONE, Done, Result, Stall, Step, Wait, run_steps

NOW = parse_time("2026-01-01T00:00:00Z")


def step(outcome: Result | Exception) -> Step[list[str]]:
    async def taken(context: list[str]) -> Result:
        context.append(type(outcome).__name__)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return taken


def ran(*outcomes: Result | Exception, **how: Any) -> tuple[Result, int]:
    context: list[str] = []
    return asyncio.run(run_steps(context, map(step, outcomes), **how)), len(context)


def test_run_steps_returns_the_last_result_when_all_are_done() -> None:
    assert ran(DONE, DONE, Done("Built", "b")) == (Done("Built", "b"), 3)
    assert ran() == (DONE, 0)


@pytest.mark.parametrize(
    ("end", "result"),
    [
        (Wait("W", "w"), Wait("W", "w")),
        (Stall("S", "s"), Stall("S", "s")),
        (Waiting("W", "w", after=3.0, most=9.0), Wait("W", "w", 3.0, 9.0)),
        (Stalled("S", "s"), Stall("S", "s")),
        (BadModel("no node"), Stall("BadModel", "no node")),
        (StoreUnreadable("denied"), Wait("StoreNotReady", "denied", 5.0)),
    ],
)
def test_run_steps_ends_with_the_first_that_is_not_done(
    end: Result | Exception, result: Result
) -> None:
    assert ran(DONE, end, DONE) == (result, 2)


def test_run_steps_asks_what_an_error_means_when_the_kind_says_so() -> None:
    def meaning(error: GenAIError) -> Waiting:
        return Waiting("Other", str(error), after=1.0)

    assert ran(BadModel("x"), meaning=meaning) == (Wait("Other", "x", 1.0), 1)


def test_run_steps_raises_what_is_no_word_for_the_user() -> None:
    with pytest.raises(KeyError):
        ran(KeyError("ours"))


@pytest.mark.parametrize(
    ("result", "waits", "shown"),
    [
        (DONE, "Unknown", {"Ready": "True"}),
        (Stall("S", ""), "Unknown", {"Ready": "False", "Stalled": "True"}),
        (Wait("W", ""), "Unknown", {"Ready": "Unknown", "Reconciling": "True"}),
        (Wait("W", ""), "False", {"Ready": "False", "Reconciling": "True"}),
        (Wait("W", "", works=True), "False", {"Ready": "Unknown", "Reconciling": "True"}),
    ],
)
def test_summary_shows_reconciling_and_stalled_while_they_are_true(
    result: Result, waits: str, shown: dict[str, str]
) -> None:
    found = summary(result, generation=3, waits=waits)
    assert {entry["type"]: entry["status"] for entry in found} == shown
    assert {entry["observedGeneration"] for entry in found} == {3}


def written(api: FakeApiserver, result: Result, value: dict[str, Any], **members: Any) -> Written:
    writer = StatusWriter(api, "artifactstores", "ArtifactStore")
    status = plain_status(result, value, NOW, **members)
    found = asyncio.run(writer.write(value, status, warning=isinstance(result, Stall)))
    value["status"] = status
    return found


def holding(value: dict[str, Any]) -> FakeApiserver:
    api = FakeApiserver()
    api.put("artifactstores", value)
    return api


def store() -> dict[str, Any]:
    return {"metadata": {"namespace": "n", "name": "s", "uid": "u", "generation": 1}}


def test_write_posts_an_event_when_ready_changed_and_else_the_status_alone() -> None:
    value = store()
    api = holding(value)
    assert written(api, Stall("NoImage", "none"), value) is Written.OTHERWISE
    assert written(api, Stall("NoImage", "none"), value) is Written.NOT
    assert written(api, Stall("NoImage", "none"), value, extra={"a": 1}) is Written.AS_BEFORE
    assert written(api, Done(message="fine"), value) is Written.OTHERWISE
    assert [(event["reason"], event["type"]) for event in api.events] == [
        ("NoImage", "Warning"),
        ("Ready", "Normal"),
    ]
    assert [ready_of(body["status"]) for body in api.statuses] == [
        *[("False", "NoImage")] * 2,
        ("True", "Ready"),
    ]


def test_write_takes_a_status_back_when_another_object_has_that_name_by_now() -> None:
    another = store()
    another["metadata"]["uid"] = "another"
    api = holding(another)
    assert written(api, DONE, store()) is Written.NOT
    assert [bool(body["status"]) for body in api.statuses] == [True, False]
    assert api.events == []
