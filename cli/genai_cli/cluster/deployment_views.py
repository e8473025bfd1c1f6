"""A GenAIDeployment and its pods as people see them. Pure: objects of the apiserver in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from genai_cli.cluster.build_views import parse_time
from genai_core.wire import DEPLOYMENT, REVISION

__all__ = ["ClusterDeployment", "PodState", "ServedAdapter", "ServingPod", "deployment_view"]

PodState: TypeAlias = Literal["ready", "starting", "ending", "broken"]

_USUAL = {"", "ContainerCreating", "PodInitializing"}


@dataclass(frozen=True)
class ServingPod:
    """One pod of a deployment.

    Attributes:
        why: What keeps it from answering, as far as anybody says; empty where it is ready.
        restarts: Of all its containers.
        revision: Of the container that it serves.
    """

    name: str
    state: PodState
    node: str
    since: datetime
    restarts: int = 0
    why: str = ""
    revision: str = ""


@dataclass(frozen=True)
class ServedAdapter:
    """A LoRA adapter, and how many pods of all hold it: `k/n`.

    Attributes:
        state: Loading, Loaded or Failed.
        reason: Why it failed.
    """

    name: str
    loaded: str
    digest: str = ""
    state: str = ""
    reason: str = ""


@dataclass(frozen=True)
class ClusterDeployment:
    """A GenAIDeployment.

    Attributes:
        ready: Status, reason and message of the condition.
        available: Status of the condition Available: some pod answers.
        current: Revision that answers; empty before there is one.
        target: Revision that is rolled out.
        rejected: Revisions that failed, with why.
    """

    namespace: str
    name: str
    created_at: datetime
    taken_up: bool
    ready: tuple[str, str, str]
    available: str
    build: str
    build_target: str
    url: str = ""
    current: str = ""
    target: str = ""
    ready_replicas: int = 0
    replicas: int = 0
    rejected: tuple[tuple[str, str], ...] = ()
    adapters: tuple[ServedAdapter, ...] = ()
    pods: tuple[ServingPod, ...] = ()


def deployment_view(
    value: Mapping[str, Any], pods: Iterable[Mapping[str, Any]] = ()
) -> ClusterDeployment:
    """Read a GenAIDeployment.

    Args:
        value: As the apiserver sends it; its status may be missing.
        pods: Of its namespace or of all; its own are picked out by their label.
    """
    meta, spec, status = value["metadata"], value["spec"], value.get("status") or {}
    conditions = {entry["type"]: entry for entry in status.get("conditions") or ()}
    ready = conditions.get("Ready", {})
    revision = status.get("revision") or {}
    return ClusterDeployment(
        namespace=meta["namespace"],
        name=meta["name"],
        created_at=parse_time(meta["creationTimestamp"]),
        taken_up=status.get("observedGeneration", 0) == meta.get("generation", 0),
        ready=(
            str(ready.get("status", "Unknown")),
            str(ready.get("reason", "")),
            str(ready.get("message", "")),
        ),
        available=str(conditions.get("Available", {}).get("status", "Unknown")),
        build=spec["from"]["build"],
        build_target=spec["from"]["target"],
        url=str(status.get("url") or ""),
        current=str(revision.get("current") or ""),
        target=str(revision.get("target") or ""),
        ready_replicas=int(status.get("readyReplicas", 0)),
        replicas=int(status.get("replicas", 0)),
        rejected=tuple(
            (str(entry["revision"]), str(entry["reason"])) for entry in status.get("rejected") or ()
        ),
        adapters=tuple(
            ServedAdapter(
                entry["name"],
                str(entry.get("loaded", "")),
                entry.get("digest", ""),
                str(entry.get("state", "")),
                str(entry.get("reason", "")),
            )
            for entry in status.get("adapters") or ()
        ),
        pods=_own_pods(meta["namespace"], meta["name"], pods),
    )


def _own_pods(
    namespace: str, name: str, pods: Iterable[Mapping[str, Any]]
) -> tuple[ServingPod, ...]:
    own = [
        _pod(pod)
        for pod in pods
        if pod["metadata"]["namespace"] == namespace
        and (pod["metadata"].get("labels") or {}).get(DEPLOYMENT) == name
    ]
    return tuple(sorted(own, key=lambda pod: (pod.since, pod.name)))


def _pod(value: Mapping[str, Any]) -> ServingPod:
    meta, status = value["metadata"], value.get("status") or {}
    conditions = {entry["type"]: entry for entry in status.get("conditions") or ()}
    containers = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    state: PodState
    why = _broken(containers)
    if meta.get("deletionTimestamp"):
        state, why = "ending", "it finishes its answers"
    elif conditions.get("Ready", {}).get("status") == "True":
        state, why = "ready", ""
    elif why or status.get("phase") == "Failed":
        state, why = "broken", why or str(status.get("message") or status.get("reason") or "failed")
    else:
        state, why = "starting", _starting(conditions, status)
    return ServingPod(
        name=meta["name"],
        state=state,
        node=(value.get("spec") or {}).get("nodeName", ""),
        since=parse_time(meta["creationTimestamp"]),
        restarts=sum(int(entry.get("restartCount", 0)) for entry in containers),
        why=why,
        revision=str((meta.get("annotations") or {}).get(REVISION, "")),
    )


def _broken(containers: Sequence[Mapping[str, Any]]) -> str:
    """Why a container does not come up by waiting; with what it said when it last ended."""
    for entry in containers:
        waiting = (entry.get("state") or {}).get("waiting") or {}
        reason = str(waiting.get("reason", ""))
        if reason in _USUAL:
            continue
        ended = (entry.get("lastState") or {}).get("terminated") or {}
        said = ended.get("message") or waiting.get("message") or ""
        return f"{entry['name']}: {reason}: {said}".strip(": \n")
    return ""


def _starting(conditions: Mapping[str, Mapping[str, Any]], status: Mapping[str, Any]) -> str:
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return str(scheduled.get("message") or scheduled.get("reason") or "not scheduled")
    for entry in status.get("initContainerStatuses") or ():
        if "running" in (entry.get("state") or {}):
            return "it fetches the container"
    return "it starts"
