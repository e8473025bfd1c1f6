"""`genai status`: builds and deployments of a cluster as tables, one of a name in full."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from genai_cli.cluster.api_errors import ClusterUnavailable, NotThere
from genai_cli.cluster.build_views import ClusterBuild, ClusterTask
from genai_cli.cluster.builds import age, read_build, read_builds
from genai_cli.cluster.connection import Access, Cluster, connect
from genai_cli.cluster.deployment_views import ClusterDeployment
from genai_cli.cluster.deployments import (
    deployment_details,
    deployment_json,
    find_deployment,
    listed_deployments,
    read_deployments,
)
from genai_cli.display.console import PlainConsole
from genai_cli.display.output import emit
from genai_cli.display.words import counted, duration, size
from genai_cli.settings import ProgramSettings
from genai_core.wire import REQUESTED_AT
from genai_planner.execution.progress import StageProgress

__all__ = ["as_json", "details", "put", "show_status", "watched"]

_STYLES = {
    "Ready": "green",
    "Failed": "red",
    "Building": "cyan",
    "Waiting": "yellow",
    "Pending": "yellow",
    "Suspended": "dim",
}
_BAR_WIDTH = 20
_PATIENCE = 10.0
_EVERY = 1.0
_WIDE = 4000


def show_status(
    access: Access,
    settings: ProgramSettings,
    *,
    name: str | None,
    everywhere: bool,
    watch: bool,
) -> int:
    """Print what is built and what became of it; returns the exit code."""
    cluster = connect(access)
    if name is not None:
        wanted = name
        if settings.json:
            emit(_found_json(*_found(cluster, wanted)))
            return 0
        return watched(lambda: _in_full(*_found(cluster, wanted)), watch=watch)
    namespace = None if everywhere else cluster.namespace
    if settings.json:
        builds = [as_json(view) for view in read_builds(cluster, namespace)]
        served = [deployment_json(view) for view in read_deployments(cluster, namespace)]
        emit({"builds": builds, "deployments": served})
        return 0
    return watched(lambda: _listed(cluster, namespace), watch=watch)


def _found(cluster: Cluster, name: str) -> tuple[ClusterBuild | None, ClusterDeployment | None]:
    """The build and the deployment of a name: at least one of them.

    Raises:
        NotThere: There is neither; names the nearest builds.
    """
    served = find_deployment(cluster, name, cluster.namespace)
    try:
        return read_build(cluster, name, cluster.namespace), served
    except NotThere:
        if served is None:
            raise
        return None, served


def _in_full(build: ClusterBuild | None, served: ClusterDeployment | None) -> RenderableType:
    parts = [details(build)] if build is not None else []
    return Group(*parts, *([deployment_details(served)] if served is not None else []))


def _found_json(build: ClusterBuild | None, served: ClusterDeployment | None) -> dict[str, Any]:
    """A build as it was, with the deployment of its name; or a deployment alone."""
    told = {"deployment": deployment_json(served)} if served is not None else {}
    return told if build is None else as_json(build) | told


def watched(picture: Callable[[], RenderableType], *, watch: bool, every: float = _EVERY) -> int:
    """Print a picture once, or again and again until Ctrl-C; in a pipe only where it changes."""
    console = PlainConsole(highlight=False)
    first = picture()
    if not watch:
        put(first)
        return 0
    try:
        if console.is_terminal:
            with Live(first, console=console, auto_refresh=False) as live:
                while True:
                    live.update(_patiently(picture), refresh=True)
                    time.sleep(every)
        last = ""
        while True:
            if (text := _plain(_patiently(picture))) != last:
                last = text
                sys.stdout.write(text)
                sys.stdout.flush()
            time.sleep(every)
    except KeyboardInterrupt:
        return 0


def _patiently(picture: Callable[[], RenderableType]) -> RenderableType:
    """What is there now, or that an apiserver does not answer now: no reason to stop watching."""
    try:
        return picture()
    except ClusterUnavailable as error:
        return Text(str(error), style="yellow")


def put(picture: RenderableType) -> None:
    """Print a picture: fitted to a terminal, as wide as it needs in a pipe."""
    console = PlainConsole(highlight=False)
    if console.is_terminal:
        console.print(picture)
    else:
        sys.stdout.write(_plain(picture))


def _plain(picture: RenderableType) -> str:
    console = PlainConsole(highlight=False, width=_WIDE, color_system=None)
    with console.capture() as captured:
        console.print(picture)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _listed(cluster: Cluster, namespace: str | None) -> RenderableType:
    builds = read_builds(cluster, namespace)
    served = read_deployments(cluster, namespace)
    if served:
        below = listed_deployments(served, place=namespace is None)
        return Group(_builds(builds, namespace), Text(), below) if builds else below
    return _builds(builds, namespace)


def _builds(builds: Sequence[ClusterBuild], namespace: str | None) -> RenderableType:
    if not builds:
        where = f"in namespace {namespace}" if namespace else "in this cluster"
        return Text(f"no builds {where}")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=True)
    heads = ["name", "phase", "progress", "cached", "running", "targets", "age"]
    longest = max(len(view.name) for view in builds)
    for head in [*(["namespace"] if namespace is None else []), *heads]:
        # Whatever has to give way on a narrow terminal, a build's name does not.
        table.add_column(head, no_wrap=True, min_width=longest if head == "name" else None)
    table.add_column("message", no_wrap=True, overflow="ellipsis", ratio=1)  # takes what is left
    for view in builds:
        place = [view.namespace] if namespace is None else []
        table.add_row(
            *place,
            Text(view.name, style="bold"),
            _phase(view),
            f"{view.done}/{view.total}" if view.total else "-",
            str(view.cached) if view.total else "-",
            str(len(view.running) or "-"),
            ",".join(view.targets),
            age(view.created_at),
            Text(_message(view)),
        )
    return table


def _phase(view: ClusterBuild) -> Text:
    return Text(view.phase, style=_STYLES.get(view.phase, ""))


def _message(view: ClusterBuild) -> str:
    """One line: what a user should know about a build now."""
    if not view.taken_up:
        return _untaken(view) or "not taken up yet"
    if view.ready[0] == "True":
        return "a newer toolchain is there" if view.outdated else ""
    if view.failures:
        first = view.failures[0]
        return f"{first.reason}: {first.message}"
    _, reason, message = view.ready
    return message if reason == "Progressing" else f"{reason}: {message}".strip(": ")


def _untaken(view: ClusterBuild) -> str:
    seconds = (datetime.now(UTC) - view.created_at).total_seconds()
    if seconds < _PATIENCE:
        return ""
    return "the operator has not taken it up: does it run, and does it watch this namespace?"


def details(view: ClusterBuild) -> RenderableType:
    """One build in full."""
    head = Text.assemble((view.name, "bold"), "  ", _phase(view))
    if view.total:
        head.append(f"  {view.done}/{counted(view.total, 'task')}, {view.cached} cached")
    head.append(f"  namespace {view.namespace}, {age(view.created_at)} old", style="dim")
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    if message := _message(view):
        rows.add_row("now", Text(message))
    rows.add_row("source", Text("  ".join(filter(None, view.source))))
    for number, note in enumerate(view.plan):
        rows.add_row("" if number else "plan", Text(note))
    if view.stages:
        rows.add_row("stages", _stages(view.stages))
    if view.running:
        rows.add_row("running", _running(view.running))
    for failure in view.failures:
        log = shlex.join(("genai", "logs", view.name, failure.task, "-n", view.namespace))
        text = Text.assemble((failure.task, "bold"), f"  {failure.reason}\n{failure.message}")
        rows.add_row(Text("failed", style="red"), text.append(f"\nlog: {log}", style="dim"))
    for item in view.artifacts:
        text = Text(f"{item.revision}  {size(item.size_bytes)}  verified: {item.verified}")
        rows.add_row(Text(item.target, style="green"), text.append(f"  {item.built_at}", "dim"))
        if item.fidelity and "natsPerToken" in item.fidelity:
            rows.add_row("", Text(_fidelity(item.fidelity)))
    for warning in view.warnings:
        rows.add_row(Text("warning", style="yellow"), Text(warning))
    if view.outdated:
        command = f"kubectl annotate -n {view.namespace} genaibuild {view.name} --overwrite "
        text = Text(f"{view.outdated.partition(';')[0]}; to rebuild: {command}")
        rows.add_row(Text("outdated", "yellow"), text.append(f'{REQUESTED_AT}="$(date)"'))
    return Group(head, Padding(rows, (0, 0, 0, 2)))


def _fidelity(facts: Mapping[str, Any]) -> str:
    """Loss, its rise over the baseline, and what may be."""
    loss, base = facts["natsPerToken"], facts.get("baselineNats")
    text = f"fidelity {loss:.4f} nats a token"
    if base is not None:
        text += f", {loss - base:+.4f} of at most {facts.get('budget', 0):g}"
    return text


def _stages(stages: Sequence[StageProgress]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for stage in stages:
        ended = stage.cached + stage.done + stage.failed
        style = "red" if stage.failed else "green" if ended == stage.total else "cyan"
        bar = ProgressBar(
            total=stage.total or 1,
            completed=ended,
            width=_BAR_WIDTH,
            complete_style=style,
            finished_style=style,
        )
        counts = (
            (stage.failed, "failed"),
            (stage.running, "running"),
            (stage.waiting, "waiting"),
            (stage.cached, "cached"),
        )
        said = ", ".join(f"{count} {word}" for count, word in counts if count)
        table.add_row(stage.operation, _OnTerminal(bar), f"{ended}/{stage.total}", said)
    return table


class _OnTerminal:
    """What colors alone can say is left out of a pipe."""

    def __init__(self, picture: RenderableType) -> None:
        self._picture = picture

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if console.color_system:
            yield self._picture

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = _BAR_WIDTH if console.color_system else 0
        return Measurement(width, width)


def _running(tasks: Sequence[ClusterTask]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    now = datetime.now(UTC)
    for task in tasks:
        seconds = duration(max((now - task.since).total_seconds(), 0.0))
        again = f"attempt {task.attempt}" if task.attempt > 1 else ""
        if task.state == "waiting":
            table.add_row(task.label, task.node or "-", seconds, Text(task.waits, style="yellow"))
        else:
            table.add_row(Text(task.label, style="cyan"), task.node, seconds, again)
    return table


def as_json(view: ClusterBuild) -> dict[str, Any]:
    """A build as `--json` shows it; camelCase, as in the status."""
    return {
        "namespace": view.namespace,
        "name": view.name,
        "phase": view.phase,
        "ready": view.ready[0],
        "reason": view.ready[1],
        "message": _message(view),
        "createdAt": view.created_at.isoformat(),
        "takenUp": view.taken_up,
        "tasks": {"total": view.total, "done": view.done, "cached": view.cached},
        "stages": [vars(stage) for stage in view.stages],
        "running": [
            {
                "task": task.id,
                "then": list(task.then),
                "state": task.state,
                "node": task.node,
                "pod": task.pod,
                "attempt": task.attempt,
                "since": task.since.isoformat(),
                "waits": task.waits,
            }
            for task in view.running
        ],
        "failures": [vars(failure) for failure in view.failures],
        "source": {"uri": view.source[0], "digest": view.source[1]},
        "containers": {
            item.target: {
                "revision": item.revision,
                "sizeBytes": item.size_bytes,
                "url": item.url,
                "builtAt": item.built_at,
                "verified": item.verified,
                **({"fidelity": dict(item.fidelity)} if item.fidelity else {}),
            }
            for item in view.artifacts
        },
        "warnings": list(view.warnings),
        "toolchainOutdated": bool(view.outdated),
    }
