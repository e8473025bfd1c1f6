"""`genai dashboard`: what a cluster builds and serves, as pages that only read."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from genai_cli.cluster.connection import Access, connect
from genai_cli.cluster.deployment_views import deployment_view
from genai_cli.cluster.testing import Apiserver, apiserver, build, job, pod
from genai_cli.dashboard.markup import Html, element
from genai_cli.dashboard.overview import stage_graph
from genai_cli.dashboard.server import DashboardServer
from genai_cli.dashboard.snapshot import Snapshot, Snapshots
from genai_core.kinds.base import API_VERSION
from genai_planner.execution.progress import StageProgress

REVISION = "sha256:" + "3" * 64
CHROMIUM = shutil.which("chromium")
HOSTILE = "<img src=x onerror=alert(1)>"


def stage(operation: str, **counts: int) -> dict[str, Any]:
    empty = dict.fromkeys(("cached", "done", "running", "waiting", "failed"), 0)
    return {"operation": operation, **empty, **counts}


def deployment(name: str = "chat", **status: Any) -> dict[str, Any]:
    meta = {
        "name": name, "namespace": "team", "generation": 2,
        "creationTimestamp": "2026-01-01T12:00:00Z",
    }  # fmt: skip
    return {
        "apiVersion": API_VERSION, "kind": "GenAIDeployment", "metadata": meta,
        "spec": {"from": {"build": "tiny", "target": "cpu"}},
        "status": {"observedGeneration": 2, **status},
    }  # fmt: skip


def server_pod(name: str, *, of: str = "chat", **status: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "genai-server", "genai-operator.dev/deployment": of}
    meta = {
        "name": name, "namespace": "team", "labels": labels,
        "creationTimestamp": "2026-01-01T12:00:00Z",
    }  # fmt: skip
    return {"metadata": meta, "spec": {"nodeName": "node1"}, "status": status}


READY: dict[str, Any] = {"conditions": [{"type": "Ready", "status": "True"}]}


@pytest.fixture
def cluster() -> Iterator[Apiserver]:
    with apiserver() as state:
        ready = {"type": "Ready", "status": "Unknown", "reason": "Progressing", "message": HOSTILE}
        stages = [stage("ingest", cached=1), stage("convert", done=2, running=1, waiting=3)]
        tiny = build("tiny", conditions=[ready], stages=stages, progress="3/7", cached=1)
        running = job("convert/cpu/1_of_6", "tiny")
        state.add("genaibuilds", tiny, build("other", "elsewhere"))
        state.add("jobs", running)
        state.add("pods", pod(running, running={"startedAt": "2026-01-01T12:00:10Z"}))
        state.add("pods", server_pod("chat-1", **READY))
        state.add(
            "genaideployments",
            deployment(
                conditions=[READY["conditions"][0] | {"reason": "Serving"}],
                readyReplicas=1, replicas=1, revision={"current": REVISION, "target": REVISION},
                adapters=[{"name": "shout", "loaded": "1/1", "digest": "sha256:" + "a" * 64}],
            ),
        )  # fmt: skip
        yield state


class Viewer:
    """A browser as far as the server sees one."""

    def __init__(self, server: DashboardServer) -> None:
        self.server = server
        self.cookie = ""

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=10)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            sent["Cookie"] = self.cookie
        connection.request(method, path, headers=sent)
        answer = connection.getresponse()
        self.headers = answer.headers
        text = answer.read().decode()
        connection.close()
        if found := answer.headers.get("Set-Cookie"):
            self.cookie = found.partition(";")[0]
        return answer.status, text

    def enter(self) -> Viewer:
        assert self.ask(self.server.address.partition(f":{self.server.server_port}")[2])[0] == 303
        return self


@pytest.fixture
def viewer(cluster: Apiserver, tmp_path: Path) -> Iterator[Viewer]:
    access = Access(kubeconfig=cluster.kubeconfig(tmp_path / "config"))
    server = DashboardServer(Snapshots(connect(access)), namespace="team", port=0)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield Viewer(server)
    server.shutdown()
    server.server_close()
    thread.join()


def test_overview_shows_deployments_builds_pods_and_adapters(viewer: Viewer) -> None:
    status, text = viewer.enter().ask("/")
    assert status == 200
    for shown in ("3/7 tasks, 1 cached", "chat-1", "shout", "1/1 pods", "33333333333", "Serving"):
        assert shown in text
    assert "elsewhere" not in text  # another namespace's


def test_overview_shows_all_namespaces_when_asked(viewer: Viewer) -> None:
    _, text = viewer.enter().ask("/?namespace=")
    assert "elsewhere" in text
    assert '<a href="/build/elsewhere/other">' in text


def test_text_of_objects_is_escaped_everywhere(viewer: Viewer) -> None:
    viewer.enter()
    for path in ("/", "/build/team/tiny", f"/build/team/{HOSTILE.replace(' ', '%20')}"):
        _, text = viewer.ask(path)
        assert "<img" not in text
        assert "&lt;img src=x" in text


def test_build_page_shows_its_jobs_and_stages(viewer: Viewer) -> None:
    _, text = viewer.enter().ask("/build/team/tiny")
    assert "convert/cpu/1_of_6" in text
    assert "node1" in text
    assert text.count('<i class="waiting">') == 3
    assert "there is no build gone" in viewer.ask("/build/team/gone")[1]


def test_part_is_the_main_element_alone(viewer: Viewer) -> None:
    _, whole = viewer.enter().ask("/build/team/gone")
    _, part = viewer.ask("/build/team/gone", X_Part="main")
    assert part.startswith("<header>")
    assert whole.startswith("<!doctype html>")
    assert part.partition("</h1>")[0] in whole


def test_pages_are_refused_without_the_session(viewer: Viewer) -> None:
    for path in ("/", "/build/team/tiny", "/dashboard.js", "/?session=wrong", "/?session=%C3%A4"):
        status, text = viewer.ask(path)
        assert status == 403
        assert "tiny" not in text
        viewer.cookie = "" if path != "/" else f"{viewer.server.cookie}=wrong"


def test_session_leads_to_a_page_of_this_server_alone(viewer: Viewer) -> None:
    assert viewer.ask(f"//evil.example/x?session={viewer.server.secret}")[0] == 303
    assert viewer.headers["Location"] == "/evil.example/x"
    assert viewer.server.secret not in viewer.headers["Location"]


def test_requests_by_another_name_of_the_host_are_refused(viewer: Viewer) -> None:
    viewer.enter()
    assert viewer.ask("/", Host="evil.example")[0] == 403
    assert viewer.ask("/", Host=f"localhost:{viewer.server.server_port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_but_get_is_answered(viewer: Viewer, method: str) -> None:
    assert viewer.enter().ask("/", method)[0] == 501


def test_pages_load_nothing_from_elsewhere(viewer: Viewer) -> None:
    _, text = viewer.enter().ask("/")
    assert "default-src 'none'" in viewer.headers["Content-Security-Policy"]
    assert "style=" not in text
    assert "http://" not in text.replace(viewer.server.snapshots.get("team").server, "")
    for path in ("/dashboard.css", "/dashboard.js"):
        assert viewer.ask(path)[0] == 200


@pytest.mark.skipif(not CHROMIUM, reason="NO BROWSER: the page's script was not run")
def test_page_renews_itself_in_a_browser(viewer: Viewer, tmp_path: Path) -> None:
    """Style and script pass the policy, and the page follows what the cluster does."""
    looks = [0]

    class Counted:
        def get(self, namespace: str) -> Snapshot:
            looks[0] += 1
            now = datetime(2026, 1, 1, tzinfo=UTC)
            notice = f"look {looks[0]}"
            return Snapshot(now, "test", "https://there", namespace, notices=(notice,))

    viewer.server.snapshots = Counted()
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={tmp_path}", "--virtual-time-budget=7000",
        "--dump-dom", viewer.server.address,
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert looks[0] > 1, shown.stderr[-2000:]
    assert f'<p class="notice">look {looks[0]}</p>' in shown.stdout
    assert "stale" not in shown.stdout


def test_what_the_viewer_may_not_see_is_said_and_the_rest_is_shown(
    viewer: Viewer, cluster: Apiserver
) -> None:
    cluster.forbidden = {"genaideployments", "jobs"}
    _, text = viewer.enter().ask("/")
    for plural in ("genaideployments", "jobs"):
        assert f"cannot get resource &quot;{plural}&quot;" in text
    assert "3/7 tasks" in text


def test_apiserver_is_asked_once_by_many_viewers(cluster: Apiserver, tmp_path: Path) -> None:
    now = [0.0]
    access = Access(kubeconfig=cluster.kubeconfig(tmp_path / "config"))
    snapshots = Snapshots(connect(access), clock=lambda: now[0])
    first = snapshots.get("team")
    assert snapshots.get("team") is first
    assert snapshots.get("") is not first
    now[0] = 10
    assert snapshots.get("team") is not first


@pytest.mark.parametrize(
    ("status", "state", "why"),
    [
        (READY, "ready", ""),
        ({}, "starting", "it starts"),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]},
            "starting",
            "0/2 nodes",
        ),
        (
            {"initContainerStatuses": [{"name": "fetch", "state": {"running": {}}}]},
            "starting",
            "it fetches the container",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "server",
                        "restartCount": 3,
                        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                        "lastState": {"terminated": {"message": "golden tokens differ"}},
                    }
                ]
            },
            "broken",
            "server: CrashLoopBackOff: golden tokens differ",
        ),
        ({"phase": "Failed", "reason": "Evicted"}, "broken", "Evicted"),
    ],
)
def test_pod_says_what_keeps_it_from_answering(
    status: dict[str, Any], state: str, why: str
) -> None:
    view = deployment_view(deployment(), [server_pod("p", **status), server_pod("q", of="other")])
    (found,) = view.pods
    assert (found.state, found.why) == (state, why)


def test_stage_of_many_tasks_is_drawn_as_shares() -> None:
    drawn = stage_graph([StageProgress("compile", cached=500, done=250, running=0, waiting=250)])
    assert '<rect x="0.0" width="500.0" height="13" class="cached">' in drawn
    assert '<rect x="750.0" width="250.0" height="13" class="waiting">' in drawn
    assert "<i" not in drawn


def test_element_escapes_text_and_attributes_and_keeps_html() -> None:
    made = element("p", "<b>", Html("<b>"), ["&"], title='"', id="")
    assert made == '<p title="&quot;">&lt;b&gt;<b>&amp;</p>'
