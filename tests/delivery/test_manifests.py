"""Kustomize and GitOps: in step with the code, complete, and in an order that works."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from genai_core.kinds.artifact_store import ArtifactStore
from genai_core.kinds.build import GenAIBuild

ROOT = Path(__file__).parents[2]
KUSTOMIZE = ROOT / "deploy" / "kustomize"
GITOPS = ROOT / "deploy" / "gitops"
Objects = list[dict[str, Any]]


@pytest.fixture(scope="module")
def delivery() -> ModuleType:
    """tools/delivery.py."""
    spec = importlib.util.spec_from_file_location("delivery", ROOT / "tools" / "delivery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(path: Path) -> Objects:
    return [value for value in yaml.safe_load_all(path.read_text(encoding="utf-8")) if value]


def built(folder: Path) -> Objects:
    """What `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("NO KUBECTL: what kustomize makes was not looked at")
    ran = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [value for value in yaml.safe_load_all(ran.stdout) if value]


def test_copies_of_the_kinds_are_the_kinds() -> None:
    originals = sorted((ROOT / "crds").glob("*.yaml"))
    assert len(originals) == 4
    for path in originals:
        original = load(path)[0]
        chart = load(ROOT / "charts/genai-operator-crds/templates" / path.name)[0]
        plain = load(KUSTOMIZE / "crds" / path.name)[0]
        assert chart["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        assert chart["spec"] == plain["spec"] == original["spec"]
        assert chart["metadata"]["name"] == plain["metadata"]["name"]


def test_no_kind_holds_what_helm_would_take_for_a_template() -> None:
    for path in (ROOT / "charts/genai-operator-crds/templates").glob("*"):
        assert "{{" not in path.read_text(encoding="utf-8")


def test_the_base_is_what_helm_renders(helm: Callable[..., Any], delivery: ModuleType) -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "manifests.py"), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_chart_that_changed_is_noticed_without_helm(
    delivery: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert delivery.base_is_current()
    copy = tmp_path / "chart"
    shutil.copytree(delivery.CHART, copy)
    monkeypatch.setattr(delivery, "CHART", copy)
    assert delivery.base_is_current()
    with (copy / "values.yaml").open("a", encoding="utf-8") as file:
        file.write("replicas: 3\n")
    assert not delivery.base_is_current()


def test_the_example_overlay_names_images_and_enables_its_team() -> None:
    objects = built(KUSTOMIZE / "overlays" / "example")
    by_kind = {(o["kind"], o["metadata"]["name"]): o for o in objects}
    pod = by_kind["Deployment", "genai-operator"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.example/genai-operator:0.1.0"
    assert "@sha256:" in by_kind["GenAITarget", "cpu"]["spec"]["image"]
    binding = by_kind["RoleBinding", "genai-operator-tenant"]
    assert binding["metadata"]["namespace"] == "team-a"
    account = by_kind["ServiceAccount", "genai-operator"]["metadata"]
    subject = binding["subjects"][0]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    labels = by_kind["Namespace", "team-a"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_kinds_can_be_applied_by_kustomize() -> None:
    assert {o["kind"] for o in built(KUSTOMIZE / "crds")} == {"CustomResourceDefinition"}
    assert len(built(KUSTOMIZE / "crds")) == 4


def test_a_tenants_folder_is_whole_and_its_objects_are_valid() -> None:
    objects = {o["kind"]: o for o in built(GITOPS / "tenants" / "team-a")}
    assert set(objects) == {"Namespace", "RoleBinding", "ArtifactStore", "GenAIBuild"}
    ArtifactStore.model_validate(objects["ArtifactStore"])
    GenAIBuild.model_validate(objects["GenAIBuild"])
    role = objects["RoleBinding"]["roleRef"]["name"]
    base = load(KUSTOMIZE / "base" / "operator.yaml")
    assert role in {o["metadata"]["name"] for o in base if o["kind"] == "ClusterRole"}


def wave(value: dict[str, Any]) -> int:
    annotations = value["metadata"].get("annotations", {})
    return int(annotations.get("argocd.argoproj.io/sync-wave", 0))


def test_argo_syncs_what_is_needed_before_what_needs_it() -> None:
    apps = {path.name: load(path)[0] for path in sorted((GITOPS / "argocd/apps").glob("*.yaml"))}
    assert [wave(apps[name]) for name in sorted(apps)] == [0, 1, 2]
    tenant = {o["kind"]: wave(o) for o in built(GITOPS / "tenants" / "team-a")}
    assert tenant["Namespace"] == tenant["RoleBinding"] < tenant["ArtifactStore"]
    assert tenant["ArtifactStore"] < tenant["GenAIBuild"]


def paths_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in {"path", "chart"} and isinstance(inner, str) and "{{" not in inner:
                yield inner
            else:
                yield from paths_in(inner)
    if isinstance(value, list):
        for inner in value:
            yield from paths_in(inner)


def test_every_path_that_is_named_is_there() -> None:
    named = {
        path
        for file in [*GITOPS.glob("argocd/**/*.yaml"), *GITOPS.glob("flux/**/*.yaml")]
        for value in load(file)
        for path in paths_in(value)
    }
    assert len(named) >= 6
    for path in named:
        folder = ROOT / path.removesuffix("/*")
        assert folder.is_dir(), path
        assert any(folder.iterdir()), path


def test_values_of_the_examples_pass_the_charts_schema(helm: Callable[..., Any]) -> None:
    argo = load(GITOPS / "argocd/apps/20-operator.yaml")[0]["spec"]["source"]["helm"]
    flux = next(
        o for o in load(GITOPS / "flux/releases/operator.yaml")
        if o["metadata"]["name"] == "genai-operator"
    )["spec"]  # fmt: skip
    for values in (argo["valuesObject"], flux["values"]):
        ran = subprocess.run(
            [
                *helm("version").args[:1], "template", "x", str(ROOT / "charts/genai-operator"),
                "--kube-version", "1.34.0", "-f", "-",
            ],
            input=yaml.safe_dump(values), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr


def test_flux_waits_for_what_it_depends_on() -> None:
    objects = [o for f in GITOPS.glob("flux/**/*.yaml") for o in load(f)]
    for kind in ("HelmRelease", "Kustomization"):
        ours = [o for o in objects if o["kind"] == kind]
        names = {o["metadata"]["name"] for o in ours}
        needed = {d["name"] for o in ours for d in o["spec"].get("dependsOn", ())}
        assert needed
        assert needed <= names
    tenant = next(o for o in objects if o["metadata"]["name"] == "genai-team-a")["spec"]
    applied = {(o["kind"], o["metadata"]["name"]) for o in built(ROOT / tenant["path"])}
    checked = {(c["kind"], c["name"]) for c in tenant["healthChecks"]}
    assert checked
    assert checked <= applied


def test_flux_judges_our_kinds_as_the_shipped_health_checks_do() -> None:
    patch = load(ROOT / "deploy/health/flux/kustomization-patch.yaml")[0]
    proven = {e["kind"]: e for e in patch["spec"]["healthCheckExprs"]}
    used = [
        expression
        for file in GITOPS.glob("flux/**/*.yaml")
        for value in load(file)
        for expression in value.get("spec", {}).get("healthCheckExprs", ())
    ]
    assert {e["kind"] for e in used} == {"GenAIBuild", "GenAITarget"}
    assert all(e == proven[e["kind"]] for e in used)
