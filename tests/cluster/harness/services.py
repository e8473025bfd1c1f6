"""DNS and S3 as host processes; pods reach them by Services with hand-written slices."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from harness.control_plane import DNS_ADDRESS, HOST_ADDRESS
from harness.processes import Processes, wait_until

S3_PORT = 7070
S3_ROOT_KEYS = ("admin-access", "admin-secret-key")
DNS_PORT = 1053
S3_ENDPOINT = "http://s3.genai-test-s3.svc.cluster.local:7070"
"""As pods reach it; from the host: http://10.244.0.1:7070."""
S3_HOST_ENDPOINT = f"http://{HOST_ADDRESS}:{S3_PORT}"


def start_dns(folder: Path, program: Path, processes: Processes, *, admin: Path) -> None:
    """CoreDNS with the kubernetes plugin."""
    corefile = folder / "Corefile"
    corefile.write_text(
        f""".:{DNS_PORT} {{
  bind {HOST_ADDRESS}
  errors
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    kubeconfig {admin}
    ttl 5
  }}
  cache 5
}}
"""
    )
    processes.start("coredns", str(program), "-conf", str(corefile))
    apply(
        admin,
        *service(
            "kube-dns",
            "kube-system",
            address=DNS_ADDRESS,
            ports=[("dns", "UDP", 53, DNS_PORT), ("dns-tcp", "TCP", 53, DNS_PORT)],
        ),
    )


def start_s3(folder: Path, program: Path, processes: Processes, *, admin: Path) -> None:
    """A real S3 server with conditional writes (versitygw over a folder)."""
    data = folder / "s3"
    data.mkdir()
    (folder / "s3-iam").mkdir()
    access, secret = S3_ROOT_KEYS
    processes.start(
        "s3", str(program),
        "--port", f"{HOST_ADDRESS}:{S3_PORT}",
        "--access", access, "--secret", secret,
        "--iam-dir", str(folder / "s3-iam"),
        "posix", str(data),
    )  # fmt: skip
    apply(
        admin,
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "genai-test-s3"}},
    )
    apply(
        admin,
        *service("s3", "genai-test-s3", address="", ports=[("s3", "TCP", S3_PORT, S3_PORT)]),
    )
    wait_until("the S3 server", _s3_answers, 20)


def _s3_answers() -> bool:
    ran = subprocess.run(
        ["curl", "-s", "-o", "/dev/null", S3_HOST_ENDPOINT], capture_output=True, check=False
    )
    return ran.returncode == 0


def service(
    name: str, namespace: str, *, address: str, ports: list[tuple[str, str, int, int]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A Service without selector and the EndpointSlice that leads to the host."""
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
            "endpoints": [{"addresses": [HOST_ADDRESS], "conditions": {"ready": True}}],
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
