"""The first page: deployments, builds, stores and targets of a namespace, or of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, urlencode

from genai_cli.cluster.build_views import ClusterBuild
from genai_cli.cluster.builds import age
from genai_cli.cluster.deployment_views import ClusterDeployment, ServedAdapter, ServingPod
from genai_cli.dashboard.markup import Content, Html, element, joined, row
from genai_cli.dashboard.snapshot import PlainObject, Snapshot
from genai_cli.display.words import counted
from genai_planner.execution.progress import StageProgress

__all__ = ["badge", "header", "overview", "short", "stage_graph"]

_SQUARES = 120
"""Tasks of a stage that are drawn one by one; above, a bar has their shares."""
_STATES = ("cached", "done", "running", "waiting", "failed")
_COLOURS = {"True": "good", "False": "bad"}


def overview(shot: Snapshot) -> Html:
    """What `<main>` holds."""
    return joined(
        header(shot),
        _section("Deployments", [_deployment(view, shot) for view in shot.deployments]),
        _section("Builds", [_build(view, shot) for view in shot.builds], _legend()),
        _plain_table("Stores", "bucket", shot.stores),
        _plain_table("Targets", "chip", shot.targets),
    )


def header(shot: Snapshot) -> Html:
    """Where this is, the way to other namespaces, and what could not be read."""
    place = shot.namespace or "all namespaces"
    links = [
        element("a", name or "all namespaces", href=_list(name))
        for name in ("", *shot.namespaces)
        if name != shot.namespace
    ]
    time = f"{shot.taken_at:%H:%M:%S} UTC"
    return joined(
        element(
            "header",
            element("h1", element("a", place, href=_list(shot.namespace))),
            element("p", f"context {shot.context}, {shot.server}, {time} ", _spread(links)),
        ),
        [element("p", notice, class_="notice") for notice in shot.notices],
    )


def stage_graph(stages: Sequence[StageProgress]) -> Html:
    """Stages in their order, each with its tasks as squares that take the color of their state."""
    return element("div", [_stage(stage) for stage in stages], class_="stages")


def badge(ready: tuple[str, str, str]) -> Html:
    """The reason of a condition Ready, colored by its status."""
    status, reason, _ = ready
    return element("span", reason or "not seen yet", class_=f"badge {_COLOURS.get(status, 'wait')}")


def short(revision: str) -> str:
    """A digest as people compare it: twelve digits."""
    return revision.removeprefix("sha256:")[:12]


def _list(namespace: str) -> str:
    """Address of a namespace's page; of all of them where it is empty."""
    return "/?" + urlencode({"namespace": namespace})


def _spread(pieces: Iterable[Html]) -> Html:
    return joined(*(joined(" ", piece) for piece in pieces))


def _legend() -> Html:
    marks = [joined(element("i", class_=name), name) for name in _STATES]
    return element("span", marks, class_="legend")


def _section(title: str, cards: Sequence[Html], beside: Content = "") -> Html:
    empty = element("p", f"no {title.lower()}", class_="dim")
    body = element("div", cards, class_="cards") if cards else empty
    return element("section", element("h2", title, beside), body)


def _title(name: str, namespace: str, shot: Snapshot, link: str = "") -> Html:
    shown = element("a", name, href=link) if link else Html(element("span", name))
    place = element("span", namespace, class_="dim") if not shot.namespace else Html("")
    return joined(shown, " ", place)


def _build(view: ClusterBuild, shot: Snapshot) -> Html:
    link = f"/build/{quote(view.namespace, safe='')}/{quote(view.name, safe='')}"
    facts = f"{', '.join(view.targets)} · {age(view.created_at)} old"
    if view.total:
        facts = f"{view.done}/{counted(view.total, 'task')}, {view.cached} cached · {facts}"
    return element(
        "article",
        element("h3", _title(view.name, view.namespace, shot, link), badge(view.ready)),
        element("p", facts, class_="dim"),
        stage_graph(view.stages) if view.stages else Html(""),
        element("p", _message(view.ready, taken_up=view.taken_up)),
        [
            element("p", f"{item.target} ", element("code", short(item.revision)))
            for item in view.artifacts
        ],
        [element("p", text, class_="notice") for text in view.warnings],
        data_key=f"build/{view.namespace}/{view.name}",
    )


