"""What GitOps tools meet: no difference after the operator has worked, and fields that stay theirs.

Argo CD and Flux apply what lies in git again and again, each under its own field manager, and
compare what a dry run would give with what is there. An operator that writes into a spec, or a
schema that fills in something another way than it was written, would make that a difference for
ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.cluster import Cluster
from laptop import SMALL
from operator_process import Operator
from tenant import GROUP, Tenant, wait

MANAGERS = ("argocd-controller", "kustomize-controller")
LABELS = {"app.kubernetes.io/instance": "team-a", "team": "a"}
TRACKING = {"argocd.argoproj.io/tracking-id": "team-a:genai-operator.dev/GenAIBuild:t/build"}
WRITTEN_OUT: dict[str, Any] = {
    "splits": {"count": "auto", "embedding": "Joined"},
    "transformation": {"mha2sha": True, "additionalStartPoints": [{"tensor": ".*attn.*"}]},
    "quantization": SMALL["quantization"] | {"fidelity": {"budgetNats": 1.0}},
    "compilation": {"options": {"graphs.vtcm_size_in_mb": "8"}},
    "golden": {"prompts": ["import os\n"], "maxTokens": 4},
    "run": {
        "parallelism": 4,
        "retries": 0,
        "resources": {"requests": {"memory": "1024Mi", "cpu": "0.5"}},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "scratch": {"size": "2Gi"},
    },
}


@pytest.fixture
def targets(tenant: Tenant, operator: Operator) -> Iterator[str]:
    """What this test's GenAITargets are called at the beginning; they are removed after it."""
    del operator
    yield f"cpu-{tenant.namespace}"
    for target in json.loads(tenant.cluster.kubectl("get", "genaitargets", "-o", "json"))["items"]:
        if target["metadata"]["name"].startswith(f"cpu-{tenant.namespace}"):
            tenant.cluster.kubectl("delete", "genaitarget", target["metadata"]["name"])


