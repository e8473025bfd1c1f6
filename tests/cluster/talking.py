"""Clients that never stop, in a pod beside the servers.

They print each request that failed, and each answer that differs from the first one.
"""

from __future__ import annotations

import json
from typing import Any

from tenant import Tenant

_SCRIPT = """
import http.client, json, sys, threading, time

host, port, model = sys.argv[1], int(sys.argv[2]), sys.argv[3]
counts, lock, said = {"ok": 0, "failed": 0}, threading.Lock(), {}

def ask(connection, stream):
    body = {"model": model, "messages": [{"role": "user", "content": "def close("}],
            "max_tokens": 40 if stream else 4, "temperature": 0, "stream": stream}
    connection.request("POST", "/v1/chat/completions", json.dumps(body),
                       {"Content-Type": "application/json"})
    answer = connection.getresponse()
    raw = answer.read()
    assert answer.status == 200, (answer.status, raw[:200])
    assert not stream or raw.rstrip().endswith(b"data: [DONE]"), raw[-200:]
    if not stream:  # whoever answers, and after whatever, it is the same answer
        text = json.loads(raw)["choices"][0]["message"]["content"]
        assert text == said.setdefault("text", text), (text, said)

def client(stream, keeps):
    connection = None
    while True:
        try:
            if connection is None:
                connection = http.client.HTTPConnection(host, port, timeout=120)
            ask(connection, stream)
            outcome, why = "ok", ""
        except Exception as error:
            outcome, why = "failed", repr(error)
        if outcome == "failed" or not keeps:
            connection.close()
            connection = None
        with lock:
            counts[outcome] += 1
            if why:
                print(json.dumps({"at": time.time(), "why": why}), flush=True)
        time.sleep(0.05)

for stream in (False, True):
    for keeps in (False, True):
        threading.Thread(target=client, args=(stream, keeps), daemon=True).start()
while True:
    time.sleep(0.5)
    with lock:
        print(json.dumps(counts), flush=True)
"""


class Talking:
    """Four clients in a pod: with and without a stream, with and without kept connections."""

    def __init__(
        self, tenant: Tenant, image: str, *, host: str, model: str, name: str = "client"
    ) -> None:
        self._tenant, self._name = tenant, name
        confined = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        container = {
            "name": "client",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", _SCRIPT, host, "8000", model],
            "securityContext": confined,
        }
        tenant.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": tenant.namespace},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "automountServiceAccountToken": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [container],
                },
            }
        )

    def told(self) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """How many answers it got and did not get, and why it did not."""
        text = self._tenant.cluster.kubectl(
            "-n", self._tenant.namespace, "logs", self._name, check=False
        )
        rows = [json.loads(line) for line in text.splitlines()]
        counts = [row for row in rows if "ok" in row]
        return (counts[-1] if counts else {"ok": 0, "failed": 0}), [r for r in rows if "why" in r]
