"""Passes over a GenAIDeployment: its adapters, what speculation brings, who shares its name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deployment_room import READY, UID, A, B, C, Room

from genai_operator.deployments.kind import deployment_kind
from genai_operator.deployments.speculation import read_counts, speculation_status
from genai_operator.deployments.states import deployment_state
from genai_operator.kube.watch.kinds import KindIntake
from genai_operator.kube.watch.observed import Observed
from genai_runtime.speculation.control import Counts as SpeculationCounts
from genai_runtime.speculation.control import Gain
from genai_serving.metrics import Metrics


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "store")


INDEX = json.dumps(
    {
        "adapters": {
            name: {"file": "model.onnx", "sha256": "0" * 64, "rank": 1, "linears": 1}
            for name in ("c", "d")
        }
    }
).encode()


def adapted(room: Room, **spec: Any) -> None:
    """It serves a container with two adapters."""
    room.artifact(C, INDEX)
    room.build(A)
    room.spec = {**room.spec, "from": {**room.spec["from"], "revision": C}, **spec}
    room.serve()


def adapters(room: Room) -> dict[str, tuple[str, str]]:
    return {a["name"]: (a["state"], a["loaded"]) for a in room.status.get("adapters", ())}


def test_adapters_of_the_spec_reach_pods_that_run(room: Room) -> None:
    adapted(room)
    assert room.ready == ("True", "Serving")
    assert adapters(room) == {"c": ("Loaded", "2/2"), "d": ("Loaded", "2/2")}
    before = copy.deepcopy(room.objects)
    asked = len(room.asked)
    room.go()
    assert len(room.asked) == asked, "who has answered is left alone for a while"
    room.spec = {**room.spec, "adapters": [{"name": "c"}, {"name": "d", "disabled": True}]}
    room.generation += 1
    room.go()
    assert [names for _, names, _ in room.asked[asked:]] == [["c"], ["c"]]
    assert adapters(room) == {"c": ("Loaded", "2/2")}
    assert room.ready == ("True", "Serving")
    changed = {key for key, value in room.objects.items() if value != before[key]}
    assert changed == {("configmaps", "chat-adapters")}


def test_an_adapter_that_fails_is_named_and_all_else_is_served(room: Room) -> None:
    room.broken = {"d": "it touches lm_head, which no adapter of the container does"}
    adapted(room)
    assert room.ready == ("False", "AdapterFailed")
    assert "adapter d is not served: it touches lm_head" in room.message
    assert "2/2 pods serve" in room.message
    kinds = {c["type"]: c["status"] for c in room.status["conditions"]}
    assert (kinds["Stalled"], kinds["Available"]) == ("True", "True")
    assert adapters(room) == {"c": ("Loaded", "2/2"), "d": ("Failed", "0/2")}
    assert room.status["revision"]["lastGood"] == C, "its rollout came to its end all the same"
    room.broken = {}
    room.go()
    assert room.ready == ("True", "Serving")
    room.spec = {**room.spec, "adapters": [{"name": "c"}, {"name": "typo"}]}
    room.go()
    assert room.ready == ("False", "AdapterFailed")
    assert adapters(room) == {"c": ("Loaded", "2/2"), "typo": ("Failed", "0/2")}


def test_a_pod_that_cannot_be_asked_keeps_its_adapters_loading(room: Room) -> None:
    adapted(room)
    room.pods(READY, READY | {"podIP": "10.9.9.9"})
    room.go()
    assert room.ready == ("Unknown", "AdaptersLoading")
    assert "does not answer" in room.message
    assert adapters(room)["c"] == ("Loading", "1/2")
    room.store_down = True  # what serves is looked at all the same
    room.go()
    assert adapters(room)["c"] == ("Loading", "1/2")


def test_the_token_is_made_once_and_never_taken_from_others(room: Room) -> None:
    adapted(room)
    secret = copy.deepcopy(room.objects["secrets", "chat-admin"])
    assert secret["metadata"]["ownerReferences"][0]["uid"] == UID
    token = secret["stringData"]["token"]
    assert len(token) >= 32
    assert {told for _, _, told in room.asked} == {token}
    room.spec = {**room.spec, "replicas": 3}
    room.go()
    assert room.objects["secrets", "chat-admin"] == secret
    secret["metadata"]["ownerReferences"] = []
    room.objects["secrets", "chat-admin"] = secret
    room.spec = {**room.spec, "replicas": 2}
    room.go()
    assert room.ready == ("False", "NameTaken")
    assert "spec.server.adminTokenSecretRef" in room.message
    room.spec = {**room.spec, "server": {"adminTokenSecretRef": {"name": "chat-admin"}}}
    room.go()
    assert room.ready[1] != "NameTaken"


def test_no_good_container_is_left_for_one_without_a_declared_adapter(room: Room) -> None:
    room.artifact(B)
    adapted(room, adapters=[{"name": "c"}])
    room.spec = {**room.spec, "from": {**room.spec["from"], "revision": B}}
    room.go()
    assert room.ready == ("False", "AdapterNotFound")
    assert room.applied == C
    assert adapters(room) == {"c": ("Loaded", "2/2")}


def test_two_deployments_of_one_models_name_are_warned_both(room: Room) -> None:
    def put(name: str, model: str) -> None:
        meta = room._meta(name)
        value = {"metadata": meta, "spec": {"server": {"modelName": model}}}
        room.observed.deployments.put(value, value)

    def shared() -> list[str]:
        kinds = [c for c in room.status["conditions"] if c["type"] == "ModelNameShared"]
        return [c["message"] for c in kinds]

    room.build(A)
    put("other", "something")
    room.serve()
    assert shared() == []
    put("other", "chat")
    room.go()
    room.go()
    assert room.events.count("ModelNameShared") == 1
    assert "GenAIDeployment other calls its model chat too" in shared()[0]
    assert room.ready == ("True", "Serving")
    put("other", "")
    room.go()
    assert shared() == []


def test_a_deployment_is_looked_at_when_another_takes_its_models_name() -> None:
    def value(name: str, model: str, version: str) -> dict[str, Any]:
        meta = {
            "namespace": "n", "name": name, "uid": name, "resourceVersion": version,
            "generation": int(version),
        }  # fmt: skip
        return {"metadata": meta, "spec": {"server": {"modelName": model}}}

    observed = Observed()
    kind = deployment_kind(observed, SimpleNamespace())
    intake = KindIntake(kind)
    woken = []
    for one in (value("a", "x", "1"), value("b", "y", "2"), value("b", "x", "3"),
                value("b", "x", "4"), value("b", "y", "5")):  # fmt: skip
        (change,) = intake.take(one, deleted=False)
        woken.append([ref.name for ref in kind.woken(change)])
    assert woken == [["a"], ["b"], ["b", "a"], ["b"], ["b", "a"]]


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ({}, "New"),
        ({"Ready": "True", "Available": "True"}, "Serving"),
        ({"Ready": "Unknown"}, "Progressing"),
        ({"Ready": "False", "Available": "True"}, "Degraded"),
        ({"Ready": "False", "Available": "False"}, "Unavailable"),
        ({"Ready": "False"}, "Unavailable"),
    ],
)
def test_deployments_are_counted_by_state(conditions: dict[str, str], state: str) -> None:
    listed = [{"type": kind, "status": s, "reason": "x"} for kind, s in conditions.items()]
    assert deployment_state({"conditions": listed}) == state


def scraped(drafts: int, guessed: int, accepted: int, seconds: float, plain: float) -> str:
    """As a server writes it."""
    metrics = Metrics("chat")
    counts = SpeculationCounts("ngram", drafts, guessed, accepted)
    metrics.guessed = lambda: counts
    metrics.gain = lambda: Gain(seconds, plain)
    return metrics.text().decode()


def test_speculation_is_what_pods_have_counted(room: Room) -> None:
    room.scrape = scraped(100, 300, 240, 2.0, 5.0)
    room.build(A)
    room.serve()
    assert "speculation" not in room.status, "it is not switched on"
    room.spec = {**room.spec, "speculation": {"method": "Ngram"}}
    room.serve()
    assert room.status["speculation"] == {
        "acceptance": "0.80", "tokensPerPass": "3.40", "speedup": "2.50",
    }  # fmt: skip
    slow = read_counts(scraped(100, 300, 0, 5.0, 1.0))
    both = speculation_status([read_counts(room.scrape), slow])
    assert both is not None
    assert (both.acceptance, both.speedup) == ("0.40", "0.86")


@pytest.mark.parametrize("said", ["", "x 3", scraped(0, 0, 0, 0, 0)])
def test_nothing_is_said_of_speculation_that_has_not_guessed(said: str) -> None:
    assert speculation_status([read_counts(said)]) is None
    assert speculation_status([]) is None


def test_read_counts_passes_over_what_is_no_count() -> None:
    lines = [
        'vllm:spec_decode_num_drafts_total{a="b"} NaN',
        'vllm:spec_decode_num_draft_tokens_total{a="b"} -3',
        'vllm:spec_decode_num_accepted_tokens_total{a="b"} 1e999',
        'genai_spec_decode_seconds_total{a="b"} 2.5',
    ]
    assert read_counts("\n".join(lines)) == {"seconds": 2.5}
