"""A task as a Job: name, pod, resources. Pure.

The name comes from the task's key and scope and from the attempt, so whoever creates it and
however often, there is one: a second create is refused by the apiserver. Attempts are Jobs of their
own: what an earlier one ended with stays there for all to see, and nothing has to be remembered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from genai_core.canonical import digest_json
from genai_core.errors import InvalidSpec
from genai_core.kinds.base import API_VERSION
from genai_core.kinds.build import Run
from genai_core.names import Key
from genai_core.task import pack
from genai_operator.access import StoreAccess, environment_of, mounts_of, volumes_of
from genai_operator.api import Json
from genai_operator.views import (
    ATTEMPT,
    CHAIN,
    KEY,
    MANAGED,
    MEMORY,
    OPERATION,
    SCOPE,
    TASK,
    TTL,
    Link,
)

__all__ = [
    "MOST_TASK_BYTES",
    "JobRequest",
    "Owner",
    "given_memory",
    "job_name",
    "owner_reference",
    "render",
    "scope_of",
]

MANAGER = "genai-operator"
_USER = 65532
_MIB = 1 << 20
_DECIMAL, _BINARY = "kMGTPE", "KMGTPE"
_UNITS = (
    {"": 1.0, "m": 1e-3, "ki": 1024.0}
    | {unit: 1000.0 ** (n + 1) for n, unit in enumerate(_DECIMAL)}
    | {f"{unit}i": 1024.0 ** (n + 1) for n, unit in enumerate(_BINARY)}
)
MOST_TASK_BYTES = 120_000
"""Linux takes no environment variable over 128 KiB."""
_UNREACHABLE_SECONDS = 30


@dataclass(frozen=True)
class Owner:
    """The build, or the store, that claims a Job."""

    name: str
    uid: str
    kind: str = "GenAIBuild"


@dataclass(frozen=True)
class JobRequest:
    """A Job that is to be.

    Attributes:
        document: The task file, the chain's, or the question about a source.
        memory_bytes: That the largest of its tasks needs.
        seconds: That all of them may take.
        node_selector: Of the target; the build's own is added.
        chain: The tasks that follow in the same pod.
    """

    namespace: str
    key: Key
    operation: str
    task: str
    document: BaseModel
    image: str
    memory_bytes: int
    seconds: float = 0.0
    attempt: int = 1
    node_selector: Mapping[str, str] = field(default_factory=dict)
    reads_source: bool = False
    chain: tuple[Link, ...] = ()


def given_memory(run: Run) -> int | None:
    """Bytes that the user gives every task; None: sized from the model."""
    text = run.resources.limits.get("memory") or run.resources.requests.get("memory")
    if text is None:
        return None
    number = text.rstrip("EPTGMKkim")
    return int(float(number) * _UNITS[text[len(number) :]])


def scope_of(store: str, run: Run) -> str:
    """Which tasks may share a Job: those of one store, queue and priority."""
    return digest_json(
        {"store": store, "queue": run.queue_name, "priority": run.priority_class_name}
    )[:8]


def job_name(operation: str, key: Key, scope: str, attempt: int = 1) -> str:
    """At most 63 characters, so that it can be a label's value."""
    name = f"genai-{operation.replace('_', '-')[:12]}-{key[:32]}-{scope}"
    return name if attempt == 1 else f"{name}-{attempt}"


def owner_reference(owner: Owner) -> Json:
    """A claim: several builds may hold one, and none of them controls the Job."""
    return {
        "apiVersion": API_VERSION,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
    }


