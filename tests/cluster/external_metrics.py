"""The external metrics API (external.metrics.k8s.io/v1beta1) over the /metrics of some servers.

What prometheus-adapter is in a real cluster, as small as an autoscaler needs it: one metric, summed
over the servers at the moment at which it is asked for.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

GROUP = "external.metrics.k8s.io"
METRIC = "vllm_num_requests_waiting"
_SERIES = "vllm:num_requests_waiting"


def started(
    prefix: Sequence[str], address: str, port: int, pair: tuple[Path, Path], servers: Sequence[str]
) -> subprocess.Popen[bytes]:
    """This module as a process.

    Args:
        prefix: Puts it into the cluster's network.
        address: It listens there.
        port: On this port.
        pair: Its certificate and key.
        servers: host:port of each.
    """
    arguments = [address, str(port), *map(str, pair), *servers]
    return subprocess.Popen([*prefix, sys.executable, __file__, *arguments])


def objects(address: str, port: int) -> list[dict[str, Any]]:
    """What makes the apiserver ask there."""
    space = {"name": "external-metrics", "namespace": "kube-system"}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": space,
            "spec": {"type": "ExternalName", "externalName": address},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"v1beta1.{GROUP}"},
            "spec": {
                "group": GROUP,
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
                "service": {**space, "port": port},
            },
        },
    ]


def waiting(server: str) -> float:
    """Requests that wait in one server."""
    with urllib.request.urlopen(f"http://{server}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(_SERIES))


class _Handler(BaseHTTPRequestHandler):
    servers: Sequence[str] = ()

    def log_message(self, *_: object) -> None:
        """Say nothing: discovery asks often."""

    def do_GET(self) -> None:
        """Answer discovery, or the metric's value."""
        answer: dict[str, Any]
        if METRIC not in self.path:
            kind = {"name": METRIC, "namespaced": True, "kind": "ExternalMetricValueList"}
            answer = {
                "apiVersion": "v1",
                "kind": "APIResourceList",
                "groupVersion": f"{GROUP}/v1beta1",
                "resources": [kind | {"singularName": "", "verbs": ["get"]}],
            }
        else:
            item = {
                "metricName": METRIC,
                "metricLabels": {},
                "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "value": str(round(sum(map(waiting, self.servers)))),
            }
            answer = {
                "apiVersion": f"{GROUP}/v1beta1",
                "kind": "ExternalMetricValueList",
                "metadata": {},
                "items": [item],
            }
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _main(address: str, port: str, certificate: str, key: str, *servers: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    _Handler.servers = servers
    server = ThreadingHTTPServer((address, int(port)), _Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    _main(*sys.argv[1:])
