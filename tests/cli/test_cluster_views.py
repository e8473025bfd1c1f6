"""A build, its Jobs and pods as people see them."""

from __future__ import annotations

import io
import json
from functools import partial
from typing import Any

import pytest
from rich.console import Console

from genai_cli.cluster.build_views import ClusterBuild, build_view, quantity, task_views
from genai_cli.cluster.remote import followed_build
from genai_cli.cluster.remote.followed_build import News, follow, news
from genai_cli.cluster.testing import build, job, pod

RUNNING: dict[str, Any] = {"running": {"startedAt": "2026-01-01T12:00:10Z"}}


@pytest.mark.parametrize(
    ("text", "scale", "number"),
    [
        ("250m", 1000, 250),
        ("2", 1000, 2000),
        ("1.5", 1000, 1500),
        ("512Mi", 1, 512 << 20),
        ("1Gi", 1, 1 << 30),
        ("3k", 1, 3000),
        ("2G", 1, 2 * 10**9),
        ("24545264Ki", 1, 24545264 << 10),
        ("0", 1, 0),
        ("1e3", 1, 1000),
        ("2500u", 1000, 2),
        ("100n", 1, 0),
    ],
)
def test_quantities_are_kubernetes_own(text: str, scale: int, number: int) -> None:
    assert quantity(text, scale=scale) == number


def test_a_build_that_nobody_took_up_is_pending() -> None:
    view = build_view(build("a"))
    assert (view.phase, view.taken_up, view.settled) == ("Pending", False, False)
    edited = build("a", phase="Ready", conditions=[{"type": "Ready", "status": "True"}])
    assert build_view(edited).settled
    edited["metadata"]["generation"] = 2
    assert not build_view(edited).settled, "an edit that nobody saw counts as finished"
    asked = build("a", phase="Ready", conditions=[{"type": "Ready", "status": "True"}])
    asked["metadata"]["annotations"] = {"genai-operator.dev/requestedAt": "now"}
    assert not build_view(asked).settled, "a request that nobody saw counts as finished"


def test_a_suspended_build_rests_and_a_waiting_one_does_not() -> None:
    ready = {"type": "Ready", "status": "Unknown", "reason": "Suspended", "message": "..."}
    assert build_view(build("a", phase="Suspended", conditions=[ready])).settled
    assert not build_view(build("a", phase="Waiting", conditions=[ready])).settled


def test_what_a_newer_operator_says_besides_is_passed_over() -> None:
    stage = {"operation": "ingest", "done": 1, "retried": 3}
    failure = {"task": "ingest", "reason": "BadModel", "message": "no", "node": "node1"}
    view = build_view(build("a", stages=[stage], failures=[failure]))
    assert [(one.operation, one.done, one.total) for one in view.stages] == [("ingest", 1, 1)]
    assert [one.task for one in view.failures] == ["ingest"]


def test_a_job_that_only_bears_the_label_spoils_nothing() -> None:
    """Whoever may make Jobs in one namespace must not blind who looks at all of them."""
    good = job("ingest", "a")
    odd = [job(name, "a") for name in ("attempt", "cpu", "chain")]
    odd[0]["metadata"]["labels"]["genai-operator.dev/attempt"] = "many"
    requests = {"requests": {"cpu": "1 core"}}
    odd[1]["spec"]["template"]["spec"]["containers"][0]["resources"] = requests
    odd[2]["spec"]["template"]["spec"]["containers"] = []
    assert [view.id for view in task_views([*odd, good], [])] == ["ingest"]


def test_tasks_are_those_of_the_build_with_their_latest_attempt() -> None:
    first = job("convert/cpu/a", "a", "b", state="Failed")
    second = job("convert/cpu/a", "a", "b", attempt=2)
    other = job("ingest", "b")
    tasks = task_views([first, second, other], [pod(second, node="node2", **RUNNING)])
    view = build_view(build("a"), tasks)
    assert [(t.id, t.attempt, t.state, t.node) for t in view.tasks] == [
        ("convert/cpu/a", 2, "running", "node2")
    ]
    assert (view.tasks[0].cpu, view.tasks[0].memory) == (250, 512 << 20)


