"""A GenAIDeployment as a Deployment, a Service and what stands around them. Pure.

A pod has two parts. An init container fetches the container from the store and verifies every
file; it alone holds the store's credentials. The server reads that folder, which it cannot write,
replays the golden prompts and only then listens. Both pass Pod Security `restricted`.

Adapters stand in no pod: they come by a ConfigMap when a pod starts, and by its admin port while it
runs, so that a change of them starts nothing anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from genai_core.canonical import digest_json
from genai_core.kinds.base import API_VERSION, Resources
from genai_core.kinds.deployment import (
    DeploymentSpec,
    GoldenTokens,
    RolloutStrategy,
    SpeculationMethod,
    SpeculationRef,
)
from genai_core.quantity import amount
from genai_core.wire import DEPLOYMENT, MANAGED, RENDERING, REVISION
from genai_operator.deployments.admin_objects import (
    ADMIN_PORT,
    DECLARED_FILE,
    TOKEN_KEY,
    declared_map,
    declared_name,
    network_policy,
    secret_name,
)
from genai_operator.deployments.declared import Declaration
from genai_operator.jobs.access import StoreAccess, environment_of, mounts_of, volumes_of
from genai_operator.jobs.pod_spec import container_security, cpu_request, mebibytes, pod_spec
from genai_operator.kube.values import Json

__all__ = ["METHODS", "SERVER", "Served", "manifests", "meta_of", "rendering_of", "selector"]

SERVER = "genai-server"
_MANAGER = "genai-operator"
_PORT = 8000
_MIB = 1 << 20
_ARTIFACT = "/artifact"
_CACHE = "/cache"
_CONTAINER = f"{_ARTIFACT}/container"
_FETCH_SOCKET = f"{_ARTIFACT}/fetch.sock"
_KEYS = "/keys"
_TLS = "/tls"
_TOKENS = "/admin"
_DECLARED = "/declared"
METHODS = {
    SpeculationMethod.DRAFT_MODEL: "draft_model",
    SpeculationMethod.EAGLE: "eagle",
    SpeculationMethod.NGRAM: "ngram",
    SpeculationMethod.LOOKAHEAD: "lookahead",
    SpeculationMethod.SSD: "ssd",
}
"""What servers call them."""
_DRAIN_DELAY = 5
"""Seconds that a pod goes on answering after SIGTERM: until every node knows that it goes."""
_MARGIN = 5
"""Seconds of the grace period in which the process itself ends."""
_FETCH_BYTES_A_SECOND = 10 * _MIB
"""Less than any network that gigabytes should come by: how long a fetch may count as progress."""
_LATER_BYTES = 1 << 30
"""Of a pod's disk, for adapters of later revisions."""
_PROBE_SECONDS = 2
_ALIVE = {"periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6}
"""A pass over long prompts keeps the server from answering for a while, not for a minute."""


@dataclass(frozen=True)
class Served:
    """What is to be served, and how.

    Attributes:
        uid: Of the GenAIDeployment, which owns what is made.
        revision: Of the container.
        record: `package/<key>` in the store.
        size_bytes: Of all its files.
        image: Of the server, by digest.
        node_selector: Of the target.
        access: To the store, with credentials that should only read.
        declared: Adapters that the pods serve; None: all of the container's.
        follows: Pods go over to other revisions of the same base as they run.
        operator: Namespace of the operator.
    """

    namespace: str
    name: str
    uid: str
    spec: DeploymentSpec
    revision: str
    record: str
    size_bytes: int
    image: str
    access: StoreAccess
    node_selector: Mapping[str, str] = field(default_factory=dict)
    declared: Declaration | None = None
    operator: str = "default"
    follows: bool = False

    @property
    def admin_secret(self) -> str:
        """The Secret with the token of the pods' admin port."""
        given = self.spec.server.admin_token_secret_ref
        return secret_name(self.name) if given is None else given.name


def selector(name: str) -> dict[str, str]:
    """Labels of a deployment's pods."""
    return {"app.kubernetes.io/name": SERVER, DEPLOYMENT: name}


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
    found: str = dict(wanted)["deployments"]["metadata"]["annotations"][RENDERING]
    return found


def meta_of(served: Served) -> Json:
    """Metadata of what belongs to a deployment and has its name."""
    return {
        "name": served.name,
        "namespace": served.namespace,
        "labels": {MANAGED: _MANAGER, **selector(served.name)},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": "GenAIDeployment",
                "name": served.name,
                "uid": served.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }


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
    labels = {MANAGED: _MANAGER, **selector(served.name)}
    pod = _pod(served)
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


def _pod(served: Served) -> Json:
    pods = served.spec.pods
    keys = served.spec.expose.api_key_secret_ref
    size = served.size_bytes
    later = _LATER_BYTES if served.follows else 0
    volumes: list[Json] = [
        {"name": "artifact", "emptyDir": {"sizeLimit": mebibytes(size + later + 64 * _MIB)}},
        # Graphs prepared for this machine, each about as large as the container.
        {"name": "cache", "emptyDir": {"sizeLimit": mebibytes(4 * size + 256 * _MIB)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": mebibytes(size + 256 * _MIB)}},
        *volumes_of(served.access, reads_source=False),
    ]
    token = {"key": TOKEN_KEY, "path": TOKEN_KEY}
    declared = {"name": declared_name(served.name), "optional": True}
    volumes += [
        {"name": "admin", "secret": {"secretName": served.admin_secret, "items": [token]}},
        {"name": "declared", "configMap": declared},
    ]
    if keys is not None:
        volumes.append({"name": "keys", "secret": {"secretName": keys.name}})
    if (tls := served.spec.expose.tls_secret_ref) is not None:
        volumes.append({"name": "tls", "secret": {"secretName": tls.name}})
    pod = pod_spec(
        pods,
        served.access,
        node_selector=served.node_selector,
        spread=selector(served.name),
    )
    return pod | {
        "terminationGracePeriodSeconds": pods.drain_seconds,
        "initContainers": [_fetch(served), *([_adapters(served)] if served.follows else [])],
        "containers": [_server(served)],
        "volumes": volumes,
    }


def _fetch(served: Served) -> Json:
    place = ["--revision", served.revision, "--into", _CONTAINER]
    return _of_store(served) | {
        "name": "fetch",
        "command": ["python3", "-m", "genai_core.store.fetch"],
        "args": [served.record, *place],
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"memory": "1Gi"},
        },
    }


def _adapters(served: Served) -> Json:
    """Runs beside the server, a sidecar, and fetches what that asks for."""
    place = ["--container", _CONTAINER, "--into", f"{_ARTIFACT}/revisions"]
    limits = ["--socket", _FETCH_SOCKET, "--most-bytes", str(_LATER_BYTES)]
    return _of_store(served) | {
        "name": "adapters",
        "restartPolicy": "Always",
        "command": ["python3", "-m", "genai_core.store.adapter_fetch"],
        "args": [*place, *limits],
        "resources": {
            "requests": {"cpu": "10m", "memory": "64Mi"},
            "limits": {"memory": "512Mi"},
        },
    }


def _of_store(served: Served) -> Json:
    """What holds the store's credentials, and writes what it gives."""
    mounts = [{"name": "artifact", "mountPath": _ARTIFACT}, *_tmp()]
    return {
        "image": served.image,
        "imagePullPolicy": "IfNotPresent",
        "env": environment_of(served.access, reads_source=False),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*mounts, *mounts_of(served.access, reads_source=False)],
    }


