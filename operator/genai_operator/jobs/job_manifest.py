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
from genai_core.kinds.base import API_VERSION
from genai_core.kinds.build import Run
from genai_core.names import MODEL, Digest, Key, SourceName
from genai_core.quantity import amount
from genai_core.tasks.task_file import task_variables
from genai_core.wire import (
    ATTEMPT,
    CHAIN,
    KEY,
    MANAGED,
    MEMORY,
    OPERATION,
    RENDERING,
    SCOPE,
    STAGE_CONTAINER,
    TASK,
    TTL,
    Variable,
)
from genai_operator.jobs.access import StoreAccess, environment_of, mounts_of, volumes_of
from genai_operator.jobs.disk import LEAST, storage_of, volume_limit
from genai_operator.jobs.pod_spec import container_security, cpu_request, mebibytes, pod_spec
from genai_operator.jobs.renewal import Wanted
from genai_operator.kube.job import Link, Rendering
from genai_operator.kube.values import Json

__all__ = [
    "MOST_TASK_BYTES",
    "JobRequest",
    "Owner",
    "appearance",
    "given_memory",
    "job_name",
    "owner_reference",
    "render",
    "scope_of",
]

MANAGER = "genai-operator"
MOST_TASK_BYTES = 120_000
"""Linux takes no environment variable over 128 KiB."""
_UNREACHABLE_SECONDS = 30
_LONGEST_SECONDS = 2**31 - 1
"""What an apiserver takes."""


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
        reads_source: The pod is given what reaches a source.
        source: Which of the build's that is.
        chain: The tasks that follow in the same pod.
        disk_bytes: Of the node's disk, that all of them may take.
        derivation: Of its first task; None where no Job has more than one.
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
    source: SourceName = MODEL
    chain: tuple[Link, ...] = ()
    disk_bytes: int = LEAST
    derivation: Digest | None = None

    @property
    def makes(self) -> frozenset[str]:
        """The key of its first task and the derivations of all: what another Job may make too."""
        own = (self.derivation,) if self.derivation is not None else ()
        return frozenset((self.key, *own, *(link.derivation for link in self.chain)))

    def wanted(self, owner: Owner, *, run: Run, access: StoreAccess) -> Wanted:
        """How it would be written now."""
        looks = appearance(
            run,
            access,
            image=self.image,
            node_selector=self.node_selector,
            reads_source=self.reads_source,
        )
        return Wanted(looks, owner.uid)


class _NoTask(BaseModel):
    """What a pod is given where its task does not matter."""


def given_memory(run: Run) -> int | None:
    """Bytes that the user gives every task; None: sized from the model."""
    text = run.resources.limits.get("memory") or run.resources.requests.get("memory")
    return None if text is None else int(amount(text))


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


def appearance(
    run: Run,
    access: StoreAccess,
    *,
    image: str,
    node_selector: Mapping[str, str],
    reads_source: bool,
) -> str:
    """Digest of all that a pod is given beside its tasks, and what follows from those.

    Two Jobs of one task differ in nothing else: by it, one that cannot start is told from the one
    that would be made for it now.
    """
    bare = JobRequest(
        namespace="",
        key=Key(""),
        operation="",
        task="",
        document=_NoTask(),
        image=image,
        memory_bytes=given_memory(run) or 0,
        node_selector=node_selector,
        reads_source=reads_source,
    )
    pod = _pod(bare, run, access)
    return digest_json({"pod": pod, "source": access.source if reads_source else ""})[:16]


def render(
    request: JobRequest, owner: Owner, *, run: Run, access: StoreAccess, turn: int = 0
) -> Json:
    """The manifest.

    Args:
        request: What is to be run.
        owner: Who claims it.
        run: Of the build.
        access: To store and source.
        turn: How many others' renderings of the same Job could not start before it.

    Raises:
        BadInput: The task does not fit into a Job.
    """
    scope = scope_of(access.address, run)
    looks = request.wanted(owner, run=run, access=access).digest
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
                RENDERING: str(Rendering(looks, turn, owner.uid)),
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
                    # No rule fails the Job by an exit code: the controller holds such rules also
                    # against pods that a suspension stopped, and a turn lost became a failure.
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
    pod = pod_spec(
        run,
        access,
        node_selector=request.node_selector,
        spread={MANAGED: MANAGER},
        tolerations=[
            {
                "key": f"node.kubernetes.io/{taint}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": _UNREACHABLE_SECONDS,
            }
            for taint in ("unreachable", "not-ready")
        ],
    )
    return pod | {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 10,
        # Each task keeps to it by itself; this ends a pod that never comes to that.
        "activeDeadlineSeconds": min(
            run.active_deadline_seconds * (1 + len(request.chain)), _LONGEST_SECONDS
        ),
        "containers": [_container(request, run, access)],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": volume_limit(run, request.disk_bytes)}},
            _scratch(run, request.disk_bytes),
            *volumes_of(access, reads_source=request.reads_source),
        ],
    }


def _container(request: JobRequest, run: Run, access: StoreAccess) -> Json:
    environment: list[Json] = [
        *(
            {"name": name, "value": value}
            for name, value in task_variables(request.document, where=request.task).items()
        ),
        {"name": Variable.SCRATCH, "value": "/scratch"},
        *environment_of(access, reads_source=request.reads_source),
    ]
    if request.chain:
        limit = str(run.active_deadline_seconds)
        environment.append({"name": Variable.TASK_SECONDS, "value": limit})
    requests = {"cpu": cpu_request("1" if request.seconds > 60 else "250m", run.resources.limits)}
    memory = mebibytes(request.memory_bytes)
    # What a user gives is where it begins; out of memory, the next attempt gets twice as much.
    set_aside, disk = storage_of(run, request.disk_bytes)
    limits = dict(run.resources.limits) | {"memory": memory} | disk
    given = dict(run.resources.requests)
    if "memory" not in run.resources.limits:
        given.pop("memory", None)  # it stands for the limit, which an attempt may have raised
    requests |= {"memory": memory} | given | set_aside
    return {
        "name": STAGE_CONTAINER,
        "image": request.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["job"],
        "env": environment,
        "resources": {"requests": requests, "limits": limits},
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
            {"name": "scratch", "mountPath": "/scratch"},
            *mounts_of(access, reads_source=request.reads_source),
        ],
    }


def _scratch(run: Run, disk_bytes: int) -> Json:
    size, storage = run.scratch.size, run.scratch.storage_class_name
    if storage:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage,
            "resources": {"requests": {"storage": size or "20Gi"}},
        }
        return {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    return {"name": "scratch", "emptyDir": {"sizeLimit": volume_limit(run, disk_bytes)}}
