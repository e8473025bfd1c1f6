"""`genai top`: what every build of a cluster does now, and on which nodes.

Requests are what the scheduler counts; what nodes offer is shown where the user may look at them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from genai_cli.cluster.api_errors import ClusterUnavailable, NotAllowed
from genai_cli.cluster.build_views import ClusterBuild, ClusterTask, quantity
from genai_cli.cluster.builds import age, read_builds
from genai_cli.cluster.connection import Access, Cluster, Json, connect
from genai_cli.cluster.status import put
from genai_cli.display.console import PlainConsole
from genai_cli.display.output import emit, say
from genai_cli.display.words import counted, duration
from genai_cli.settings import ProgramSettings

__all__ = ["Node", "Rates", "TopSnapshot", "show_top", "snapshot"]

_EVERY = 2.0
_WINDOW = 60.0
_MOST_TASKS = 20
_LEAST_NAME = 8
"""Columns of names keep so much on a narrow terminal, whatever has to give way."""
_GIB = 1 << 30


@dataclass(frozen=True)
class Node:
    """One node: what builds ask of it, and what it offers (0: not known)."""

    name: str
    tasks: int
    cpu: int
    memory: int
    cpu_offered: int = 0
    memory_offered: int = 0


@dataclass(frozen=True)
class TopSnapshot:
    """The cluster at one moment.

    Attributes:
        builds: Those that are not at rest, then those that rest.
        tasks: That run or wait, the oldest first.
        nodes: By name.
        resting: How many builds have nothing to do, by phase.
    """

    builds: tuple[ClusterBuild, ...]
    tasks: tuple[tuple[ClusterTask, str], ...]
    nodes: tuple[Node, ...]
    resting: Mapping[str, int]

    @property
    def running(self) -> int:
        """Tasks whose process runs."""
        return sum(task.state == "running" for task, _ in self.tasks)


@dataclass
class Rates:
    """Tasks ended in the last minute, from what Jobs say and from what was seen."""

    _seen: dict[str, datetime] = field(default_factory=dict)

    def per_minute(self, builds: Iterable[ClusterBuild], now: datetime) -> int:
        """Take a look into account and return the rate."""
        for view in builds:
            for task in view.tasks:
                if task.state == "done" and task.ended_at is not None:
                    self._seen[task.job] = task.ended_at
        self._seen = {
            job: at for job, at in self._seen.items() if (now - at).total_seconds() <= _WINDOW
        }
        return len(self._seen)


def show_top(access: Access, settings: ProgramSettings, *, everywhere: bool, once: bool) -> int:
    """Show it once, or live on a terminal, or a line every two seconds in a pipe."""
    cluster = connect(access)
    namespace = None if everywhere else cluster.namespace
    rates = Rates()
    if settings.json or once:
        now = datetime.now(UTC)
        shown = snapshot(cluster, namespace)
        rate = rates.per_minute(shown.builds, now)
        if settings.json:
            emit(_as_json(shown, rate))
        else:
            put(_picture(cluster, shown, rate))
        return 0
    try:
        return _live(cluster, namespace, rates)
    except KeyboardInterrupt:
        return 0


def _live(cluster: Cluster, namespace: str | None, rates: Rates) -> int:
    console = PlainConsole(highlight=False)
    shown = snapshot(cluster, namespace)
    if not console.is_terminal:
        while True:
            now = datetime.now(UTC)
            say(_line(shown, rates.per_minute(shown.builds, now), now))
            sys.stdout.flush()
            time.sleep(_EVERY)
            shown = _patiently(cluster, namespace, shown)
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            rate = rates.per_minute(shown.builds, datetime.now(UTC))
            live.update(_picture(cluster, shown, rate), refresh=True)
            time.sleep(_EVERY)
            shown = _patiently(cluster, namespace, shown)


def _patiently(cluster: Cluster, namespace: str | None, last: TopSnapshot) -> TopSnapshot:
    """What is there now; while an apiserver restarts, what was there."""
    try:
        return snapshot(cluster, namespace)
    except ClusterUnavailable:
        return last


def snapshot(cluster: Cluster, namespace: str | None) -> TopSnapshot:
    """Look once: builds, Jobs, pods, and nodes where that is allowed."""
    builds = read_builds(cluster, namespace)
    tasks: dict[str, tuple[ClusterTask, list[str]]] = {}
    for view in builds:
        for task in view.running:
            place = f"{task.namespace}/{task.job}"
            tasks.setdefault(place, (task, []))[1].append(view.name)
    try:
        nodes = cluster.list("nodes")
    except NotAllowed:
        nodes = []
    ordered = sorted(
        tasks.values(), key=lambda entry: (entry[0].state != "running", entry[0].since)
    )
    busy = [view for view in builds if not view.settled]
    rest = [view for view in builds if view.settled]
    resting: dict[str, int] = {}
    for view in rest:
        resting[view.phase] = resting.get(view.phase, 0) + 1
    return TopSnapshot(
        builds=(*busy, *rest),
        tasks=tuple((task, ",".join(names)) for task, names in ordered),
        nodes=tuple(_nodes([task for task, _ in ordered], nodes)),
        resting=resting,
    )


def _nodes(tasks: Sequence[ClusterTask], known: Sequence[Json]) -> list[Node]:
    offered: dict[str, Mapping[str, Any]] = {
        node["metadata"]["name"]: (node.get("status") or {}).get("allocatable") or {}
        for node in known
    }
    names = sorted({*offered, *(task.node for task in tasks if task.node)})
    loads = []
    for name in names:
        here = [task for task in tasks if task.node == name]
        room = offered.get(name, {})
        loads.append(
            Node(
                name=name,
                tasks=len(here),
                cpu=sum(task.cpu for task in here),
                memory=sum(task.memory for task in here),
                cpu_offered=quantity(str(room.get("cpu", "0")), scale=1000),
                memory_offered=quantity(str(room.get("memory", "0"))),
            )
        )
    return loads


def _picture(cluster: Cluster, shown: TopSnapshot, rate: int) -> RenderableType:
    waiting = len(shown.tasks) - shown.running
    busy = [view for view in shown.builds if not view.settled]
    rest = ", ".join(f"{count} {phase}" for phase, count in sorted(shown.resting.items()))
    head = Text.assemble(
        (cluster.name, "bold"),
        f"  {counted(len(busy), 'build')} at work" + (f" ({rest})" if rest else ""),
        f"  {counted(shown.running, 'task')} running",
        f", {waiting} waiting" if waiting else "",
        f"  {rate} done in the last minute",
    )
    parts: list[RenderableType] = [head]
    nodes = _table("node", "tasks", "cpu asked", "memory asked")
    for node in shown.nodes:
        nodes.add_row(
            node.name,
            str(node.tasks),
            _share(node.cpu / 1000, node.cpu_offered / 1000, ""),
            _share(node.memory / _GIB, node.memory_offered / _GIB, " GiB"),
        )
    if shown.nodes:
        parts.append(Padding(nodes, (1, 0, 0, 0)))
    builds = _table("namespace", "build", "phase", "progress", "cached", "running", "age")
    for view in busy:
        progress = f"{view.done}/{view.total}" if view.total else "-"
        running = sum(task.state == "running" for task in view.tasks)
        builds.add_row(
            view.namespace,
            view.name,
            view.phase,
            progress,
            str(view.cached),
            str(running),
            age(view.created_at),
        )
    if busy:
        parts.append(Padding(builds, (1, 0, 0, 0)))
    tasks = _table("task", "build", "node", "for", "cpu", "memory", "")
    now = datetime.now(UTC)
    for task, names in shown.tasks[:_MOST_TASKS]:
        tasks.add_row(
            Text(task.label, style="cyan" if task.state == "running" else "yellow"),
            f"{task.namespace}/{names}",
            task.node or "-",
            duration(max((now - task.since).total_seconds(), 0.0)),
            f"{task.cpu / 1000:g}",
            f"{task.memory / _GIB:.1f} GiB",
            Text(task.waits, style="yellow"),
        )
    if shown.tasks:
        parts.append(Padding(tasks, (1, 0, 0, 0)))
    if len(shown.tasks) > _MOST_TASKS:
        parts.append(Text(f"and {len(shown.tasks) - _MOST_TASKS} more", style="dim"))
    return Group(*parts)


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for head in heads:
        least = _LEAST_NAME if head in {"task", "build", "node"} else None
        table.add_column(head, no_wrap=True, overflow="ellipsis", min_width=least)
    return table


def _share(used: float, offered: float, unit: str) -> str:
    if not offered:
        return f"{used:.3g}{unit}"
    return f"{used:.3g} of {offered:.3g}{unit} ({used / offered:.0%})"


def _line(shown: TopSnapshot, rate: int, now: datetime) -> str:
    """One look as a line for logs and pipes."""
    busy = [view for view in shown.builds if not view.settled]
    nodes = " ".join(f"{node.name}={node.tasks}" for node in shown.nodes)
    progress = " ".join(f"{v.namespace}/{v.name}={v.done}/{v.total}" for v in busy[:8])
    counts = (
        f"{now.strftime('%H:%M:%S')} builds={len(busy)} running={shown.running} "
        f"waiting={len(shown.tasks) - shown.running} done/min={rate}"
    )
    return " ".join(filter(None, (counts, nodes, progress)))


def _as_json(shown: TopSnapshot, rate: int) -> dict[str, Any]:
    return {
        "builds": [
            {
                "namespace": view.namespace,
                "name": view.name,
                "phase": view.phase,
                "tasks": {"total": view.total, "done": view.done, "cached": view.cached},
                "running": sum(task.state == "running" for task in view.tasks),
            }
            for view in shown.builds
        ],
        "tasks": [
            {
                "task": task.id,
                "then": list(task.then),
                "namespace": task.namespace,
                "builds": names.split(","),
                "state": task.state,
                "node": task.node,
                "since": task.since.isoformat(),
                "cpuMillis": task.cpu,
                "memoryBytes": task.memory,
                "waits": task.waits,
            }
            for task, names in shown.tasks
        ],
        "nodes": [
            {
                "name": node.name,
                "tasks": node.tasks,
                "cpuMillis": node.cpu,
                "memoryBytes": node.memory,
                "allocatable": {"cpuMillis": node.cpu_offered, "memoryBytes": node.memory_offered},
            }
            for node in shown.nodes
        ],
        "donePerMinute": rate,
    }
