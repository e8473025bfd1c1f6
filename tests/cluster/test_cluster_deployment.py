"""Installed without Helm: `kubectl apply -k` of deploy/kustomize, with an overlay as people
write one; it builds what the laptop builds, and applying it again changes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import existing
import pytest
import yaml
from charted import NAMESPACE, ROOT, operator_image, stages_image
from harness.cluster import Cluster
from laptop import TINY, Laptop
from tenant import Tenant, revisions

KUSTOMIZE = ROOT / "deploy" / "kustomize"


def overlay(folder: Path, cluster: Cluster, team: str) -> Path:
    """The example's overlay with this cluster's images and team."""
    copy = folder / "kustomize"
    shutil.copytree(KUSTOMIZE, copy)
    example = copy / "overlays" / "example"
    file = example / "kustomization.yaml"
    value = yaml.safe_load(file.read_text())
    name, digest = operator_image(cluster).split("@")
    value["images"] = [{"name": "genai-operator", "newName": name, "digest": digest}]
    operation = {"op": "add", "path": "/spec/image", "value": stages_image(cluster)}
    value["patches"][0]["patch"] = json.dumps([operation])
    file.write_text(yaml.safe_dump(value))
    tenant = example / "team-a" / "kustomization.yaml"
    value = yaml.safe_load(tenant.read_text())
    # The tests' own store and Secret are there already.
    tenant.write_text(yaml.safe_dump(value | {"namespace": team, "resources": ["../../../tenant"]}))
    return copy


@pytest.fixture
def applied(cluster: Cluster, tenant: Tenant, tmp_path: Path) -> Iterator[Path]:
    """The kinds and the overlay."""
    if existing.wanted() and not os.environ.get("GENAI_TEST_OPERATOR_IMAGE"):
        pytest.skip("NOT INSTALLED BY KUSTOMIZE: GENAI_TEST_OPERATOR_IMAGE does not name an image")
    folder = overlay(tmp_path, cluster, tenant.namespace)
    example = str(folder / "overlays" / "example")
    apply = ("apply", "--server-side", "--force-conflicts", "-k")
    try:
        cluster.kubectl(*apply, str(folder / "crds"))
        cluster.kubectl(
            "wait", "--for=condition=Established", "crd",
            "-l", "app.kubernetes.io/part-of=genai-operator", "--timeout=30s",
        )  # fmt: skip
        cluster.kubectl(*apply, example)
        cluster.kubectl(
            "-n", NAMESPACE, "rollout", "status", "deploy/genai-operator", "--timeout=90s"
        )
        yield folder / "overlays" / "example"
    finally:
        # Not `delete -k`: the targets are the other tests' too.
        for kind in ("clusterroles", "clusterrolebindings"):
            cluster.kubectl("delete", kind, "-l", "app.kubernetes.io/instance=genai-operator")
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s", check=False)


def test_kustomize_installs_what_builds(
    cluster: Cluster, applied: Path, tenant: Tenant, laptop: Laptop
) -> None:
    tenant.build("by-kustomize")
    assert revisions(tenant.wait_ready("by-kustomize")) == laptop.revisions(TINY)
    # The apiserver's defaults are no difference, and the operator writes into nothing but statuses.
    assert cluster.kubectl("diff", "--server-side", "--force-conflicts", "-k", str(applied)) == ""