def test_a_task_says_why_it_does_not_start() -> None:
    one = job("ingest", "a")
    starting = pod(one, waiting={"reason": "ContainerCreating"})
    assert task_views([one], [starting])[0].waits == "its pod starts"
    pulling = pod(one, waiting={"reason": "ErrImagePull", "message": "not found"})
    assert task_views([one], [pulling])[0].waits == "ErrImagePull: not found"
    full = pod(one, node="")
    full["status"] = {
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes: cpu"}]
    }
    assert task_views([one], [full])[0].waits == "0/2 nodes: cpu"
    assert task_views([one], [])[0].waits == "no pod yet"


def test_a_chain_is_one_job_with_several_tasks_and_says_where_it_stopped() -> None:
    one = job("convert/cpu/a", "a", state="Failed", then=("compile/cpu/a", "package/cpu"))
    said = json.dumps({"outcome": "failed", "task": "compile/cpu/a", "step": 1})
    ended = {"message": said, "startedAt": "2026-01-01T12:00:01Z"}
    ended["finishedAt"] = "2026-01-01T12:00:21Z"
    (task,) = task_views([one], [pod(one, terminated=ended)])
    assert task.ids == ("convert/cpu/a", "compile/cpu/a", "package/cpu")
    assert task.label == "convert/cpu/a and 2 more"
    assert task.ended_in == "compile/cpu/a"
    assert task.seconds == 20


@pytest.mark.parametrize("text", ["{", "7", "[[]]", "[3]", ""])
def test_what_others_wrote_into_a_chain_is_no_reason_to_fail(text: str) -> None:
    one = job("ingest", "a")
    one["metadata"]["annotations"]["genai-operator.dev/chain"] = text
    assert task_views([one], [])[0].then == ()


def test_news_are_what_changed_between_two_looks() -> None:
    one = job("ingest", "a")

    def look(*pods: dict[str, Any], **changes: Any) -> ClusterBuild:
        done = job("ingest", "a", **changes)
        return build_view(build("a"), task_views([done], list(pods)))

    def texts(before: ClusterBuild, now: ClusterBuild) -> list[str]:
        return [item.text for item in news(before, now)]

    nothing = build_view(build("a"))
    starting, running = look(), look(pod(one, **RUNNING))
    said = json.dumps({"outcome": "run", "peakMemoryBytes": 178 * 10**6})
    ended = {"startedAt": "2026-01-01T12:00:10Z", "finishedAt": "2026-01-01T12:00:14Z"}
    done = look(pod(one, terminated=ended | {"message": said}), state="Complete")
    assert texts(nothing, starting) == []
    assert texts(starting, running) == ["start    ingest (node1)"]
    assert texts(running, running) == []
    assert texts(running, done) == ["done     ingest (4.0 s, 178 MB)"]
    assert texts(nothing, done) == ["start    ingest (node1)", "done     ingest (4.0 s, 178 MB)"]
    failed = look(pod(one, terminated=ended), state="Failed")
    assert list(news(running, failed)) == [
        News("failed   ingest: its process ended badly after 4.0 s", bad=True)
    ]


def test_a_live_board_shows_names_in_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    terminal = partial(Console, file=out, force_terminal=True, color_system=None, width=120)
    monkeypatch.setattr(followed_build, "PlainConsole", lambda **_: terminal())
    monkeypatch.setattr(followed_build, "_EVERY", 0.0)
    waits = {"type": "Ready", "status": "Unknown", "reason": "StoreNotReady"}
    first = build_view(build("a", phase="Building"))
    waiting = build("a", phase="Waiting", conditions=[waits | {"message": "the list [abc] [/b]"}])
    done = build("a", phase="Ready", conditions=[{"type": "Ready", "status": "True"}])
    looks = iter([build_view(waiting), build_view(done)])
    follow("team/a", first, lambda: next(looks))
    assert "! StoreNotReady: the list [abc] [/b]" in out.getvalue()
