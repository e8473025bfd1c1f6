"""DNS and S3 beside the nodes; pods reach them by Services with hand-written slices."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

from harness.control_plane import DNS_ADDRESS, ControlPlane
from harness.processes import Processes, wait_until

S3_PORT = 7070
S3_ROOT_KEYS = ("admin-access", "admin-secret-key")
DNS_PORT = 1053


def start_dns(folder: Path, program: Path, processes: Processes, *, plane: ControlPlane) -> None:
    """CoreDNS with the kubernetes plugin."""
    corefile = folder / "Corefile"
    corefile.write_text(
        f""".:{DNS_PORT} {{
  bind {plane.address}
  errors
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    kubeconfig {plane.admin}
    ttl 5
  }}
  cache 5
}}
"""
    )
    processes.start("coredns", str(program), "-conf", str(corefile))
    apply(
        plane.admin,
        *service(
            "kube-dns",
            "kube-system",
            endpoint=plane.address,
            address=DNS_ADDRESS,
            ports=[("dns", "UDP", 53, DNS_PORT), ("dns-tcp", "TCP", 53, DNS_PORT)],
        ),
    )


def start_s3(folder: Path, program: Path, processes: Processes, *, plane: ControlPlane) -> None:
    """A real S3 server with conditional writes (versitygw over a folder)."""
    data = folder / "s3"
    data.mkdir()
    (folder / "s3-iam").mkdir()
    access, secret = S3_ROOT_KEYS
    processes.start(
        "s3", str(program),
        "--port", f"{plane.address}:{S3_PORT}",
        "--access", access, "--secret", secret,
        "--iam-dir", str(folder / "s3-iam"),
        "posix", str(data),
    )  # fmt: skip
    apply(
        plane.admin,
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "genai-test-s3"}},
    )
    apply(
        plane.admin,
        *service(
            "s3",
            "genai-test-s3",
            endpoint=plane.address,
            ports=[("s3", "TCP", S3_PORT, S3_PORT)],
        ),
    )
    wait_until("the S3 server", lambda: _answers(plane.address, S3_PORT), 20)


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), 1):
            return True
    except OSError:
        return False


def service(
    name: str,
    namespace: str,
    *,
    endpoint: str,
    ports: list[tuple[str, str, int, int]],
    address: str = "",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A Service without selector and the EndpointSlice that leads to `endpoint`."""
    spec: dict[str, Any] = {
        "ports": [
            {"name": n, "protocol": protocol, "port": port, "targetPort": target}
            for n, protocol, port, target in ports
        ]
    }
    if address:
        spec["clusterIP"] = address
    meta = {"name": name, "namespace": namespace}
    return (
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": meta | {"labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [
                {"name": n, "protocol": protocol, "port": target}
                for n, protocol, _, target in ports
            ],
            "endpoints": [{"addresses": [endpoint], "conditions": {"ready": True}}],
        },
    )


def apply(admin: Path, *objects: dict[str, Any]) -> None:
    """Server-side apply."""
    document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    subprocess.run(
        [
            "kubectl", "--kubeconfig", str(admin), "apply", "--server-side", "--force-conflicts",
            "--field-manager=genai-tests", "-f", "-",
        ],
        input=json.dumps(document).encode(),
        check=True,
        capture_output=True,
    )  # fmt: skip
