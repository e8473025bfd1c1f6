"""What one look at a cluster found.

Each kind is read by itself: one that the viewer may not see leaves a notice, and the others are
shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from genai_cli.cluster.build_views import ClusterBuild, build_view, task_views
from genai_cli.cluster.connection import Cluster, Json
from genai_cli.cluster.deployment_views import ClusterDeployment, deployment_view
from genai_core.errors import GenAIError
from genai_core.wire import DEPLOYMENT, SELECTOR

__all__ = ["PlainObject", "Snapshot", "Snapshots", "read_snapshot"]

_AGE = 1.5
"""Seconds that a snapshot serves: many viewers, or many windows, ask the apiserver once."""
_KEPT = 16


@dataclass(frozen=True)
class PlainObject:
    """An ArtifactStore or a GenAITarget: what is shown of it, and its condition Ready."""

    namespace: str
    name: str
    about: str
    ready: tuple[str, str, str]


@dataclass(frozen=True)
class Snapshot:
    """A namespace, or all of them (namespace is empty), at one moment.

    Attributes:
        notices: What could not be read, in the words of the apiserver.
    """

    taken_at: datetime
    context: str
    server: str
    namespace: str
    builds: tuple[ClusterBuild, ...] = ()
    deployments: tuple[ClusterDeployment, ...] = ()
    stores: tuple[PlainObject, ...] = ()
    targets: tuple[PlainObject, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Those that have a build or a deployment in it."""
        builds = {view.namespace for view in self.builds}
        return tuple(sorted(builds | {view.namespace for view in self.deployments}))


class Snapshots:
    """Snapshots of a cluster, by namespace; safe for several threads."""

    def __init__(self, cluster: Cluster, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._lock = Lock()
        self._held: dict[str, tuple[float, Snapshot]] = {}

    def get(self, namespace: str) -> Snapshot:
        """A namespace as it is, or was a moment ago; empty means all of them."""
        with self._lock:
            held = self._held.get(namespace)
            if held is None or self._clock() - held[0] > _AGE:
                found = read_snapshot(self._cluster, namespace)
                held = self._held[namespace] = self._clock(), found
                while len(self._held) > _KEPT:
                    del self._held[min(self._held, key=lambda name: self._held[name][0])]
            return held[1]


def read_snapshot(cluster: Cluster, namespace: str) -> Snapshot:
    """Ask the apiserver for everything that a page shows."""
    notices: list[str] = []

    def listed(plural: str, *, place: str = namespace, labels: str = "") -> list[Json]:
        try:
            return cluster.list(plural, namespace=place, labels=labels)
        except GenAIError as error:
            notices.append(str(error))
            return []

    jobs = listed("jobs", labels=SELECTOR)
    pods = listed("pods", labels=SELECTOR) if jobs else []
    tasks = task_views(jobs, pods)
    builds = [build_view(value, tasks) for value in listed("genaibuilds")]
    deployed = listed("genaideployments")
    servers = listed("pods", labels=DEPLOYMENT) if deployed else []
    stores = listed("artifactstores")
    targets = listed("genaitargets", place="")
    return Snapshot(
        taken_at=datetime.now(UTC),
        context=cluster.name,
        server=cluster.server,
        namespace=namespace,
        builds=tuple(sorted(builds, key=lambda view: (view.namespace, view.name))),
        deployments=tuple(
            sorted(
                (deployment_view(value, servers) for value in deployed),
                key=lambda view: (view.namespace, view.name),
            )
        ),
        stores=tuple(_plain(value, _bucket(value["spec"])) for value in stores),
        targets=tuple(_plain(value, _chip(value["spec"])) for value in targets),
        notices=tuple(dict.fromkeys(notices)),
    )


def _plain(value: Mapping[str, Any], about: str) -> PlainObject:
    meta, status = value["metadata"], value.get("status") or {}
    ready: Mapping[str, Any] = next(
        (entry for entry in status.get("conditions") or () if entry["type"] == "Ready"), {}
    )
    return PlainObject(
        namespace=meta.get("namespace", ""),
        name=meta["name"],
        about=about,
        ready=(
            str(ready.get("status", "Unknown")),
            str(ready.get("reason", "")),
            str(ready.get("message", "")),
        ),
    )


def _bucket(spec: Mapping[str, Any]) -> str:
    return "/".join(filter(None, (str(spec.get("bucket", "")), str(spec.get("prefix") or ""))))


def _chip(spec: Mapping[str, Any]) -> str:
    return str(spec.get("chipset") or spec.get("backend") or "")
