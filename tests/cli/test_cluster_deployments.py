"""`genai status` of GenAIDeployments: a line for each, and for each of their pods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genai_cli.cluster.testing import Apiserver, apiserver, build
from genai_cli.testing import InProcess, Ran

REVISION = "sha256:" + "ab" * 32
NEXT = "sha256:" + "cd" * 32
CREATED = "2026-01-01T12:00:00Z"


def deployment(name: str = "chat", namespace: str = "team", **status: Any) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "False", "reason": "AdapterFailed", "message": "no c"}
    return {
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": CREATED},
        "spec": {"from": {"build": "tiny", "target": "cpu"}},
        "status": {
            "conditions": [ready, {"type": "Available", "status": "True"}],
            "readyReplicas": 1,
            "replicas": 2,
            "url": "http://chat.team.svc:8000/v1",
            "revision": {"current": REVISION, "target": NEXT, "lastGood": REVISION},
            "adapters": [
                {"name": "a", "state": "Loaded", "loaded": "2/2"},
                {"name": "c", "state": "Failed", "loaded": "0/2", "reason": "it is broken"},
            ],
        }
        | status,
    }


def pod(name: str, *, of: str = "chat", **status: Any) -> dict[str, Any]:
    meta = {
        "name": name,
        "namespace": "team",
        "creationTimestamp": CREATED,
        "labels": {
            "app.kubernetes.io/managed-by": "genai-operator",
            "genai-operator.dev/deployment": of,
        },
        "annotations": {"genai-operator.dev/revision": REVISION},
    }
    return {"metadata": meta, "spec": {"nodeName": "node1"}, "status": status}


READY: dict[str, Any] = {"conditions": [{"type": "Ready", "status": "True"}]}


@pytest.fixture
def server() -> Iterator[Apiserver]:
    with apiserver() as found:
        found.add("namespaces", {"metadata": {"name": "team"}})
        found.add("genaideployments", deployment())
        found.add("pods", pod("chat-1", **READY), pod("chat-2"))
        yield found


@pytest.fixture
def genai(server: Apiserver, tmp_path: Path) -> Any:
    run = InProcess(tmp_path)
    config = str(server.kubeconfig(tmp_path / "config"))

    def call(*arguments: str) -> Ran:
        return run(*arguments, env={"KUBECONFIG": config})

    return call


def test_status_lists_deployments_below_the_builds(server: Apiserver, genai: Any) -> None:
    lines = genai("status").out.splitlines()
    heads = ["deployment", "ready", "pods", "adapters", "revision", "age", "message"]
    assert lines[0].split() == heads
    row = lines[1].split()
    assert row[:5] == ["chat", "False", "1/2", "1/2", REVISION[:19]]
    assert lines[1].endswith("AdapterFailed: no c")
    server.add("genaibuilds", build("tiny"))
    lines = genai("status").out.splitlines()
    assert [line.split()[0] for line in lines if line] == ["name", "tiny", "deployment", "chat"]
    value = genai("status", "--json").json
    assert [one["name"] for one in value["deployments"]] == ["chat"]
    server.forbidden.add("genaideployments")
    assert "deployment" not in genai("status").out


def test_status_of_one_deployment_has_a_line_a_pod(server: Apiserver, genai: Any) -> None:
    out = genai("status", "chat").out
    for part in (
        "chat  AdapterFailed  1/2 pods answer",
        "build tiny, target cpu",
        f"current   {REVISION}",
        f"target    {NEXT}",
        "http://chat.team.svc:8000/v1",
        "c  Failed 0/2  it is broken",
    ):
        assert part in out, out
    assert "lastGood" not in out, "it is the current one"
    (first,) = [line.split() for line in out.splitlines() if "chat-1" in line]
    assert first[1:3] == ["chat-1", "node1"]
    assert first[4:] == [REVISION[:19], "ready"]
    told = genai("status", "chat", "--json").json["deployment"]
    assert [one["state"] for one in told["pods"]] == ["ready", "starting"]
    server.add("genaibuilds", build("chat"))
    both = genai("status", "chat", "--json").json
    assert (both["name"], both["deployment"]["name"]) == ("chat", "chat")
    assert "no such build" in genai("status", "chta").err
