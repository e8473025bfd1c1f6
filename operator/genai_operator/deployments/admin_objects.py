"""What stands around the pods' admin port: its token, who may reach it, what is declared. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from genai_core.reasons import Reason
from genai_core.wire import USE_LABEL
from genai_operator.deployments.declared import Declaration
from genai_operator.errors import Stalled
from genai_operator.kube.values import Json

__all__ = [
    "ADMIN_PORT",
    "DECLARED_FILE",
    "TOKEN_KEY",
    "declared_map",
    "declared_name",
    "network_policy",
    "secret_name",
    "token_of",
    "token_secret",
]

ADMIN_PORT = 8001
"""Of the pods."""
TOKEN_KEY = "token"  # noqa: S105 - a key's name
DECLARED_FILE = "adapters.json"


def secret_name(name: str) -> str:
    """Of the Secret that is made for a deployment."""
    return f"{name}-admin"


def declared_name(name: str) -> str:
    """Of the ConfigMap that pods read when they start."""
    return f"{name}-adapters"


def token_secret(meta: Json, name: str, token: str) -> Json:
    """A Secret with a token.

    Args:
        meta: Of all objects of the deployment.
        name: Of the deployment.
        token: What the admin port asks for.
    """
    labels = {**meta["labels"], USE_LABEL: "true"}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta | {"name": secret_name(name), "labels": labels},
        "type": "Opaque",
        "stringData": {TOKEN_KEY: token},
    }


def token_of(secret: Mapping[str, Any]) -> str:
    """The token in a Secret.

    Raises:
        Stalled: It holds none.
    """
    try:
        token = base64.b64decode((secret.get("data") or {})[TOKEN_KEY]).decode("ascii").strip()
    except (KeyError, ValueError, TypeError):
        token = ""
    if not token or not token.isprintable():
        raise Stalled(
            Reason.SECRET_INCOMPLETE,
            f"Secret {secret['metadata']['name']} has no {TOKEN_KEY}: one line of ASCII, which the "
            "pods' admin port asks for",
        )
    return token


def declared_map(meta: Json, name: str, declared: Declaration | None) -> Json:
    """The ConfigMap with what a pod serves from its first request on."""
    data = {} if declared is None else {DECLARED_FILE: json.dumps(declared.body)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta | {"name": declared_name(name)},
        "data": data,
    }


def network_policy(
    meta: Json, selected: Mapping[str, str], *, operator: str, confined: bool
) -> Json:
    """Who may reach the pods: everybody the API, the operator alone the admin port.

    Args:
        meta: Of all objects of the deployment.
        selected: Labels of its pods.
        operator: Namespace of the operator.
        confined: False: everybody may reach everything, as without a policy.
    """
    peer = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "operator"}},
    }
    rules: list[Json] = [
        {"ports": [{"port": "http", "protocol": "TCP"}]},
        {"ports": [{"port": ADMIN_PORT, "protocol": "TCP"}], "from": [peer]},
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta,
        "spec": {
            "podSelector": {"matchLabels": dict(selected)},
            "policyTypes": ["Ingress"],
            "ingress": rules if confined else [{}],
        },
    }