def render(request: JobRequest, owner: Owner, *, run: Run, access: StoreAccess) -> Json:
    """The manifest.

    Raises:
        InvalidSpec: The task does not fit into an environment variable.
    """
    scope = scope_of(access.address, run)
    packed = pack(request.document)
    if len(packed) > MOST_TASK_BYTES:
        raise InvalidSpec(
            f"its description takes {len(packed)} bytes, more than a pod can be given",
            where=request.task,
            remedy="build fewer graphs at once",
        )
    labels = {
        MANAGED: MANAGER,
        "app.kubernetes.io/name": "genai-stage",
        OPERATION: request.operation,
        SCOPE: scope,
        ATTEMPT: str(request.attempt),
    }
    job_labels = labels | ({"kueue.x-k8s.io/queue-name": run.queue_name} if run.queue_name else {})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(request.operation, request.key, scope, request.attempt),
            "namespace": request.namespace,
            "labels": job_labels,
            "annotations": {
                KEY: request.key,
                TASK: request.task,
                MEMORY: str(request.memory_bytes),
                TTL: str(run.ttl_seconds_after_finished),
            }
            | _chain_note(request.chain),
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": {
            "backoffLimit": 0,  # attempts are counted by who knows why they failed
            "podReplacementPolicy": "Failed",
            # Kueue starts it when there is quota, and may take its turn back: from now on the
            # field is Kueue's.
            **({"suspend": True} if run.queue_name else {}),
            "podFailurePolicy": {
                "rules": [
                    {  # a drained node, a taint, preemption: costs nothing
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {
                        "action": "FailJob",
                        "onExitCodes": {"operator": "NotIn", "values": [0]},
                    },
                ]
            },
            "template": {"metadata": {"labels": labels}, "spec": _pod(request, run, access)},
        },
    }


def _chain_note(chain: tuple[Link, ...]) -> dict[str, str]:
    if not chain:
        return {}
    return {CHAIN: json.dumps([[link.task, link.operation, link.derivation] for link in chain])}


def _pod(request: JobRequest, run: Run, access: StoreAccess) -> Json:
    account = run.service_account_name or access.service_account
    selector = dict(request.node_selector) | dict(run.node_selector)
    tolerations = [
        t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in run.tolerations
    ] + [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": _UNREACHABLE_SECONDS,
        }
        for taint in ("unreachable", "not-ready")
    ]
    pod: Json = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 10,
        # Each task keeps to it by itself; this ends a pod that never comes to that.
        "activeDeadlineSeconds": run.active_deadline_seconds * (1 + len(request.chain)),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": tolerations,
        "containers": [_container(request, run, access)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            _scratch(run),
            *volumes_of(access, reads_source=request.reads_source),
        ],
    }
    if selector:
        pod["nodeSelector"] = selector
    if account:
        # Its token for the apiserver stays out: stages never call it. What a cloud gives an account
        # for (IRSA, pod identity) comes by a volume or an address of its own.
        pod["serviceAccountName"] = account
    if run.priority_class_name:
        pod["priorityClassName"] = run.priority_class_name
    if run.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in run.image_pull_secrets]
    if affinity := run.affinity.canonical():
        pod["affinity"] = affinity
    if run.topology_spread:
        pod["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {MANAGED: MANAGER}},
            }
        ]
    return pod


def _container(request: JobRequest, run: Run, access: StoreAccess) -> Json:
    environment: list[Json] = [
        {"name": "GENAI_TASK", "value": pack(request.document)},
        {"name": "GENAI_SCRATCH", "value": "/scratch"},
        *environment_of(access, reads_source=request.reads_source),
    ]
    if request.chain:
        limit = str(run.active_deadline_seconds)
        environment.append({"name": "GENAI_TASK_SECONDS", "value": limit})
    requests = {"cpu": "1" if request.seconds > 60 else "250m"}
    memory = f"{-(-request.memory_bytes // _MIB)}Mi"
    requests |= run.resources.requests
    # What a user gives is where it begins; out of memory, the next attempt gets twice as much.
    requests["memory"] = memory
    limits = dict(run.resources.limits) | {"memory": memory}
    return {
        "name": "stage",
        "image": request.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["job"],
        "env": environment,
        "resources": {"requests": requests, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
            {"name": "scratch", "mountPath": "/scratch"},
            *mounts_of(access, reads_source=request.reads_source),
        ],
    }


def _scratch(run: Run) -> Json:
    size, storage = run.scratch.size, run.scratch.storage_class_name
    if storage:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage,
            "resources": {"requests": {"storage": size or "20Gi"}},
        }
        return {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    return {"name": "scratch", "emptyDir": {"sizeLimit": size} if size else {}}
