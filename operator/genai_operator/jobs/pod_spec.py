"""What every pod of ours is given, a task's and a server's: where it runs, what it may. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from genai_core.kinds.build import Run
from genai_core.kinds.deployment import Pods
from genai_core.quantity import amount
from genai_operator.jobs.access import StoreAccess
from genai_operator.kube.values import Json

__all__ = ["PodSettings", "container_security", "cpu_request", "mebibytes", "pod_spec"]

_USER = 65532
_MIB = 1 << 20

PodSettings: TypeAlias = Run | Pods
"""What a user says of pods: `spec.run` of a build, `spec.pods` of a deployment."""


def pod_spec(
    settings: PodSettings,
    access: StoreAccess,
    *,
    node_selector: Mapping[str, str],
    spread: Mapping[str, str],
    tolerations: Sequence[Json] = (),
) -> Json:
    """A pod without containers and volumes; it passes Pod Security `restricted` with them.

    Args:
        settings: Of the user.
        access: To the store; its service account is used where the user names none.
        node_selector: Of the target; the user's own is added.
        spread: Labels of the pods that are spread over the nodes, where the user wants that.
        tolerations: Beside the user's.
    """
    pod: Json = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    tolerated = [
        t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in settings.tolerations
    ]
    if tolerated := [*tolerated, *tolerations]:
        pod["tolerations"] = tolerated
    if selector := dict(node_selector) | dict(settings.node_selector):
        pod["nodeSelector"] = selector
    if account := settings.service_account_name or access.service_account:
        # Its token for the apiserver stays out: our pods never call it. What a cloud gives an
        # account for (IRSA, pod identity) comes by a volume or an address of its own.
        pod["serviceAccountName"] = account
    if settings.priority_class_name:
        pod["priorityClassName"] = settings.priority_class_name
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in settings.image_pull_secrets]
    if affinity := settings.affinity.canonical():
        pod["affinity"] = affinity
    if settings.topology_spread:
        pod["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": dict(spread)},
            }
        ]
    return pod


def container_security() -> Json:
    """Of each container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def cpu_request(default: str, limits: Mapping[str, str]) -> str:
    """What is set aside where the user does not say: never more than the limit."""
    limit = limits.get("cpu")
    return limit if limit is not None and amount(limit) < amount(default) else default


def mebibytes(size: int) -> str:
    """Bytes as a quantity, rounded up."""
    return f"{-(-size // _MIB)}Mi"
