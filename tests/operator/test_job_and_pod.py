"""What is read out of pods as the apiserver has them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from genai_core.wire import ENDING
from genai_operator.kube.job import JobView, job_view
from genai_operator.kube.pod import Ending, PodView, ending_note, pod_view


def seen(**status: Any) -> PodView:
    value = {
        "metadata": {
            "namespace": "n", "name": "p", "uid": "u",
            "creationTimestamp": "2026-01-01T12:00:00Z",
            "labels": {"batch.kubernetes.io/job-name": "j"},
        },
        "spec": {},
        "status": status,
    }  # fmt: skip
    found = pod_view(value)
    assert found is not None
    return found


def container(**state: Any) -> list[dict[str, Any]]:
    return [{"state": state}]


def test_a_pod_without_room_says_what_is_short() -> None:
    message = "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available"
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
    }
    assert seen(conditions=[condition]).waiting == "0/2 nodes are available: 2 Insufficient cpu."
    assert seen(conditions=[condition | {"status": "True"}]).waiting == ""


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_pod_that_is_on_its_way_waits_for_nothing(reason: str) -> None:
    assert seen(containerStatuses=container(waiting={"reason": reason})).waiting == ""


def test_an_image_that_cannot_be_pulled_is_named() -> None:
    state = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "r/stages:1"'}
    waiting = seen(containerStatuses=container(waiting=state)).waiting
    assert waiting == 'Back-off pulling image "r/stages:1"'


def test_a_termination_message_is_json_or_the_end_of_the_log() -> None:
    told = seen(
        containerStatuses=container(terminated={"exitCode": 2, "message": '{"log": "d1"}'})
    ).ending
    assert told is not None
    assert (told.message, told.words) == ({"log": "d1"}, "")
    deep = seen(containerStatuses=container(terminated={"exitCode": 2, "message": "[" * 4096}))
    assert deep.ending is not None
    assert deep.ending.message == {}
    cut = "line\n" * 200 + "the last line"
    killed = seen(containerStatuses=container(terminated={"exitCode": 137, "message": cut})).ending
    assert killed is not None
    assert killed.message == {}
    assert killed.words.endswith("line the last line")
    assert len(killed.words) <= 300


def job(labels: dict[str, str] | None = None, **notes: str) -> JobView | None:
    group = "genai-operator.dev"
    meta = {
        "namespace": "n", "name": "j", "uid": "u", "creationTimestamp": "2026-01-01T12:00:00Z",
        "annotations": {f"{group}/key": "k" * 64}
        | {f"{group}/{name.replace('_', '-')}": text for name, text in notes.items()},
        "labels": {f"{group}/{name}": text for name, text in (labels or {}).items()},
    }  # fmt: skip
    return job_view({"metadata": meta})


@pytest.mark.parametrize("bad", ["x", "-1", "1e3", "", "9" * 30, "٣"])
def test_a_job_whose_notes_make_no_sense_is_none_of_ours(bad: str) -> None:
    """Whoever may create Jobs in a namespace may write such notes; others' builds go on."""
    assert job({"attempt": bad}) is None
    assert job(memory=bad) is None
    assert job(ttl_seconds=bad) is None
    assert job({"attempt": "2"}, memory="3", ttl_seconds="4") is not None


def test_a_time_beyond_all_calendars_can_still_be_reckoned_with() -> None:
    view = job(ttl_seconds="9" * 15)
    assert view is not None
    assert datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=view.ttl_seconds)


@pytest.mark.parametrize("text", ["null", "[1]", '[["a", "b", [1]]]', '[["a"]]', "{", "[" * 9999])
def test_a_chain_that_another_version_wrote_breaks_nothing(text: str) -> None:
    view = job(chain=text)
    assert view is not None
    assert all(isinstance(link.derivation, str) for link in view.chain)


@pytest.mark.parametrize("ending", [None, Ending(2, "Error", {"log": "d", "step": 1}, "words")])
def test_how_a_pod_ended_is_read_back_from_its_job(ending: Ending | None) -> None:
    pod = PodView(
        "n", "p", "", "j", "node", "Failed", datetime(2026, 1, 1, 12, tzinfo=UTC),
        ending=ending, reason="Evicted", message="The node was low on memory",
    )  # fmt: skip
    view = job(ending=ending_note(pod))
    assert ENDING.endswith("/ending")
    assert view is not None
    assert view.noted == pod
    odd = '{"pod": "p", "node": "", "reason": "", "message": "", "ending": {"exitCode": 1e999}}'
    for bad in ("", "{}", "[]", '{"ending": 3}', "[" * 9999, odd):
        other = job(ending=bad)
        assert other is not None
        assert other.noted is None
