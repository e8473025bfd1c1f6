"""The page of one build: its stages, what runs, what failed, what came out."""

from __future__ import annotations

import shlex
from datetime import datetime

from genai_cli.cluster.build_views import Artifact, ClusterBuild, ClusterTask, FailureView
from genai_cli.dashboard.markup import Html, element, joined, row
from genai_cli.dashboard.overview import badge, header, stage_graph
from genai_cli.dashboard.snapshot import Snapshot
from genai_cli.display.words import counted, duration, size

__all__ = ["build_page"]


def build_page(shot: Snapshot, name: str) -> Html | None:
    """What `<main>` holds; None where the snapshot's namespace has no such build."""
    view = next((one for one in shot.builds if one.name == name), None)
    if view is None:
        return None
    tasks = f"{view.done}/{counted(view.total, 'task')}, {view.cached} cached"
    now = view.ready[2] if view.taken_up else "the operator has not seen this version of it yet"
    return joined(
        header(shot),
        element(
            "section",
            element("h2", view.name, " ", badge(view.ready)),
            element("p", now),
            element("p", tasks, class_="dim") if view.total else Html(""),
            stage_graph(view.stages),
        ),
        _failures(view),
        _tasks(view, shot.taken_at),
        _containers(view),
        _notes(view),
    )


def _failures(view: ClusterBuild) -> Html:
    return joined(*(_failure(view, failure) for failure in view.failures))


def _failure(view: ClusterBuild, failure: FailureView) -> Html:
    command = shlex.join(("genai", "logs", view.name, failure.task, "-n", view.namespace))
    return element(
        "section",
        element("h3", failure.task, " ", element("span", failure.reason, class_="badge bad")),
        element("pre", failure.message),
        element("p", "log: ", element("code", command)),
    )


def _tasks(view: ClusterBuild, now: datetime) -> Html:
    if not view.tasks:
        return Html("")
    head = row("task", "state", "node", "seconds", "attempt", "", head=True)
    rows = [_task(task, now) for task in view.tasks]
    table = element("table", element("thead", head), element("tbody", rows))
    return element("section", element("h2", "Jobs"), table)


def _task(task: ClusterTask, now: datetime) -> Html:
    seconds = task.seconds if task.ended_at else max((now - task.since).total_seconds(), 0.0)
    return row(
        task.label,
        element("span", task.state, class_=f"state {task.state}"),
        task.node or "-",
        duration(seconds),
        str(task.attempt),
        task.waits or str(task.said.get("message") or ""),
    )


def _containers(view: ClusterBuild) -> Html:
    if not view.artifacts:
        return Html("")
    head = row("target", "revision", "size", "verified", "fidelity", "built", head=True)
    rows = [_container(item) for item in view.artifacts]
    table = element("table", element("thead", head), element("tbody", rows))
    return element("section", element("h2", "Containers"), table)


def _container(item: Artifact) -> Html:
    facts = item.fidelity or {}
    loss, base = facts.get("natsPerToken"), facts.get("baselineNats")
    said = ""
    if isinstance(loss, float | int):
        said = f"{loss:.4f} nats a token"
        if isinstance(base, float | int):
            said += f", {loss - base:+.4f} of at most {facts.get('budget', 0):g}"
    code = element("code", item.revision)
    return row(item.target, code, size(item.size_bytes), item.verified, said, item.built_at)


def _notes(view: ClusterBuild) -> Html:
    uri, digest = view.source
    lines = [element("p", "source ", element("code", uri), " ", element("code", digest))]
    lines += [element("p", text) for text in view.plan]
    lines += [element("p", text, class_="notice") for text in view.warnings]
    if view.outdated:
        lines.append(element("p", view.outdated, class_="notice"))
    return element("section", element("h2", "Plan"), lines)
