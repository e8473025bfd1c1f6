"""What a real apiserver says to specs, and to the operator's client.

What a pod would take is served as it was written; what is misspelt, senseless or without measure is
refused by name. The client finds the rules that the tests' fake of an apiserver is held to.
"""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from apiserver_rules import RULES, Rule
from harness.cluster import Cluster
from tenant import GROUP

from genai_operator.kube.apiserver.client import ApiClient
from genai_operator.kube.apiserver.connection import connection

PODS = {
    "topologyKey": "topology.kubernetes.io/zone",
    "labelSelector": {
        "matchLabels": {"app": "db"},
        "matchExpressions": [{"key": "tier", "operator": "Exists"}],
    },
    "namespaces": ["other"],
    "namespaceSelector": {},
}
TERM = {
    "matchExpressions": [
        {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64", "arm64"]},
        {"key": "gpu", "operator": "DoesNotExist"},
        {"key": "cores", "operator": "Gt", "values": ["7"]},
    ],
    "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["old-1"]}],
}
REQUIRED, PREFERRED = (
    f"{kind}DuringSchedulingIgnoredDuringExecution" for kind in ("required", "preferred")
)
AFFINITY: dict[str, Any] = {
    "nodeAffinity": {
        REQUIRED: {"nodeSelectorTerms": [TERM]},
        PREFERRED: [{"weight": 50, "preference": TERM}],
    },
    "podAffinity": {REQUIRED: [PODS]},
    "podAntiAffinity": {PREFERRED: [{"weight": 100, "podAffinityTerm": PODS}]},
}


def build(affinity: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": GROUP,
        "kind": "GenAIBuild",
        "metadata": {"name": "schema", "namespace": "default"},
        "spec": {
            "model": {"source": "s3://models/m"},
            "targets": ["cpu"],
            "run": {"affinity": affinity},
        },
    }


def pod(affinity: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "schema", "namespace": "default"},
        "spec": {"affinity": affinity, "containers": [{"name": "a", "image": "x/y"}]},
    }


def tried(cluster: Cluster, value: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What a server-side dry run serves, and what it says."""
    command = ["kubectl", "--kubeconfig", str(cluster.admin), "create", "--dry-run=server"]
    ran = subprocess.run(
        [*command, "-o", "json", "-f", "-"],
        input=json.dumps(value),
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(ran.stdout) if ran.returncode == 0 else {}, ran.stderr


def test_affinity_is_served_as_a_pod_has_it(cluster: Cluster) -> None:
    served, _ = tried(cluster, build(AFFINITY))
    assert served["spec"]["run"]["affinity"] == AFFINITY
    of_pod, said = tried(cluster, pod(AFFINITY))
    assert of_pod, said
    assert of_pod["spec"]["affinity"] == AFFINITY


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    found = copy.deepcopy(AFFINITY)
    here: Any = found
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = to
    return found


TERMS = ("nodeAffinity", REQUIRED, "nodeSelectorTerms")


@pytest.mark.parametrize(
    ("affinity", "said"),
    [
        (changed("nodeAfinity", to={}), 'unknown field "spec.run.affinity.nodeAfinity"'),
        (changed(*TERMS, 0, "matchExpression", to=[]), "matchExpression"),
        (changed(*TERMS, 0, "matchExpressions", 1, "values", to=["x"]), "DoesNotExist have none"),
        (changed(*TERMS, 0, "matchExpressions", 0, "values", to=[]), "In and NotIn need values"),
        (changed(*TERMS, 0, "matchExpressions", 0, "operator", to="in"), "Unsupported value"),
        (changed("podAffinity", REQUIRED, to=[PODS] * 9), "must have at most 8 items"),
        (changed("x", to=[[]] * 480_000), "unknown field"),
    ],
    ids=["name", "inner name", "no values", "values", "operator", "terms", "megabytes"],
)
def test_affinity_is_refused_by_name(cluster: Cluster, affinity: dict[str, Any], said: str) -> None:
    served, words = tried(cluster, build(affinity))
    assert served == {}
    assert said in words


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("store", {"name": "Team_A"}, "expected a name of lower-case letters, digits"),
        ("run", {"nodeSelector": {"k" * 257: "v"}}, "a key has at most 256 characters"),
        ("run", {"resources": {"limits": {"memory": "8 GB"}}}, "expected a quantity such as 20Gi"),
        ("compilation", {"options": {"k" * 257: "1"}}, "a key has at most 256 characters"),
    ],
)
def test_a_name_is_refused_in_words(
    cluster: Cluster, field: str, value: dict[str, Any], said: str
) -> None:
    wrong = build({})
    wrong["spec"][field] = value
    served, words = tried(cluster, wrong)
    assert served == {}
    assert said in words


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"rules-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_apiserver_keeps_the_rule_that_its_fake_is_held_to(
    rule: Rule, cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(cluster.admin))

    async def keep() -> None:
        async with ApiClient(connection()) as api:
            await rule(api, namespace)

    asyncio.run(keep())


def test_a_deployment_without_replicas_has_a_scale_for_autoscalers(cluster: Cluster) -> None:
    """Of a field that is not there the apiserver tells an autoscaler an internal error."""
    value = {
        "apiVersion": GROUP,
        "kind": "GenAIDeployment",
        "metadata": {"name": "scaled", "namespace": "default"},
        "spec": {"from": {"build": "nobody", "target": "cpu"}},
    }
    cluster.apply(value)
    try:
        place = f"/apis/{GROUP}/namespaces/default/genaideployments/scaled"
        scale = json.loads(cluster.kubectl("get", "--raw", f"{place}/scale"))
        assert scale["spec"] == {"replicas": 1}
        cluster.kubectl("scale", "genaideployment/scaled", "--current-replicas=1", "--replicas=3")
        cluster.apply(value)  # a manifest without replicas takes nothing from the autoscaler
        assert json.loads(cluster.kubectl("get", "--raw", place))["spec"]["replicas"] == 3
    finally:
        cluster.kubectl("delete", "genaideployment", "scaled")
