"""The account of the operator under test: the rights that are shipped, and nothing beyond them.

As an administrator it would pass with requests that every real cluster refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from harness.cluster import Cluster

__all__ = ["NAME", "enabled", "install", "kubeconfig"]

SHIPPED = Path(__file__).parents[2] / "deploy" / "kustomize" / "base" / "operator.yaml"
SHIPPED_NAME = "genai-operator"
NAME = "genai-tested"
NAMESPACE = "default"
KINDS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}


def install(cluster: Cluster) -> None:
    """The account and its rights, under names that no test installs."""
    for value in yaml.safe_load_all(SHIPPED.read_text()):
        if value["kind"] in KINDS and value["metadata"]["name"].startswith(SHIPPED_NAME):
            cluster.apply(_own(value))


def enabled(namespace: str) -> dict[str, Any]:
    """What an administrator adds for a namespace in which builds run."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"{NAME}-tenant", "namespace": namespace},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": f"{NAME}-tenant",
        },
    }


def kubeconfig(cluster: Cluster) -> dict[str, Any]:
    """The administrator's way to the apiserver with the account's own token."""
    config: dict[str, Any] = yaml.safe_load(cluster.admin.read_text())
    token = cluster.kubectl("-n", NAMESPACE, "create", "token", NAME, "--duration=4h").strip()
    user = config["contexts"][0]["context"]["user"]
    for entry in config["clusters"]:
        authority = entry["cluster"].get("certificate-authority")
        if authority:
            entry["cluster"]["certificate-authority"] = str(Path(cluster.admin.parent, authority))
    return {**config, "users": [{"name": user, "user": {"token": token}}]}


def _own(value: dict[str, Any]) -> dict[str, Any]:
    meta = {"name": _named(value["metadata"]["name"])}
    if "namespace" in value["metadata"]:
        meta["namespace"] = NAMESPACE
    own = {**value, "metadata": meta}
    if "roleRef" in own:
        own["roleRef"] = {**own["roleRef"], "name": _named(own["roleRef"]["name"])}
        own["subjects"] = [
            {**subject, "name": _named(subject["name"]), "namespace": NAMESPACE}
            for subject in own["subjects"]
        ]
    return own


def _named(name: str) -> str:
    return name.replace(SHIPPED_NAME, NAME, 1)
