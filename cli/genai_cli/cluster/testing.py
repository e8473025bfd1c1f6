"""For tests: an apiserver as small as the commands see it, over real HTTP, and its objects.

It keeps objects in a dictionary, answers as the real one does where there is nothing or the user
may not, and merges what is applied. What it is not: validation, watches, other users.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from genai_core.kinds.base import API_VERSION
from genai_core.wire import GROUP

__all__ = ["Apiserver", "apiserver", "build", "job", "pod"]

_CREATED = "2026-01-01T12:00:00Z"


@dataclass
class Apiserver:
    """The server's state, for tests to fill and to look at.

    Attributes:
        objects: (plural, namespace, name) -> object.
        logs: Pod -> log.
        installed: The kinds are there.
        forbidden: Plurals that the user may not read.
        applied: Bodies and queries of what was applied, in order.
        owner: Another tool that owns every field: an apply without force is refused.
        down: Answers 503 so many times.
        acts: What happens, one thing before each time that somebody reads a build.
    """

    port: int = 0
    objects: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    installed: bool = True
    forbidden: set[str] = field(default_factory=set)
    applied: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)
    owner: str = ""
    down: int = 0
    acts: list[Callable[[], None]] = field(default_factory=list)

    def add(self, plural: str, *values: dict[str, Any]) -> None:
        """Put objects in."""
        for value in values:
            meta = value["metadata"]
            self.objects[plural, meta.get("namespace", ""), meta["name"]] = value

    def kubeconfig(self, path: Path, *, namespace: str = "team") -> Path:
        """Write one whose current context means this server."""
        cluster = {"server": f"http://127.0.0.1:{self.port}"}
        context = {"cluster": "c", "user": "u", "namespace": namespace}
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {"token": "secret"}}],
                    "contexts": [{"name": "test", "context": context}],
                    "current-context": "test",
                }
            )
        )
        return path

    def answer(self, verb: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body for a request."""
        url = urlsplit(path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if self.down:
            self.down -= 1
            return 503, b"restarting"
        parts = url.path.strip("/").split("/")
        parts = parts[3:] if parts[0] == "apis" else parts[2:]
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        plural, name = parts[0], "/".join(parts[1:])
        if f"/{GROUP}/" in url.path and not self.installed:
            return 404, b"404 page not found\n"
        if plural in self.forbidden:
            text = f'{plural} is forbidden: User "u" cannot get resource "{plural}"'
            return _status(403, "Forbidden", text)
        if verb == "PATCH":
            return self._apply(plural, namespace, json.loads(body), query)
        if name.endswith("/log"):
            said = self.logs.get(name.removesuffix("/log"))
            return (404, b"") if said is None else (200, said.encode())
        if name and plural == "genaibuilds" and self.acts:
            self.acts.pop(0)()
        if name:
            found = self.objects.get((plural, namespace, name))
            if found is None:
                return _status(
                    404, "NotFound", f'{plural} "{name}" not found', name=name, kind=plural
                )
            return 200, json.dumps(found).encode()
        items = [
            value
            for (kind, place, _), value in sorted(self.objects.items())
            if kind == plural and namespace in {"", place} and _selected(value, query)
        ]
        return 200, json.dumps({"items": items}).encode()

    def _apply(
        self, plural: str, namespace: str, body: dict[str, Any], query: dict[str, str]
    ) -> tuple[int, bytes]:
        name = body["metadata"]["name"]
        if ("namespaces", "", namespace) not in self.objects:
            text = f'namespaces "{namespace}" not found'
            return _status(404, "NotFound", text, name=namespace, kind="namespaces")
        if self.owner and query.get("force") != "true":
            text = f'Apply failed with 1 conflict: conflict with "{self.owner}": .spec.targets'
            return _status(409, "Conflict", text)
        self.applied.append((body, query))
        before = self.objects.get((plural, namespace, name))
        value = {
            **(before or build(name, namespace)),
            "spec": body["spec"],
        }
        meta = dict(value["metadata"])
        meta["annotations"] = body["metadata"].get("annotations", {})
        if before is None or before["spec"] != body["spec"]:
            meta["generation"] = meta.get("generation", 0) + 1 if before else 1
        value["metadata"] = meta
        self.objects[plural, namespace, name] = value
        return 200, json.dumps(value).encode()


def _selected(value: dict[str, Any], query: dict[str, str]) -> bool:
    labels = value["metadata"].get("labels") or {}
    wanted = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
    return all(key in labels and (not equal or labels[key] == text) for key, equal, text in wanted)


def _status(code: int, reason: str, message: str, **details: str) -> tuple[int, bytes]:
    value = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return code, json.dumps({**value, "details": details}).encode()


@contextmanager
def apiserver() -> Iterator[Apiserver]:
    """One that runs as long as the context lasts."""
    state = Apiserver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            authorized = self.headers.get("authorization") == "Bearer secret"
            code, data = state.answer(self.command, self.path, body) if authorized else (401, b"{}")
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = _serve  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def build(name: str, namespace: str = "team", **status: Any) -> dict[str, Any]:
    """A GenAIBuild; without a status nobody has taken it up."""
    value: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "GenAIBuild",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "generation": 1,
            "creationTimestamp": _CREATED,
        },
        "spec": {"model": {"source": "s3://models/tiny"}, "targets": ["cpu"]},
    }
    if status:
        value["status"] = {"observedGeneration": 1, **status}
    return value


def job(
    task: str,
    *owners: str,
    state: str = "",
    attempt: int = 1,
    key: str = "",
    namespace: str = "team",
    then: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A Job of builds; `state` is Complete or Failed once it has ended."""
    name = f"genai-{task.replace('/', '-').replace('_', '-')}-{attempt}"
    notes = {f"{GROUP}/task": task, f"{GROUP}/key": key or f"key-of-{task}"}
    if then:
        notes[f"{GROUP}/chain"] = json.dumps([[link, "package", "0" * 64] for link in then])
    ended = [{"type": state, "status": "True", "lastTransitionTime": "2026-01-01T12:00:30Z"}]
    resources = {"requests": {"cpu": "250m", "memory": "512Mi"}}
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": _CREATED,
            "labels": {
                "app.kubernetes.io/managed-by": "genai-operator",
                f"{GROUP}/operation": task.partition("/")[0],
                f"{GROUP}/attempt": str(attempt),
            },
            "annotations": notes,
            "ownerReferences": [{"uid": f"uid-{owner}", "name": owner} for owner in owners],
        },
        "spec": {"template": {"spec": {"containers": [{"resources": resources}]}}},
        "status": {"conditions": ended if state else []},
    }


def pod(of: dict[str, Any], *, node: str = "node1", **state: Any) -> dict[str, Any]:
    """A Job's pod; `running={...}`, `waiting={...}` or `terminated={...}`."""
    meta = of["metadata"]
    labels = {
        "app.kubernetes.io/managed-by": "genai-operator",
        "batch.kubernetes.io/job-name": meta["name"],
    }
    return {
        "metadata": {
            "name": f"{meta['name']}-x",
            "namespace": meta["namespace"],
            "creationTimestamp": _CREATED,
            "labels": labels,
        },
        "spec": {"nodeName": node},
        "status": {"containerStatuses": [{"state": state}] if state else []},
    }
