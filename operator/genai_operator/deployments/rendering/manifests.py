"""A GenAIDeployment as a Deployment, a Service and what stands around them. Pure.

Adapters stand in no pod: they come by a ConfigMap when a pod starts, and by its admin port while it
runs, so that a change of them starts nothing anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from genai_core.canonical import digest_json
from genai_core.kinds.deployment import RolloutStrategy
from genai_core.wire import MANAGED, RENDERING, REVISION
from genai_operator.deployments.admin_objects import declared_map, network_policy
from genai_operator.deployments.rendering.served_revision import MANAGER, Served, meta_of, selector
from genai_operator.deployments.rendering.server_options import MIB
from genai_operator.deployments.rendering.server_pod import server_pod
from genai_operator.kube.values import Json

_FETCH_BYTES_A_SECOND = 10 * MIB
"""Less than any network that gigabytes should come by: how long a fetch may count as progress."""


def manifests(served: Served) -> list[tuple[str, Json]]:
    """Plural and manifest of each object, for server-side apply."""
    policy = network_policy(
        meta_of(served),
        selector(served.name),
        operator=served.operator,
        confined=served.spec.expose.network_policy,
    )
    return [
        ("configmaps", declared_map(meta_of(served), served.name, served.declared)),
        ("networkpolicies", policy),
        ("services", _service(served)),
        ("poddisruptionbudgets", _budget(served)),
        ("deployments", _deployment(served)),
    ]


def rendering_of(wanted: Sequence[tuple[str, Json]]) -> str:
    """How the pods of these manifests are rendered."""
    rendering: str = dict(wanted)["deployments"]["metadata"]["annotations"][RENDERING]
    return rendering


def _service(served: Served) -> Json:
    name = "http" if served.spec.expose.tls_secret_ref is None else "https"
    port = {"name": name, "port": served.spec.expose.port, "targetPort": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta_of(served),
        "spec": {"selector": selector(served.name), "ports": [port | {"protocol": "TCP"}]},
    }


def _budget(served: Served) -> Json:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta_of(served),
        "spec": {
            "maxUnavailable": served.spec.pods.disruption_budget.max_unavailable,
            "selector": {"matchLabels": selector(served.name)},
        },
    }


def _deployment(served: Served) -> Json:
    rollout = served.spec.rollout
    strategy: Json = {"type": rollout.strategy.value}
    if rollout.strategy is RolloutStrategy.ROLLING_UPDATE:
        strategy["rollingUpdate"] = {
            "maxSurge": rollout.max_surge,
            "maxUnavailable": rollout.max_unavailable,
        }
    fetching = math.ceil(served.size_bytes / _FETCH_BYTES_A_SECOND)
    labels = {MANAGED: MANAGER, **selector(served.name)}
    pod = server_pod(served)
    # By it a pod is told from those of an earlier rendering, which may serve the same container.
    rendering = digest_json(pod)[:16]
    spec: Json = {
        "replicas": served.spec.replicas,
        "selector": {"matchLabels": selector(served.name)},
        "strategy": strategy,
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": rollout.progress_deadline_seconds + fetching,
        "template": {
            "metadata": {
                "labels": labels,
                "annotations": {REVISION: served.revision, RENDERING: rendering},
            },
            "spec": pod,
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta_of(served) | {"annotations": {RENDERING: rendering}},
        "spec": spec,
    }