def folder(tenant: Tenant, targets: str, suffix: str = "") -> list[dict[str, Any]]:
    """A tenant's folder in git: one of each kind that is served, short and written out."""
    labelled = {"namespace": tenant.namespace, "labels": LABELS, "annotations": TRACKING}
    cpu = json.loads(tenant.cluster.kubectl("get", "genaitarget", "cpu", "-o", "json"))["spec"]
    store = {"bucket": "genai", "endpoint": tenant.cluster.s3_endpoint, "secretRef": {"name": "s3"}}

    def thing(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        meta = labelled | {"name": name + suffix}
        if kind == "GenAITarget":
            meta.pop("namespace")
        return {"apiVersion": GROUP, "kind": kind, "metadata": meta, "spec": spec}

    here = {"targets": [targets + suffix], "store": {"name": f"long{suffix}"}}
    return [
        thing("GenAITarget", targets, {k: cpu[k] for k in ("backend", "image", "toolchain")}),
        thing("ArtifactStore", "short", store),
        thing("ArtifactStore", "long", store | {"region": "us-east-1", "retention": {"keep": 1}}),
        thing("GenAIBuild", "short", SMALL | {"store": {"name": f"short{suffix}"}}),
        thing("GenAIBuild", "long", SMALL | WRITTEN_OUT | here),
    ]


def apply(cluster: Cluster, file: Path, manager: str, *more: str) -> str:
    return cluster.kubectl(
        "apply", "--server-side", f"--field-manager={manager}", "-f", str(file), *more
    )


def live(tenant: Tenant, thing: dict[str, Any]) -> dict[str, Any]:
    text = tenant.cluster.kubectl(
        "-n", tenant.namespace, "get", f"{thing['kind']}.genai-operator.dev",
        thing["metadata"]["name"], "-o", "json", "--show-managed-fields",
    )  # fmt: skip
    found: dict[str, Any] = json.loads(text)
    return found


def ready(tenant: Tenant, things: list[dict[str, Any]]) -> bool:
    def stands(thing: dict[str, Any]) -> bool:
        status = live(tenant, thing)["status"]
        shown = {c["type"]: c["status"] for c in status.get("conditions", ())}
        assert shown.get("Ready") != "False", json.dumps(status, indent=1)
        return shown.get("Ready") == "True"

    return all(stands(thing) for thing in things)


def paths(fields: dict[str, Any], prefix: str = "") -> set[str]:
    """The leaves of a fieldsV1."""
    found = set()
    for name, inner in fields.items():
        if name == ".":
            continue
        path = f"{prefix}.{name.removeprefix('f:')}"
        found |= paths(inner, path) if inner else {path}
    return found


def same_as_in_git(cluster: Cluster, file: Path, manager: str, before: list[Any]) -> None:
    """Neither kubectl's eyes, nor a dry run, nor applying it again find anything to change."""
    difference = ("diff", "--server-side", f"--field-manager={manager}", "-f", str(file))
    assert cluster.kubectl(*difference, check=False) == ""
    cluster.kubectl(*difference)  # and it ended with 0, which an error would not
    dry = json.loads(apply(cluster, file, manager, "--dry-run=server", "-o", "json"))["items"]
    for was, would in zip(before, dry, strict=True):
        for value in (was, would):
            value["metadata"].pop("managedFields", None)
        assert would == was, "what is in git would change what is there"
    apply(cluster, file, manager)


def belongs_to(manager: str, thing: dict[str, Any]) -> None:
    """Spec and metadata are their applier's; the operator has the status and nothing else."""
    meta = thing["metadata"]
    owners = {
        (entry["manager"], entry.get("subresource", "")): paths(entry["fieldsV1"])
        for entry in meta["managedFields"]
    }
    assert set(owners) == {(manager, ""), ("genai-operator", "status")}
    assert all(path.startswith(".status") for path in owners["genai-operator", "status"])
    assert {path.split(".")[1] for path in owners[manager, ""]} == {"metadata", "spec"}
    assert meta["labels"] == LABELS
    assert meta["annotations"] == TRACKING
    assert "finalizers" not in meta
    assert "ownerReferences" not in meta


def test_no_difference_after_the_operator_has_worked(
    tenant: Tenant, targets: str, tmp_path: Path
) -> None:
    for manager in MANAGERS:
        things = folder(tenant, targets, suffix=f"-{manager}")
        file = tmp_path / f"{manager}.yaml"
        file.write_text(yaml.safe_dump_all(things))
        apply(tenant.cluster, file, manager)
        wait(lambda things=things: ready(tenant, things), 240)  # type: ignore[misc]
        before = [live(tenant, thing) for thing in things]
        for thing in before:
            belongs_to(manager, thing)
        same_as_in_git(tenant.cluster, file, manager, before)
        for thing in things:
            assert live(tenant, thing)["metadata"]["generation"] == 1


def test_jobs_do_not_carry_what_a_gitops_tool_takes_for_its_own(
    tenant: Tenant, targets: str, tmp_path: Path
) -> None:
    """Argo CD prunes what has its label and is not in git."""
    file = tmp_path / "tenant.yaml"
    file.write_text(yaml.safe_dump_all(folder(tenant, targets)))
    apply(tenant.cluster, file, MANAGERS[0])
    wait(lambda: bool(tenant.jobs()), 60)
    for made in (*tenant.jobs(), *tenant.pods()):
        meta = made["metadata"]
        assert not set(LABELS) & set(meta["labels"])
        assert not set(TRACKING) & set(meta.get("annotations", {}))


def test_client_side_apply_shows_no_difference_either(tenant: Tenant, operator: Operator) -> None:
    del operator
    text = yaml.safe_dump(tenant.manifest("plain", SMALL | WRITTEN_OUT))
    tenant.cluster.kubectl("apply", "-f", "-", stdin=text)
    tenant.wait_ready("plain")
    assert tenant.cluster.kubectl("diff", "-f", "-", stdin=text) == ""
    assert "unchanged" in tenant.cluster.kubectl("apply", "-f", "-", stdin=text)


def test_what_nobody_has_looked_at_is_not_taken_for_done(
    tenant: Tenant, operator: Operator
) -> None:
    """The apiserver itself says that this generation was not observed; so kstatus waits."""
    operator.stop()
    try:
        tenant.small("alone")
        found = tenant.get("genaibuilds", "alone")
        assert found["status"]["observedGeneration"] == -1
        assert found["metadata"]["generation"] == 1
        assert not found["status"].get("conditions")
    finally:
        operator.start()
    tenant.wait_ready("alone")
