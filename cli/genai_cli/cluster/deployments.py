"""Deployments of a cluster for `genai status`: a table of all, and one with a line a pod."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from genai_cli.cluster.api_errors import NotAllowed, NotThere
from genai_cli.cluster.builds import age
from genai_cli.cluster.connection import Cluster
from genai_cli.cluster.deployment_views import ClusterDeployment, deployment_view
from genai_core.wire import SELECTOR

__all__ = [
    "deployment_details",
    "deployment_json",
    "find_deployment",
    "listed_deployments",
    "read_deployments",
]

_STYLES = {"True": "green", "False": "red", "Unknown": "yellow"}
_SHORT = len("sha256:") + 12


def read_deployments(cluster: Cluster, namespace: str | None) -> list[ClusterDeployment]:
    """All deployments of a namespace, or of all; none where the user may not look at them."""
    try:
        values = cluster.list("genaideployments", namespace=namespace or "")
    except (NotAllowed, NotThere):
        return []
    found = [deployment_view(value) for value in values]
    return sorted(found, key=lambda view: (view.namespace, view.name))


def find_deployment(cluster: Cluster, name: str, namespace: str) -> ClusterDeployment | None:
    """One deployment with its pods; None where there is none, or the user may not look."""
    value = cluster.find("genaideployments", name, namespace=namespace)
    if value is None:
        return None
    try:
        pods = cluster.list("pods", namespace=namespace, labels=SELECTOR)
    except NotAllowed:
        pods = []
    return deployment_view(value, pods)


def listed_deployments(views: Sequence[ClusterDeployment], *, place: bool) -> RenderableType:
    """A line for each.

    Args:
        views: The deployments.
        place: With their namespaces.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=True)
    heads = ["deployment", "ready", "pods", "adapters", "revision", "age"]
    for head in [*(["namespace"] if place else []), *heads]:
        table.add_column(head, no_wrap=True)
    table.add_column("message", no_wrap=True, overflow="ellipsis", ratio=1)
    for view in views:
        status, reason, message = view.ready
        table.add_row(
            *([view.namespace] if place else []),
            Text(view.name, style="bold"),
            Text(status or "-", style=_STYLES.get(status, "")),
            f"{view.ready_replicas}/{view.replicas}",
            _loaded(view),
            view.current[:_SHORT] or "-",
            age(view.created_at),
            Text("" if status == "True" else f"{reason}: {message}".strip(": ")),
        )
    return table


def _loaded(view: ClusterDeployment) -> str:
    if not view.adapters:
        return "-"
    loaded = sum(adapter.state == "Loaded" for adapter in view.adapters)
    return f"{loaded}/{len(view.adapters)}"


def deployment_details(view: ClusterDeployment) -> RenderableType:
    """One in full, a line a pod."""
    status, reason, message = view.ready
    head = Text.assemble((view.name, "bold"), "  ", (reason or "New", _STYLES.get(status, "")))
    head.append(f"  {view.ready_replicas}/{view.replicas} pods answer")
    head.append(f"  namespace {view.namespace}, {age(view.created_at)} old", style="dim")
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    if message:
        rows.add_row("now", Text(message))
    rows.add_row("serves", Text(f"build {view.build}, target {view.build_target}"))
    for word, revision in (("current", view.current), ("target", view.target)):
        if revision and (word == "current" or revision != view.current):
            rows.add_row(word, Text(revision))
    for revision, why in view.rejected:
        rows.add_row(Text("rejected", style="red"), Text(f"{revision[:_SHORT]}  {why}"))
    if view.url:
        rows.add_row("url", Text(view.url))
    for number, adapter in enumerate(view.adapters):
        text = f"{adapter.name}  {adapter.state} {adapter.loaded}  {adapter.reason}".rstrip()
        rows.add_row("" if number else "adapters", Text(text))
    if view.pods:
        rows.add_row("pods", _pods(view))
    return Group(head, Padding(rows, (0, 0, 0, 2)))


def _pods(view: ClusterDeployment) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for pod in view.pods:
        style = {"ready": "green", "broken": "red"}.get(pod.state, "yellow")
        state = f"{pod.state}: {pod.why}" if pod.why else pod.state
        restarts = f"restarted {pod.restarts}x" if pod.restarts else ""
        table.add_row(
            pod.name, pod.node or "-", age(pod.since), pod.revision[:_SHORT],
            Text(state, style=style), restarts,
        )  # fmt: skip
    return table


def deployment_json(view: ClusterDeployment) -> dict[str, Any]:
    """A deployment as `--json` shows it; camelCase, as in the status."""
    status, reason, message = view.ready
    return {
        "namespace": view.namespace,
        "name": view.name,
        "from": {"build": view.build, "target": view.build_target},
        "ready": status,
        "reason": reason,
        "message": message,
        "available": view.available,
        "createdAt": view.created_at.isoformat(),
        "readyReplicas": view.ready_replicas,
        "replicas": view.replicas,
        "url": view.url,
        "revision": {"current": view.current, "target": view.target},
        "rejected": [{"revision": revision, "reason": why} for revision, why in view.rejected],
        "adapters": [vars(adapter) for adapter in view.adapters],
        "pods": [
            {
                "name": pod.name,
                "node": pod.node,
                "state": pod.state,
                "why": pod.why,
                "revision": pod.revision,
                "restarts": pod.restarts,
                "since": pod.since.isoformat(),
            }
            for pod in view.pods
        ],
    }