def _server(served: Served) -> Json:
    spec = served.spec
    mounts: list[Json] = [
        {"name": "artifact", "mountPath": _ARTIFACT, "readOnly": True},
        {"name": "cache", "mountPath": _CACHE},
        {"name": "admin", "mountPath": _TOKENS, "readOnly": True},
        {"name": "declared", "mountPath": _DECLARED, "readOnly": True},
        *_tmp(),
    ]
    if spec.expose.api_key_secret_ref is not None:
        mounts.append({"name": "keys", "mountPath": _KEYS, "readOnly": True})
    scheme: Json = {}
    if spec.expose.tls_secret_ref is not None:
        mounts.append({"name": "tls", "mountPath": _TLS, "readOnly": True})
        scheme = {"scheme": "HTTPS"}
    health = {"httpGet": {"path": "/health", "port": "http"} | scheme}
    ready = {"httpGet": {"path": "/ready", "port": "http"} | scheme}
    starts = math.ceil(spec.rollout.progress_deadline_seconds / _PROBE_SECONDS)
    return {
        "name": "server",
        "image": served.image,
        "imagePullPolicy": "IfNotPresent",
        "args": _arguments(served),
        "ports": [
            {"name": "http", "containerPort": _PORT, "protocol": "TCP"},
            {"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"},
        ],
        "resources": _resources(spec, served.size_bytes),
        "startupProbe": health
        | {"periodSeconds": _PROBE_SECONDS, "timeoutSeconds": 5, "failureThreshold": starts},
        "readinessProbe": ready
        | {"periodSeconds": _PROBE_SECONDS, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": health | _ALIVE,
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _arguments(served: Served) -> list[str]:
    spec, server = served.spec, served.spec.server
    drain = max(1, spec.pods.drain_seconds - _DRAIN_DELAY - _MARGIN)
    delay = min(_DRAIN_DELAY, max(0, spec.pods.drain_seconds - 1 - drain))
    options: dict[str, object] = {
        "cache": _CACHE,
        "host": "0.0.0.0",  # noqa: S104 - of the pod
        "port": _PORT,
        "revision": served.revision,
        "model-name": server.model_name or served.name,
        "max-concurrency": server.max_concurrency,
        "context-length": server.context_length,
        "threads": server.threads or _cores(spec.resources),
        "kv-cache-mib": server.kv_cache_mi_b,
        "prefix-cache-mib": server.prefix_cache_mi_b,
        "max-adapter-rank": server.max_adapter_rank,
        "adapter-cache-mib": server.adapter_cache_mi_b,
        "drain-seconds": drain,
        "drain-delay-seconds": delay,
        "speculation": _speculation(spec.speculation),
        "api-keys-folder": _KEYS if spec.expose.api_key_secret_ref is not None else None,
        "tls-folder": _TLS if spec.expose.tls_secret_ref is not None else None,
        "admin-port": ADMIN_PORT,
        "admin-tokens-folder": _TOKENS,
        "declared-adapters": f"{_DECLARED}/{DECLARED_FILE}",
        "fetch-socket": _FETCH_SOCKET if served.follows else None,
        "termination-log": "/dev/termination-log",
    }
    found = [_CONTAINER]
    for name, value in options.items():
        if value is not None:
            found += _option(name, str(value))
    if not server.exact:
        found.append("--no-exact")
    for prompt in server.system_prompts:
        found += _option("system-prompt", prompt)
    if spec.rollout.golden_tokens is GoldenTokens.REQUIRED:
        found.append("--golden")
    return found


def _option(name: str, value: str) -> list[str]:
    """An option of the server, with a value that its user chose.

    The kubelet puts variables in, `$(NAME)`, and makes one of two `$`.
    """
    plain = value.replace("$", "$$")
    if plain.startswith("-"):  # else it reads as an option
        return [f"--{name}={plain}"]
    return [f"--{name}", plain]


def _speculation(wanted: SpeculationRef | None) -> str | None:
    """As the server's --speculation takes it."""
    if wanted is None:
        return None
    return json.dumps(
        {
            "method": METHODS[wanted.method],
            "num_speculative_tokens": wanted.num_speculative_tokens,
            "adaptive": wanted.adaptive,
        }
    )


def _cores(resources: Resources) -> int | None:
    """Of the container's limit: more threads than that would be throttled."""
    limit = resources.limits.get("cpu")
    return None if limit is None else max(1, math.ceil(amount(limit)))


def _resources(spec: DeploymentSpec, size_bytes: int) -> Json:
    """What the user gives; what they leave out is sized from the container.

    Weights lie in memory once, and once more while graphs are prepared from them at a first start.
    """
    held = (spec.server.kv_cache_mi_b or 1024) + (spec.server.adapter_cache_mi_b or 0)
    given = spec.resources.requests.get("memory")
    sized = given or mebibytes(3 * size_bytes + (held + 512) * _MIB)
    limits = {"memory": sized} | dict(spec.resources.limits)
    requests = {"cpu": cpu_request("500m", spec.resources.limits), "memory": limits["memory"]}
    return {"requests": requests | dict(spec.resources.requests), "limits": limits}


def _tmp() -> Sequence[Json]:
    return [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - a volume of the pod's own
