"""The pods of a GenAIDeployment. Pure.

A pod has two parts. An init container fetches the container from the store and verifies every
file; it alone holds the store's credentials. The server reads that folder, which it cannot write,
replays the golden prompts and only then listens. Both pass Pod Security `restricted`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from genai_core.kinds.deployment import DeploymentSpec
from genai_operator.deployments.admin_objects import ADMIN_PORT, TOKEN_KEY, declared_name
from genai_operator.deployments.rendering.served_revision import Served, selector
from genai_operator.deployments.rendering.server_options import (
    ARTIFACT_FOLDER,
    CACHE_FOLDER,
    CONTAINER_FOLDER,
    DECLARED_FOLDER,
    FETCH_SOCKET,
    KEYS_FOLDER,
    MIB,
    PORT,
    TLS_FOLDER,
    TOKENS_FOLDER,
    server_arguments,
)
from genai_operator.jobs.access import environment_of, mounts_of, volumes_of
from genai_operator.jobs.pod_spec import container_security, cpu_request, mebibytes, pod_spec
from genai_operator.kube.values import Json

_LATER_BYTES = 1 << 30
"""Of a pod's disk, for adapters of later revisions."""
_PROBE_SECONDS = 2
_ALIVE = {"periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6}
"""A pass over long prompts keeps the server from answering for a while, not for a minute."""


def server_pod(served: Served) -> Json:
    """The spec of a pod that fetches a container and serves it."""
    pods = served.spec.pods
    keys = served.spec.expose.api_key_secret_ref
    size = served.size_bytes
    later = _LATER_BYTES if served.follows else 0
    volumes: list[Json] = [
        {"name": "artifact", "emptyDir": {"sizeLimit": mebibytes(size + later + 64 * MIB)}},
        # Graphs prepared for this machine, each about as large as the container.
        {"name": "cache", "emptyDir": {"sizeLimit": mebibytes(4 * size + 256 * MIB)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": mebibytes(size + 256 * MIB)}},
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
    place = ["--revision", served.revision, "--into", CONTAINER_FOLDER]
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
    place = ["--container", CONTAINER_FOLDER, "--into", f"{ARTIFACT_FOLDER}/revisions"]
    limits = ["--socket", FETCH_SOCKET, "--most-bytes", str(_LATER_BYTES)]
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
    mounts = [{"name": "artifact", "mountPath": ARTIFACT_FOLDER}, *_tmp()]
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
        {"name": "artifact", "mountPath": ARTIFACT_FOLDER, "readOnly": True},
        {"name": "cache", "mountPath": CACHE_FOLDER},
        {"name": "admin", "mountPath": TOKENS_FOLDER, "readOnly": True},
        {"name": "declared", "mountPath": DECLARED_FOLDER, "readOnly": True},
        *_tmp(),
    ]
    if spec.expose.api_key_secret_ref is not None:
        mounts.append({"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True})
    scheme: Json = {}
    if spec.expose.tls_secret_ref is not None:
        mounts.append({"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True})
        scheme = {"scheme": "HTTPS"}
    health = {"httpGet": {"path": "/health", "port": "http"} | scheme}
    ready = {"httpGet": {"path": "/ready", "port": "http"} | scheme}
    starts = math.ceil(spec.rollout.progress_deadline_seconds / _PROBE_SECONDS)
    return {
        "name": "server",
        "image": served.image,
        "imagePullPolicy": "IfNotPresent",
        "args": server_arguments(served),
        "ports": [
            {"name": "http", "containerPort": PORT, "protocol": "TCP"},
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


def _resources(spec: DeploymentSpec, size_bytes: int) -> Json:
    """What the user gives; what they leave out is sized from the container.

    Weights lie in memory once, and once more while graphs are prepared from them at a first start.
    """
    held = (spec.server.kv_cache_mi_b or 1024) + (spec.server.adapter_cache_mi_b or 0)
    given = spec.resources.requests.get("memory")
    sized = given or mebibytes(3 * size_bytes + (held + 512) * MIB)
    limits = {"memory": sized} | dict(spec.resources.limits)
    requests = {"cpu": cpu_request("500m", spec.resources.limits), "memory": limits["memory"]}
    return {"requests": requests | dict(spec.resources.requests), "limits": limits}


def _tmp() -> Sequence[Json]:
    return [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - a volume of the pod's own
