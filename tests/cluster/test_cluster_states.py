"""The contract's table of states, each row reached on the real cluster, and what people see of it.

    state                    Ready    Reconciling  Stalled  reason
    building                 Unknown  True         -        Progressing
    all targets built        True     -            -        Built
    the user must act        False    -            True     InvalidSpec, BadModel, BadEncodings ...
    waiting for else         Unknown  True         -        StoreNotReady ...
    suspended                Unknown  -            -        Suspended

ArtifactAvailable stands beside each of them once there is something good.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from laptop import SMALL, TINY_MODEL
from operator_process import Operator
from tenant import Tenant, upload, wait

pytestmark = pytest.mark.usefixtures("operator")

BUILDING = {"Ready": "Unknown", "Reconciling": "True"}
WAITING = BUILDING
BUILT = {"Ready": "True"}
STALLED = {"Ready": "False", "Stalled": "True"}
SUSPENDED = {"Ready": "Unknown"}
AVAILABLE = {"ArtifactAvailable": "True"}


def reached(
    tenant: Tenant, name: str, row: dict[str, str], reason: str, *, phase: str, seconds: float = 60
) -> dict[str, Any]:
    """Wait for a row of the table and hold every condition to it."""

    status: dict[str, Any] = {}  # held to the row as it was seen: the next one may follow at once

    def there() -> bool:
        nonlocal status
        build = tenant.get("genaibuilds", name)
        status = build.get("status", {})
        ready = [c for c in status.get("conditions", ()) if c["type"] == "Ready"]
        seen = status.get("observedGeneration") == build["metadata"]["generation"]
        # A store that is only being tried is Progressing as well, in the phase Waiting.
        met = bool(ready) and (ready[0]["reason"], status["phase"]) == (reason, phase)
        return seen and met

    wait(there, seconds, lambda: json.dumps(status, indent=1))
    shown = {c["type"]: c["status"] for c in status["conditions"]}
    assert shown == row, status["conditions"]
    for condition in status["conditions"]:
        assert condition["observedGeneration"] == status["observedGeneration"]
        if condition["type"] in {"Ready", "Reconciling", "Stalled"}:
            assert condition["reason"] == reason
            assert condition["message"]
    return status


def events(tenant: Tenant, name: str) -> list[tuple[str, str]]:
    """Type and reason, in order."""
    found = [e for e in tenant.get("events") if e["involvedObject"]["name"] == name]
    found.sort(key=lambda e: int(e["metadata"]["name"].rsplit(".", 1)[1], 16))
    return [(e["type"], e["reason"]) for e in found]


def test_building_then_built_then_every_other_row_with_the_last_good_one_kept(
    tenant: Tenant,
) -> None:
    tenant.small("b")
    reached(tenant, "b", BUILDING, "Progressing", phase="Building")
    status = reached(tenant, "b", BUILT | AVAILABLE, "Built", phase="Ready", seconds=240)
    artifacts = status["artifacts"]
    assert events(tenant, "b")[-2:] == [("Normal", "Progressing"), ("Normal", "Built")]

    rows: list[tuple[dict[str, Any], dict[str, str], str, str]] = [
        ({"store": {"name": "nowhere"}}, WAITING, "StoreNotReady", "Waiting"),
        ({"targets": ["sm0000"]}, WAITING, "TargetNotFound", "Waiting"),
        ({"run": {"suspend": True}}, SUSPENDED, "Suspended", "Suspended"),
        ({"model": SMALL["model"] | {"digest": "sha256:" + "0" * 64}}, STALLED, "BadModel",
         "Failed"),
        ({"golden": {"prompts": ["import re\n"], "maxTokens": 4}}, BUILDING, "Progressing",
         "Building"),
    ]  # fmt: skip
    for changed, row, reason, phase in rows:
        tenant.small("b", **changed)
        status = reached(tenant, "b", row | AVAILABLE, reason, phase=phase)
        assert status["artifacts"] == artifacts
    reached(tenant, "b", BUILT | AVAILABLE, "Built", phase="Ready", seconds=120)
    told = [entry for entry in events(tenant, "b") if entry[1] != "Progressing"]
    assert told[-6:] == [
        ("Normal", "Built"), ("Warning", "StoreNotReady"), ("Warning", "TargetNotFound"),
        ("Normal", "Suspended"), ("Warning", "BadModel"), ("Normal", "Built"),
    ]  # fmt: skip


def test_the_user_must_act_on_a_spec_that_cannot_work(tenant: Tenant) -> None:
    """The planner's word, before any task."""
    graphs = {"autoRegression": [1, 512], "contextLengths": [256]}
    tenant.small("b", targets=["sm8750"], graphs=graphs)
    status = reached(tenant, "b", STALLED, "InvalidSpec", phase="Failed", seconds=120)
    assert "512" in status["conditions"][0]["message"]
    assert events(tenant, "b")[-1] == ("Warning", "InvalidSpec")


