"""The chart: values are strict, pods pass Pod Security, targets are what the code knows."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from genai_core import chips
from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.kinds.target import TargetSpec
from genai_operator.settings import read_settings
from genai_operator.targets.build_targets import target_problem

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "genai-operator"
CRDS_CHART = ROOT / "charts" / "genai-operator-crds"
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
DIGEST = "sha256:" + "ab" * 32
Objects = list[dict[str, Any]]


def test_helm_finds_nothing_to_say_about_the_charts(helm: Callable[..., Any]) -> None:
    for chart in (CHART, CRDS_CHART):
        ran = helm("lint", "--strict", str(chart))
        assert ran.returncode == 0, ran.stdout


def test_defaults_are_valid_and_every_value_is_in_the_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)
    assert set(SCHEMA["properties"]) - {"global"} == set(VALUES)


def strict_objects(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict) and node.get("type") == "object":
            yield path, node
        for name, inner in node.items():
            yield from strict_objects(inner, f"{path}/{name}")


def test_no_object_of_the_schema_takes_what_it_does_not_name() -> None:
    loose = [path for path, node in strict_objects(SCHEMA) if "additionalProperties" not in node]
    assert [path for path in loose if not path.endswith("/spec")] == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"replica": 3}, "replica"),
        ({"replicas": "two"}, "replicas"),
        ({"replicas": 2.5}, "replicas"),
        ({"image": {"digest": "abc"}}, "digest"),
        ({"image": {"repository": "a b"}}, "repository"),
        ({"stages": {"image": {"tag": "latest"}}}, "tag"),
        ({"stages": {"image": {"digest": "latest"}}}, "digest"),
        ({"targets": {"items": {"x": {"backend": "Gpu"}}}}, "backend"),
        ({"targets": {"items": {"x": {"chipset": "SM8750"}}}}, "x"),
        ({"targets": {"items": {"UPPER": {"backend": "Cpu"}}}}, "UPPER"),
        ({"targets": {"items": {"x": {"backend": "Cpu", "image": "a:latest"}}}}, "x"),
        ({"enabledNamespaces": ["Team_A"]}, "enabledNamespaces"),
        ({"enabledNamespaces": "team-a"}, "enabledNamespaces"),
        ({"watchNamespaces": ["*"]}, "watchNamespaces"),
        ({"operator": {"logLevel": "LOUD"}}, "logLevel"),
        ({"operator": {"allowedEndpoints": []}}, "allowedEndpoints"),
        ({"operator": {"workers": 0}}, "workers"),
        ({"networkPolicy": {"storePorts": [0]}}, "storePorts"),
        ({"imagePullSecrets": ["regcred"]}, "imagePullSecrets"),
        ({"stores": [{"name": "default", "spec": {"bucket": "b"}}]}, "stores"),
    ],
)
def test_wrong_values_are_refused_by_name(value: dict[str, Any], says: str) -> None:
    with pytest.raises(jsonschema.ValidationError) as refused:
        jsonschema.validate(value, SCHEMA)
    where = "/".join(str(part) for part in refused.value.absolute_path)
    assert says in f"{where} {refused.value.message}"


def test_helm_refuses_by_the_schema(helm: Callable[..., Any]) -> None:
    ran = helm("template", "x", str(CHART), "--kube-version", "1.34.0", "--set", "replica=3")
    assert ran.returncode != 0
    assert "replica" in ran.stderr


def pods(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    for value in objects:
        if value["kind"] == "Pod":
            yield value["metadata"]["name"], value["spec"]
        elif "template" in value.get("spec", {}):
            yield value["metadata"]["name"], value["spec"]["template"]["spec"]


def test_every_pod_passes_pod_security_restricted(rendered: Callable[..., Objects]) -> None:
    # Kubernetes documentation, "Pod Security Standards", Restricted, v1.34.
    found = dict(pods(rendered()))
    assert set(found) == {"genai-operator", "genai-operator-test"}
    for spec in found.values():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        volumes = spec.get("volumes", ())
        assert all(set(v) - {"name"} <= {"emptyDir", "configMap", "secret"} for v in volumes)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] != 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True  # more than restricted asks for
            assert not any("hostPort" in port for port in container.get("ports", ()))
            assert container["resources"]["limits"]["memory"]


def test_the_token_is_mounted_by_pods_that_ask_for_it_only(
    rendered: Callable[..., Objects],
) -> None:
    accounts = [o for o in rendered() if o["kind"] == "ServiceAccount"]
    assert len(accounts) == 2
    assert all(o["automountServiceAccountToken"] is False for o in accounts)


def test_every_setting_of_the_operator_is_a_value(rendered: Callable[..., Objects]) -> None:
    code = (ROOT / "operator" / "genai_operator" / "settings.py").read_text(encoding="utf-8")
    known = set(re.findall(r'"(GENAI_[A-Z_]+)"', code))
    _, spec = next(pods(rendered('operator.clusterName="east"')))
    given = {entry["name"] for entry in spec["containers"][0]["env"]}
    # The port is the container's own affair; the Lease may not be switched off under two replicas.
    assert given == known - {"GENAI_HTTP_PORT", "GENAI_LEASE"}


def test_values_reach_the_operator_as_it_reads_them(rendered: Callable[..., Objects]) -> None:
    _, spec = next(
        pods(
            rendered(
                'watchNamespaces=["a","b"]', "operator.workers=7", "operator.leaseSeconds=6.5",
                'operator.allowedEndpoints=["https://*.example","http://minio:9000"]',
                'operator.allowedTolerations=["gpu","spot*"]', "operator.allowedAudiences=[]",
                'secretLabel="Warn"',
            )
        )
    )  # fmt: skip
    environment = {e["name"]: e["value"] for e in spec["containers"][0]["env"] if "value" in e}
    settings = read_settings(environment | {"GENAI_OPERATOR_NAMESPACE": "x"})
    assert settings.namespaces == ("a", "b")
    assert (settings.workers, settings.lease_seconds) == (7, 6.5)
    assert settings.allowed_endpoints == ("https://*.example", "http://minio:9000")
    assert settings.allowed_tolerations == ("gpu", "spot*")
    assert settings.allowed_audiences == ()
    assert settings.secret_label == "Warn"
    default = read_settings({"GENAI_OPERATOR_NAMESPACE": "x"})
    for name in ("sts_endpoints", "priority_classes", "service_accounts"):
        assert getattr(settings, f"allowed_{name}") == getattr(default, f"allowed_{name}"), name
    assert settings.collect_hours == default.collect_hours
    assert settings.chain_tasks == default.chain_tasks
    assert settings.cluster_name == default.cluster_name


def targets(objects: Objects) -> dict[str, dict[str, Any]]:
    return {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "GenAITarget"}


def test_the_targets_are_the_contracts_and_say_what_they_lack(base: Objects) -> None:
    found = targets(base)
    assert set(found) == {"sm8550", "sm8650", "sm8750", "sm8850", "sc8380xp", "cpu"}
    for name, spec in found.items():
        model = TargetSpec.model_validate(spec)
        problem = target_problem(model)
        assert problem is not None
        reason, message = problem
        assert reason == "ImageNotConfigured"
        assert ("make image-htp" in message) is (name != "cpu")
        value = message.partition("(chart: ")[2].rstrip(")")
        assert value.split(".")[1] in VALUES["stages"]
        if name != "cpu":
            assert chips.by_name(spec["chipset"]).name == name.upper()


def test_with_their_images_all_targets_are_ready(rendered: Callable[..., Objects]) -> None:
    found = targets(
        rendered(f'stages.image.digest="{DIGEST}"', f'stages.htpImage.digest="{DIGEST}"')
    )
    assert len(found) == 6
    for name, spec in found.items():
        assert target_problem(TargetSpec.model_validate(spec)) is None, name
    assert found["cpu"]["image"] == f"genai-stages@{DIGEST}"
    assert found["sm8750"]["image"] == f"genai-stages-htp@{DIGEST}"
    assert "servingImage" not in found["cpu"]


def test_targets_name_the_image_that_serves_them(rendered: Callable[..., Objects]) -> None:
    own = f"registry.example/mine@{DIGEST}"
    found = targets(
        rendered(f'serving.image.digest="{DIGEST}"', f'targets.items.sm8750.servingImage="{own}"')
    )
    assert found["cpu"]["servingImage"] == f"genai-serving@{DIGEST}"
    assert found["sm8750"]["servingImage"] == own
    assert "servingImage" not in found["sm8650"]
    assert TargetSpec.model_validate(found["cpu"]).serving_image == f"genai-serving@{DIGEST}"


def test_pods_select_the_architecture_of_their_image(rendered: Callable[..., Objects]) -> None:
    def arches(*values: str) -> tuple[object, object, object]:
        objects = rendered(*values)
        found = targets(objects)
        operator = next(o for o in objects if o["kind"] == "Deployment")
        return (
            operator["spec"]["template"]["spec"].get("nodeSelector"),
            found["cpu"].get("nodeSelector"),
            found["sm8750"].get("nodeSelector"),
        )

    amd64, arm64 = {"kubernetes.io/arch": "amd64"}, {"kubernetes.io/arch": "arm64"}
    assert arches() == (amd64, amd64, amd64)
    assert arches('image.arch="arm64"', 'stages.image.arch=""') == (arm64, None, amd64)
    own = 'targets.items.cpu.nodeSelector={"disk":"fast","kubernetes.io/arch":"arm64"}'
    assert arches(own)[1] == arm64 | {"disk": "fast"}
    image = f'targets.items.cpu.image="registry.example/mine@{DIGEST}"'
    assert arches(image)[1] is None, "only its owner knows what that image runs on"


def test_a_target_can_be_left_out_added_and_given_its_own_image(
    rendered: Callable[..., Objects],
) -> None:
    own = f"registry.example/mine@{DIGEST}"
    found = targets(
        rendered(
            'targets.items.sm8550={"enabled":false}',
            "targets.items.sm8650=null",
            f'targets.items.big={{"backend":"Htp","dspArch":"v79","socModel":69,"image":"{own}",'
            '"toolchain":{"onnx":"9"}}',
            'stages.toolchain={"numpy":"8"}',
        )
    )
    assert set(found) == {"sm8750", "sm8850", "sc8380xp", "cpu", "big"}
    assert found["big"]["image"] == own
    assert found["big"]["toolchain"]["onnx"] == "9"
    assert found["big"]["toolchain"]["numpy"] == "8"
    assert found["cpu"]["toolchain"]["onnx"] != "9"
    assert target_problem(TargetSpec.model_validate(found["big"])) is None


def test_the_declared_toolchain_is_what_these_constraints_install() -> None:
    declared = yaml.safe_load((CHART / "files" / "toolchain.yaml").read_text(encoding="utf-8"))
    assert set(declared) == {"Cpu", "Htp"}
    compared = 0
    for versions in declared.values():
        for name, version in versions.items():
            try:
                assert metadata.version(name) == version, name
            except metadata.PackageNotFoundError:
                assert name == "onnxruntime-qnn"  # no wheel for this machine
                continue
            compared += 1
    assert compared >= 10


def test_stores_can_be_made_with_the_chart(rendered: Callable[..., Objects]) -> None:
    spec = {"bucket": "genai", "endpoint": "https://s3.example", "secretRef": {"name": "s3"}}
    value = json.dumps([{"name": "default", "namespace": "team-a", "spec": spec}])
    found = [o for o in rendered(f"stores={value}") if o["kind"] == "ArtifactStore"]
    assert [o["metadata"]["namespace"] for o in found] == ["team-a"]
    assert ArtifactStoreSpec.model_validate(found[0]["spec"]).bucket == "genai"
    assert not [o for o in rendered() if o["kind"] == "ArtifactStore"]


def test_network_policies_open_dns_apiserver_store_and_servers_only(
    rendered: Callable[..., Objects],
) -> None:
    found = {
        (o["metadata"]["namespace"], o["metadata"]["name"]): o["spec"]
        for o in rendered(
            "networkPolicy.enabled=true",
            "networkPolicy.storePorts=[443,9000]",
            'enabledNamespaces=["team-a"]',
        )
        if o["kind"] == "NetworkPolicy"
    }
    operator = found["genai-system", "genai-operator"]
    stages = found["team-a", "genai-operator-stages"]
    ports = [[p["port"] for p in rule["ports"]] for rule in operator["egress"]]
    assert ports == [[53, 53], [443, 6443, 9000], [8000, 8001]]
    (servers,) = operator["egress"][2]["to"]
    assert servers == {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "genai-server"}},
    }
    assert [[p["port"] for p in rule["ports"]] for rule in stages["egress"]][1] == [443, 9000]
    assert stages["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in stages
    for policy in (operator, stages):
        blocks = [peer["ipBlock"] for peer in policy["egress"][1]["to"] if "ipBlock" in peer]
        assert "169.254.0.0/16" in blocks[0]["except"]
    # The stages' policy selects the labels that the operator gives its Jobs' pods.
    text = (ROOT / "operator/genai_operator/jobs/job_manifest.py").read_text(encoding="utf-8")
    assert stages["podSelector"]["matchLabels"]["app.kubernetes.io/name"] in text


def test_one_replica_has_no_disruption_budget(rendered: Callable[..., Objects]) -> None:
    assert "PodDisruptionBudget" in {o["kind"] for o in rendered()}
    assert "PodDisruptionBudget" not in {o["kind"] for o in rendered("replicas=1")}


def test_versions_are_those_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for chart in (CHART, CRDS_CHART):
        described = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
        assert described["version"] == described["appVersion"] == project["version"]
