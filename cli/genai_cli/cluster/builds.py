"""Builds with their tasks, read from the apiserver."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from genai_cli.cluster.api_errors import NotAllowed, NotThere
from genai_cli.cluster.build_views import ClusterBuild, ClusterTask, build_view, task_views
from genai_cli.cluster.connection import Access, Cluster, Json, connect
from genai_core.errors import GenAIError
from genai_core.kinds.documents.problems import nearest
from genai_core.wire import SELECTOR

__all__ = ["age", "complete_build", "read_build", "read_builds", "read_object", "read_tasks"]


def read_builds(cluster: Cluster, namespace: str | None) -> list[ClusterBuild]:
    """All builds of a namespace, or of all of them; by namespace and name.

    Raises:
        NotThere: There is no such namespace, or the kinds are not installed.
    """
    values = cluster.list("genaibuilds", namespace=namespace or "")
    if not values and namespace:
        _check_namespace(cluster, namespace)
    tasks = read_tasks(cluster, namespace) if values else []
    found = [build_view(value, tasks) for value in values]
    return sorted(found, key=lambda view: (view.namespace, view.name))


def read_build(cluster: Cluster, name: str, namespace: str) -> ClusterBuild:
    """One build.

    Raises:
        NotThere: Names the nearest ones.
    """
    return build_view(read_object(cluster, name, namespace), read_tasks(cluster, namespace))


def read_object(cluster: Cluster, name: str, namespace: str) -> Json:
    """One build as the apiserver has it.

    Raises:
        NotThere: Names the nearest ones.
    """
    try:
        return cluster.get("genaibuilds", name, namespace=namespace)
    except NotThere:
        others = [
            value["metadata"]["name"]
            for value in cluster.list("genaibuilds", namespace=namespace)  # or the kind is missing
        ]
        if not others:
            _check_namespace(cluster, namespace)
        near = nearest(name, others)
        raise NotThere(
            "there is no such build",
            where=f"{namespace}/{name}",
            remedy=f"did you mean {near}?" if near else "see genai status -A",
        ) from None


def read_tasks(cluster: Cluster, namespace: str | None) -> list[ClusterTask]:
    """What has a Job in a namespace, or in all; empty where the user may not look at Jobs."""
    place = namespace or ""
    try:
        jobs = cluster.list("jobs", namespace=place, labels=SELECTOR)
        pods = cluster.list("pods", namespace=place, labels=SELECTOR) if jobs else []
    except NotAllowed:
        return []
    return task_views(jobs, pods)


def complete_build(
    beginning: str, kubeconfig: Path | None, context: str | None, namespace: str | None
) -> list[str]:
    """Names that begin so, for the shell; none where they cannot be read."""
    try:
        cluster = connect(Access(kubeconfig, context, namespace))
        values = cluster.list("genaibuilds", namespace=cluster.namespace)
    except GenAIError:
        return []
    names = [str(value["metadata"]["name"]) for value in values]
    return [name for name in names if name.startswith(beginning)]


def age(since: datetime) -> str:
    """How long ago, as kubectl writes it: `45s`, `12m`, `5h`, `3d`."""
    seconds = max(int((datetime.now(UTC) - since).total_seconds()), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _check_namespace(cluster: Cluster, namespace: str) -> None:
    """A listing of a namespace that does not exist is empty, not an error.

    Raises:
        NotThere: There is no such namespace.
    """
    try:
        cluster.get("namespaces", namespace)
    except NotAllowed:
        return