def test_the_user_must_act_on_a_broken_file_which_a_task_found(
    tenant: Tenant, tmp_path: Path
) -> None:
    """A stage's word, with the task that said it."""
    for path in TINY_MODEL.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = (tmp_path / "model.encodings").read_bytes()
    (tmp_path / "model.encodings").write_bytes(data[: len(data) // 2])
    upload(tenant.cluster, tmp_path, name=f"broken-{tenant.namespace}")
    tenant.build("b", model={"source": f"s3://models/broken-{tenant.namespace}"})
    status = reached(tenant, "b", STALLED, "BadEncodings", phase="Failed", seconds=120)
    assert status["failures"][0]["task"] == "ingest"
    assert status["failures"][0]["log"].startswith("s3://")


def test_waiting_ends_by_itself_once_the_store_can_be_used(tenant: Tenant) -> None:
    tenant.cluster.kubectl("-n", tenant.namespace, "delete", "secret", "s3")
    tenant.cluster.kubectl("-n", tenant.namespace, "delete", "artifactstore", "default")
    tenant.small("b")
    reached(tenant, "b", WAITING, "StoreNotReady", phase="Waiting")
    assert not tenant.jobs()
    tenant.create()
    reached(tenant, "b", BUILT | AVAILABLE, "Built", phase="Ready", seconds=240)


def test_waiting_ends_by_itself_once_there_is_quota(tenant: Tenant) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": tenant.namespace},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    tenant.cluster.apply(quota)
    wait(lambda: "hard" in (tenant.get("resourcequotas", "none").get("status") or {}), 20)
    tenant.small("b")
    reached(tenant, "b", WAITING, "QuotaExceeded", phase="Waiting")
    tenant.cluster.kubectl("-n", tenant.namespace, "delete", "resourcequota", "none")
    reached(tenant, "b", BUILT | AVAILABLE, "Built", phase="Ready", seconds=240)


def test_a_target_that_nothing_can_be_built_for_is_waited_for(tenant: Tenant) -> None:
    name = f"bare-{tenant.namespace}"
    target = {"apiVersion": "genai-operator.dev/v1alpha1", "kind": "GenAITarget"}
    tenant.cluster.apply(target | {"metadata": {"name": name}, "spec": {"backend": "Cpu"}})
    try:
        tenant.small("b", targets=[name])
        status = reached(tenant, "b", WAITING, "TargetNotReady", phase="Waiting")
        assert "ImageNotConfigured" in status["conditions"][0]["message"]
        shown = json.loads(tenant.cluster.kubectl("get", "genaitarget", name, "-o", "json"))
        assert {c["type"]: c["status"] for c in shown["status"]["conditions"]} == STALLED
    finally:
        tenant.cluster.kubectl("delete", "genaitarget", name)


def test_suspended_from_the_start_and_resumed(tenant: Tenant) -> None:
    tenant.small("b", run={"suspend": True})
    reached(tenant, "b", SUSPENDED, "Suspended", phase="Suspended")
    assert not tenant.jobs()
    tenant.small("b", run={"suspend": False})
    reached(tenant, "b", BUILT | AVAILABLE, "Built", phase="Ready", seconds=240)
    assert ("Normal", "Suspended") in events(tenant, "b")


def test_kubectl_wait_and_the_columns_tell_the_same(tenant: Tenant, operator: Operator) -> None:
    tenant.small("b")
    tenant.cluster.kubectl(
        "-n", tenant.namespace, "wait", "--for=condition=Ready", "genaibuild/b", "--timeout=240s"
    )
    narrow = tenant.cluster.kubectl("-n", tenant.namespace, "get", "gb").splitlines()
    assert narrow[0].split() == ["NAME", "READY", "REASON", "PROGRESS", "CACHED", "AGE"]
    status = tenant.status("b")
    assert narrow[1].split()[1:5] == ["True", "Built", status["progress"], "0"]
    wide = tenant.cluster.kubectl("-n", tenant.namespace, "get", "gbs", "-o", "wide").splitlines()
    assert wide[0].split()[-2:] == ["TARGETS", "REVISION"]
    assert status["artifacts"][0]["revision"] in wide[1]
    assert operator.metric("genai_builds_ended_total") >= 1


@pytest.mark.parametrize("kind", ["gb", "gd", "gt", "gas"])
def test_kubectl_explain_reads_like_documentation(tenant: Tenant, kind: str) -> None:
    text = tenant.cluster.kubectl("explain", f"{kind}.spec", "--recursive=false")
    assert "<no description>" not in text
    if kind == "gb":
        deep = tenant.cluster.kubectl("explain", "gb.spec.quantization.fidelity.budgetNats")
        assert "Allowed rise of the loss" in deep


def test_a_deployment_waits_for_an_image_that_serves_its_target(tenant: Tenant) -> None:
    value = tenant.manifest("chat", {"from": {"build": "b", "target": "cpu"}})
    tenant.cluster.apply(value | {"kind": "GenAIDeployment"})

    def told() -> dict[str, tuple[str, str]]:
        status = tenant.get("genaideployments", "chat").get("status", {})
        return {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", ())}

    wait(lambda: bool(told()), 30)
    reason = "ServingImageNotConfigured"
    assert told() == {"Ready": ("Unknown", reason), "Reconciling": ("True", reason)}
    assert ("Normal", reason) in events(tenant, "chat")