def _deployment(view: ClusterDeployment, shot: Snapshot) -> Html:
    pods = f"{view.ready_replicas}/{counted(view.replicas, 'pod')} ready"
    source = f"{view.build}, {view.build_target}"
    return element(
        "article",
        element("h3", _title(view.name, view.namespace, shot), badge(view.ready)),
        element("p", f"{pods} · of {source} · {age(view.created_at)} old", class_="dim"),
        element("p", _message(view.ready, taken_up=view.taken_up)),
        element("p", element("code", view.url)) if view.url else Html(""),
        _revisions(view),
        _pods(view.pods),
        _adapters(view.adapters),
        [
            element("p", f"rejected {short(revision)}: {reason}", class_="notice")
            for revision, reason in view.rejected
        ],
        data_key=f"deployment/{view.namespace}/{view.name}",
    )


def _message(ready: tuple[str, str, str], *, taken_up: bool) -> str:
    if not taken_up:
        return "the operator has not seen this version of it yet"
    return ready[2]


def _revisions(view: ClusterDeployment) -> Html:
    if not view.current and not view.target:
        return Html("")
    if view.current == view.target or not view.current:
        return element("p", "revision ", element("code", short(view.target or view.current)))
    return element(
        "p", "revision ", element("code", short(view.current)), " → ",
        element("code", short(view.target)),
    )  # fmt: skip


def _pods(pods: Sequence[ServingPod]) -> Html:
    if not pods:
        return Html("")
    rows = [
        row(
            element("span", pod.state, class_=f"state {pod.state}"),
            element("code", pod.name),
            pod.node or "-",
            age(pod.since),
            counted(pod.restarts, "restart") if pod.restarts else "",
            pod.why,
        )
        for pod in pods
    ]
    return element("table", element("tbody", rows))


def _adapters(adapters: Sequence[ServedAdapter]) -> Html:
    if not adapters:
        return Html("")
    rows = [
        row(one.name, f"{one.loaded} pods", element("code", short(one.digest))) for one in adapters
    ]
    head = row("adapter", "loaded", "digest", head=True)
    return element("table", element("thead", head), element("tbody", rows))


def _plain_table(title: str, about: str, objects: Sequence[PlainObject]) -> Html:
    if not objects:
        return Html("")
    rows = [
        row("/".join(filter(None, (one.namespace, one.name))), one.about, badge(one.ready),
            "" if one.ready[0] == "True" else one.ready[2])
        for one in objects
    ]  # fmt: skip
    head = row("name", about, "", "", head=True)
    table = element("table", element("thead", head), element("tbody", rows))
    return element("section", element("h2", title), table)


def _stage(stage: StageProgress) -> Html:
    counts = {name: int(getattr(stage, name)) for name in _STATES}
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if stage.total <= _SQUARES:
        marks = [element("i", class_=name) for name, count in counts.items() for _ in range(count)]
        drawn = element("div", marks, class_="squares")
    else:
        drawn = _shares(counts)
    ended = stage.cached + stage.done
    name = element("b", stage.operation.replace("_", " "))
    return element(
        "div", name, drawn, element("small", f"{ended}/{stage.total}"), class_="stage", title=said
    )


def _shares(counts: Mapping[str, int]) -> Html:
    """One bar, a piece for each state as wide as its share of the tasks."""
    whole, left, pieces = sum(counts.values()), 0, []
    for name, count in counts.items():
        x, width = (f"{1000 * value / whole:.1f}" for value in (left, count))
        pieces.append(element("rect", x=x, width=width, height="13", class_=name))
        left += count
    return element("svg", pieces, viewBox="0 0 1000 13", preserveAspectRatio="none")
