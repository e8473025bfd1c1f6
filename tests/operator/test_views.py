"""What is read out of pods as the apiserver has them."""

from __future__ import annotations

from typing import Any

import pytest

from genai_operator.views import PodView, pod_view


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
    assert waiting == 'ImagePullBackOff: Back-off pulling image "r/stages:1"'


def test_a_termination_message_is_json_or_the_end_of_the_log() -> None:
    told = seen(
        containerStatuses=container(terminated={"exitCode": 2, "message": '{"log": "d1"}'})
    ).ending
    assert told is not None
    assert (told.message, told.words) == ({"log": "d1"}, "")
    cut = "line\n" * 200 + "the last line"
    killed = seen(containerStatuses=container(terminated={"exitCode": 137, "message": cut})).ending
    assert killed is not None
    assert killed.message == {}
    assert killed.words.endswith("line the last line")
    assert len(killed.words) <= 300
