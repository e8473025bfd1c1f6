"""The operator as it ships: its image, a Deployment of two replicas, the rights in its README."""

from __future__ import annotations

from typing import Any

from harness import images
from harness.cluster import Cluster
from operator_process import Operator
from tenant import Tenant, wait

NAMESPACE = "genai-system"
IMAGE = "localhost/genai-operator:test"
GROUP = "genai-operator.dev"


def rule(group: str, resources: list[str], *verbs: str) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources, "verbs": list(verbs)}


CLUSTER_RULES = [
    rule(GROUP, ["genaibuilds", "artifactstores", "genaitargets"], "get", "list", "watch"),
    rule(GROUP, ["genaibuilds/status", "artifactstores/status", "genaitargets/status"], "patch"),
    rule("batch", ["jobs"], "get", "list", "watch", "create", "patch", "delete"),
    rule("", ["pods"], "get", "list", "watch", "delete"),
    rule("", ["nodes"], "get"),
    rule("", ["events"], "create"),
]
LEASE_RULES = [rule("coordination.k8s.io", ["leases"], "get", "create", "update")]
SECRET_RULES = [rule("", ["secrets"], "get")]


def role(kind: str, name: str, namespace: str, rules: list[Any]) -> list[dict[str, Any]]:
    """A role and its binding to the operator's account."""
    meta = {"name": name} | ({"namespace": namespace} if namespace else {})
    api = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    account = {"kind": "ServiceAccount", "name": "genai-operator", "namespace": NAMESPACE}
    return [
        api | {"kind": kind, "metadata": meta, "rules": rules},
        api
        | {
            "kind": f"{kind}Binding",
            "metadata": meta,
            "subjects": [account],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        },
    ]


def deployment() -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "genai-operator"}
    pod = {
        "serviceAccountName": "genai-operator",
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "operator",
                "image": IMAGE,
                "imagePullPolicy": "Never",
                "env": [{"name": "GENAI_LEASE_SECONDS", "value": "6"}],
                "ports": [{"containerPort": 8080}],
                "readinessProbe": {
                    "httpGet": {"path": "/readyz", "port": 8080},
                    "periodSeconds": 2,
                },
                "livenessProbe": {
                    "httpGet": {"path": "/healthz", "port": 8080},
                    "initialDelaySeconds": 20,
                },
                "resources": {"requests": {"cpu": "50m"}, "limits": {"memory": "300Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "genai-operator", "namespace": NAMESPACE},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def may(cluster: Cluster, verb: str, what: str, namespace: str) -> bool:
    """Whether the operator's account may do that."""
    account = f"system:serviceaccount:{NAMESPACE}:genai-operator"
    answer = cluster.kubectl(
        "auth", "can-i", verb, what, "--as", account, "-n", namespace, check=False
    )
    return answer.strip() == "yes"


def test_the_shipped_operator_builds_with_the_rights_that_it_is_given(
    cluster: Cluster, operator: Operator, tenant: Tenant
) -> None:
    operator.stop()  # it gives the Lease up in its own namespace; this one holds another
    archive = images.project("operator")
    for node in cluster.nodes:
        node.load(archive)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    meta = {"name": NAMESPACE, "labels": labels}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "genai-operator", "namespace": NAMESPACE},
        },
        *role("ClusterRole", "genai-operator", "", CLUSTER_RULES),
        *role("Role", "genai-operator-lease", NAMESPACE, LEASE_RULES),
        *role("Role", "genai-operator-secrets", tenant.namespace, SECRET_RULES),
        deployment(),
    )
    try:
        cluster.kubectl(
            "-n", NAMESPACE, "rollout", "status", "deploy/genai-operator", "--timeout=90s"
        )
        tenant.build("shipped")
        tenant.wait_ready("shipped")
        events = tenant.get("events")
        reasons = {e["reason"] for e in events if e["involvedObject"]["kind"] == "GenAIBuild"}
        assert {"Progressing", "Built"} <= reasons
        assert may(cluster, "get", "secrets", tenant.namespace)
        for verb, what, namespace in (
            ("get", "secrets", "default"),
            ("list", "secrets", tenant.namespace),
            ("update", "genaibuilds", tenant.namespace),
            ("patch", "genaibuilds", tenant.namespace),
            ("create", "pods", tenant.namespace),
            ("create", "pods/exec", tenant.namespace),
            ("patch", "nodes", ""),
        ):
            assert not may(cluster, verb, what, namespace or "default"), (verb, what, namespace)
        _another_replica_takes_over(cluster, tenant)
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)


def _another_replica_takes_over(cluster: Cluster, tenant: Tenant) -> None:
    def holder() -> str:
        return cluster.kubectl(
            "-n", NAMESPACE, "get", "lease", "genai-operator", "-o",
            "jsonpath={.spec.holderIdentity}",
        )  # fmt: skip

    first = holder()
    pod = next(
        name
        for line in cluster.kubectl("-n", NAMESPACE, "get", "pods", "-o", "name").split()
        if first.startswith(name := line.removeprefix("pod/"))
    )
    cluster.kubectl("-n", NAMESPACE, "delete", "pod", pod, "--grace-period=0", "--force")
    wait(lambda: holder() not in {first, ""}, 30, holder)
    tenant.build("afterwards")
    tenant.wait_ready("afterwards", 60)
