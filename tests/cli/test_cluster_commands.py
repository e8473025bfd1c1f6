"""`genai status`, `top` and `logs` against an apiserver over HTTP, and how they fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genai_cli.cluster.testing import Apiserver, apiserver, build, job, pod
from genai_cli.testing import InProcess, Program, Ran

RUNNING: dict[str, Any] = {"running": {"startedAt": "2026-01-01T12:00:10Z"}}
READY = {"type": "Ready", "status": "True", "reason": "Built", "message": "built cpu"}
STAGES = [
    {"operation": "ingest", "waiting": 0, "running": 0, "cached": 1, "done": 0, "failed": 0},
    {"operation": "convert", "waiting": 1, "running": 2, "cached": 0, "done": 3, "failed": 0},
]
REVISION = "sha256:" + "ab" * 32
ARTIFACT = {
    "target": "cpu",
    "revision": REVISION,
    "url": "s3://genai/team/records/package/00.json",
    "sizeBytes": 3_790_000,
    "builtAt": "2026-01-01T12:00:30Z",
    "verified": "Cpu",
}


@pytest.fixture
def server() -> Iterator[Apiserver]:
    with apiserver() as found:
        found.add("namespaces", {"metadata": {"name": "team"}})
        yield found


@pytest.fixture
def genai(server: Apiserver, tmp_path: Path) -> Any:
    """The program with a kubeconfig of this server."""
    run = InProcess(tmp_path)
    config = str(server.kubeconfig(tmp_path / "config"))

    def call(*arguments: str) -> Ran:
        return run(*arguments, env={"KUBECONFIG": config})

    return call


def building(name: str = "tiny") -> dict[str, Any]:
    ready = {"type": "Ready", "status": "Unknown", "reason": "Progressing", "message": "4/7: now"}
    return build(
        name,
        phase="Building",
        progress="4/7",
        cached=1,
        stages=STAGES,
        plan=["context length 256: as given"],
        conditions=[ready],
    )


def test_status_lists_builds_with_what_they_do(server: Apiserver, genai: Any) -> None:
    one = job("convert/cpu/a", "tiny")
    server.add("genaibuilds", building(), build("done", phase="Ready", conditions=[READY]))
    server.add("genaibuilds", build("elsewhere", "other"))
    server.add("jobs", one)
    server.add("pods", pod(one, **RUNNING))
    lines = genai("status").out.splitlines()
    assert lines[0].split() == [
        "name",
        "phase",
        "progress",
        "cached",
        "running",
        "targets",
        "age",
        "message",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["done", "tiny"]
    assert lines[2].split()[:6] == ["tiny", "Building", "4/7", "1", "1", "cpu"]
    assert "elsewhere" in genai("status", "-A").out
    value = genai("status", "--json").json
    assert {b["name"]: b["phase"] for b in value["builds"]} == {"tiny": "Building", "done": "Ready"}


def test_status_of_one_build_names_tasks_failures_containers_and_warnings(
    server: Apiserver, genai: Any
) -> None:
    value = building()
    value["status"] |= {
        "failures": [{"task": "compile/cpu/x", "reason": "BadModel", "message": "an Op is wrong"}],
        "artifacts": [ARTIFACT],
        "warnings": ["it has no tokenizer"],
        "conditions": [
            *value["status"]["conditions"],
            {"type": "ToolchainOutdated", "status": "True", "message": "newer; set the annotation"},
        ],
    }
    one = job("convert/cpu/a", "tiny", attempt=2)
    server.add("genaibuilds", value)
    server.add("jobs", one)
    server.add("pods", pod(one, node="node7", **RUNNING))
    out = genai("status", "tiny").out
    for part in (
        "4/7 tasks, 1 cached",
        "1/1  1 cached",
        "3/6  2 running, 1 waiting",
        "convert/cpu/a  node7",
        "attempt 2",
        "compile/cpu/x  BadModel",
        "genai logs tiny compile/cpu/x -n team",
        f"{REVISION}  3.79 MB  verified: Cpu",
        "it has no tokenizer",
        "kubectl annotate -n team genaibuild tiny --overwrite genai-operator.dev/requestedAt",
    ):
        assert part in out, out
    shown = genai("status", "tiny", "--json").json
    assert shown["containers"]["cpu"]["revision"] == REVISION
    assert shown["running"][0]["node"] == "node7"
    assert shown["toolchainOutdated"] is True


def test_a_build_that_no_operator_takes_up_says_so(server: Apiserver, genai: Any) -> None:
    server.add("genaibuilds", build("tiny"))
    assert "the operator has not taken it up" in genai("status").out


def test_top_counts_tasks_and_requests_by_node_and_shows_what_waits(
    server: Apiserver, genai: Any
) -> None:
    here, there, shared = (
        job("convert/cpu/a", "tiny"),
        job("convert/cpu/b", "tiny"),
        job("ingest", "tiny", "two"),
    )
    full = pod(shared, node="")
    full["status"] = {
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes: cpu"}]
    }
    server.add("genaibuilds", building(), building("two"))
    server.add("jobs", here, there, shared)
    server.add("pods", pod(here, **RUNNING), pod(there, **RUNNING), full)
    offered = {"allocatable": {"cpu": "2", "memory": "4Gi"}}
    server.add("nodes", {"metadata": {"name": "node1"}, "status": offered})
    value = genai("top", "--json").json
    assert value["nodes"] == [
        {
            "name": "node1",
            "tasks": 2,
            "cpuMillis": 500,
            "memoryBytes": 1 << 30,
            "allocatable": {"cpuMillis": 2000, "memoryBytes": 4 << 30},
        }
    ]
    by_task = {task["task"]: task for task in value["tasks"]}
    assert by_task["ingest"]["builds"] == ["tiny", "two"], "a shared task is one task"
    assert by_task["ingest"]["waits"] == "0/2 nodes: cpu"
    out = genai("top", "--once").out
    assert "2 tasks running, 1 waiting" in out
    assert "0.5 of 2 (25%)" in out
    server.forbidden = {"nodes"}
    assert genai("top", "--json").json["nodes"][0]["allocatable"] == {
        "cpuMillis": 0,
        "memoryBytes": 0,
    }


def test_logs_of_running_tasks_come_from_their_pods(server: Apiserver, genai: Any) -> None:
    jobs = [job("convert/cpu/a", "tiny"), job("convert/cpu/b", "tiny")]
    server.add("genaibuilds", building())
    server.add("jobs", *jobs)
    server.add("pods", *(pod(one, **RUNNING) for one in jobs))
    server.logs = {f"{one['metadata']['name']}-x": f"of {n}\n" for n, one in enumerate(jobs)}
    out = genai("logs", "tiny").out
    assert out == "==> convert/cpu/a <==\nof 0\n==> convert/cpu/b <==\nof 1\n"
    assert genai("logs", "tiny", "convert/cpu/b").out == "of 1\n"


# How it fails


def refused(ran: Ran, *parts: str) -> None:
    assert ran.code == 2, ran.err
    (line,) = ran.errors
    for part in parts:
        assert part in line, line


def test_without_a_kubeconfig(tmp_path: Path) -> None:
    run = InProcess(tmp_path)
    refused(run("status"), "there is no kubeconfig", "--kubeconfig")
    refused(run("status", "--kubeconfig", "none"), "none", "there is no such file")
    refused(run("status", env={"KUBECONFIG": "none"}), "correct KUBECONFIG")


@pytest.mark.parametrize("text", ["", "[", "- a", "a: 1", '{"contexts": 3, "current-context": 1}'])
def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    refused(InProcess(tmp_path)("status", "--kubeconfig", "config"), "config")


def test_an_unknown_context_names_those_there_are(genai: Any) -> None:
    refused(genai("status", "--context", "nope"), "no such context", "use test")


def test_a_credential_plugin_is_asked_for_the_token(
    server: Apiserver, genai: Any, tmp_path: Path
) -> None:
    server.add("genaibuilds", building())
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "secret"},
    }
    plugin = tmp_path / "plugin"
    plugin.write_text(f"#!/bin/sh\necho '{json.dumps(credential)}'\n")
    plugin.chmod(0o755)
    config = json.loads((tmp_path / "config").read_text())
    config["users"][0]["user"] = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(plugin),
            "interactiveMode": "Never",
        }
    }
    (tmp_path / "config").write_text(json.dumps(config))
    assert "4/7" in genai("status").out
    plugin.write_text("#!/bin/sh\nexit 1\n")
    ran = genai("status")
    assert ran.code == 2, ran.err
    assert len(ran.errors) == 1


def test_several_kubeconfigs_are_merged_as_kubectl_does(server: Apiserver, tmp_path: Path) -> None:
    server.add("genaibuilds", building())
    whole = json.loads(server.kubeconfig(tmp_path / "config").read_text())
    parts = [
        {"clusters": whole["clusters"], "contexts": whole["contexts"], "current-context": "test"},
        {"users": whole["users"]},
    ]
    for number, part in enumerate(parts):
        text = json.dumps({"apiVersion": "v1", "kind": "Config", **part})
        (tmp_path / f"part{number}").write_text(text)
    path = f"{tmp_path}/part0:{tmp_path}/part1:{tmp_path}/nothing"
    ran = InProcess(tmp_path)("status", env={"KUBECONFIG": path})
    assert "4/7" in ran.out, ran.err


def test_the_kinds_are_not_installed(server: Apiserver, genai: Any) -> None:
    server.installed = False
    refused(genai("status"), "not installed", "helm install")
    refused(genai("status", "tiny"), "not installed", "helm install")


def test_a_namespace_or_a_build_that_is_not_there(server: Apiserver, genai: Any) -> None:
    refused(genai("status", "-n", "tema"), "namespace tema", "no such namespace")
    server.add("genaibuilds", building("tiny-llama"))
    refused(genai("status", "tiny-lama"), "no such build", "did you mean tiny-llama?")


def test_a_user_who_may_not(server: Apiserver, genai: Any, tmp_path: Path) -> None:
    server.forbidden = {"genaibuilds"}
    refused(genai("status"), 'User "u" cannot get', "-n")
    config = json.loads((tmp_path / "config").read_text())
    config["users"][0]["user"]["token"] = "old"
    (tmp_path / "config").write_text(json.dumps(config))
    refused(genai("status"), "does not accept these credentials")


def test_builds_are_shown_to_who_may_not_see_jobs(server: Apiserver, genai: Any) -> None:
    server.add("genaibuilds", building())
    server.forbidden = {"jobs", "pods"}
    assert "4/7" in genai("status").out


def test_no_answer_is_not_the_users_fault(genai: Any, server: Apiserver, tmp_path: Path) -> None:
    config = json.loads((tmp_path / "config").read_text())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    (tmp_path / "config").write_text(json.dumps(config))
    ran = genai("status")
    assert ran.code == 1
    assert "does not answer" in ran.errors[0]
    assert "context test" in ran.errors[0]


def test_names_of_builds_complete(server: Apiserver, tmp_path: Path) -> None:
    from genai_cli.cluster.builds import complete_build

    server.add("genaibuilds", building("tiny"), building("other"))
    config = server.kubeconfig(tmp_path / "config")
    assert complete_build("t", config, None, None) == ["tiny"]
    assert complete_build("t", tmp_path / "none", None, None) == []


def test_help_imports_no_kubernetes(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, genai_cli.app; print([m for m in sys.modules if m.split('.')[0] in "
    code += "('kubernetes', 'urllib3', 'boto3', 'rich', 'pydantic')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    assert "status" in Program(tmp_path).ok("--help").out


def test_top_in_a_pipe_outlives_a_restart_of_the_apiserver(
    server: Apiserver, genai: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("genaibuilds", building())
    looks: list[float] = []

    def rest(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt
        server.down = 20 if len(looks) == 1 else 0

    monkeypatch.setattr("genai_cli.cluster.top.time.sleep", rest)
    ran = genai("top")
    assert ran.code == 0, ran.err
    assert [line.partition(" ")[2] for line in ran.out.splitlines()] == [
        "builds=1 running=0 waiting=0 done/min=0 team/tiny=4/7"
    ] * 3


def test_following_logs_outlives_a_restart_of_the_apiserver(
    server: Apiserver, genai: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genai_cli.cluster.logs._EVERY", 0.02)
    one = job("convert/cpu/a", "tiny")
    server.add("genaibuilds", building())
    server.add("jobs", one)
    server.add("pods", pod(one, **RUNNING))
    server.logs = {f"{one['metadata']['name']}-x": "it was converted\n"}
    real, asked = server.answer, []

    def answer(verb: str, path: str, body: bytes) -> tuple[int, bytes]:
        if "/log?" in path:
            asked.append(path)
            if len(asked) == 1:
                return 503, b"restarting"
        return real(verb, path, body)

    def restart() -> None:
        server.down = 7

    def end() -> None:
        server.add("genaibuilds", build("tiny", phase="Ready", conditions=[READY]))

    server.answer = answer  # type: ignore[method-assign]
    server.acts = [lambda: None, restart, lambda: None, lambda: None, end]
    ran = genai("logs", "tiny", "--follow")
    assert (ran.code, ran.out) == (0, "[convert/cpu/a] it was converted\n"), ran.err
    assert len(asked) >= 2


def test_what_is_no_apiserver_is_said(server: Apiserver, genai: Any) -> None:
    """A login page, say, that a proxy puts before it."""
    server.answer = lambda *_: (200, b"<html>log in</html>")  # type: ignore[method-assign]
    ran = genai("status")
    assert ran.code == 2
    assert "it answers, but not as an apiserver does; correct the server" in ran.errors[0]


@pytest.mark.parametrize("command", ["status", "top"])
def test_names_stay_on_a_narrow_terminal(server: Apiserver, command: str, tmp_path: Path) -> None:
    from rich.console import Console

    from genai_cli.cluster.connection import Access, connect
    from genai_cli.cluster.status import _listed
    from genai_cli.cluster.top import _picture, snapshot

    one = job("convert/cpu/a", "tiny")
    server.add("genaibuilds", building())
    server.add("jobs", one)
    server.add("pods", pod(one, node="a-node", **RUNNING))
    cluster = connect(Access(server.kubeconfig(tmp_path / "config")))
    picture = (
        _listed(cluster, "team")
        if command == "status"
        else _picture(cluster, snapshot(cluster, None), 0)
    )
    console = Console(width=24, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(picture)
    assert "tiny" in captured.get()
    assert command == "status" or "a-node" in captured.get()
