"""etcd, apiserver, controller-manager, scheduler and kube-proxy as processes of one cluster."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.network import POD_RANGE, SERVICE_RANGE
from harness.pki import Authority
from harness.processes import Processes, wait_until

DNS_ADDRESS = "10.96.0.10"


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane."""

    authority: Authority
    admin: Path
    """Kubeconfig of the cluster's administrator."""
    address: str
    """Where its processes are reached, from the machine and from pods alike."""

    @property
    def server(self) -> str:
        """The apiserver's address."""
        return f"https://{self.address}:6443"


def start(folder: Path, program: Path, processes: Processes, *, address: str) -> ControlPlane:
    """Start everything and wait for the apiserver; about five seconds."""
    authority = Authority(folder / "pki")
    plane = ControlPlane(authority, folder / "admin.kubeconfig", address)
    accounts = authority.service_accounts()
    serving = authority.issue(
        "apiserver",
        "kube-apiserver",
        hosts=(
            "127.0.0.1", "10.96.0.1", address, "localhost", "kubernetes",
            "kubernetes.default", "kubernetes.default.svc",
        ),
    )  # fmt: skip
    admin_pair = authority.issue("admin", "admin", organization="system:masters")
    admin = authority.kubeconfig(plane.admin, plane.server, admin_pair)
    configs = {
        name: authority.kubeconfig(
            folder / f"{name}.kubeconfig", plane.server, authority.issue(name, f"system:{name}")
        )
        for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy")
    }
    kube = str(program)
    processes.start(
        "etcd", kube, "etcd",
        "--data-dir", str(folder / "etcd"),
        "--listen-client-urls", "http://127.0.0.1:2379",
        "--advertise-client-urls", "http://127.0.0.1:2379",
        "--listen-peer-urls", "http://127.0.0.1:2380",
        "--unsafe-no-fsync",
    )  # fmt: skip
    processes.start(
        "kube-apiserver", kube, "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--client-ca-file={authority.ca}",
        f"--tls-cert-file={serving.certificate}",
        f"--tls-private-key-file={serving.key}",
        f"--service-account-key-file={accounts.certificate}",
        f"--service-account-signing-key-file={accounts.key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        f"--advertise-address={address}",
        "--bind-address=0.0.0.0",
        f"--kubelet-client-certificate={admin_pair.certificate}",
        f"--kubelet-client-key={admin_pair.key}",
        "--kubelet-preferred-address-types=InternalIP",
        "--enable-admission-plugins=NodeRestriction",
    )  # fmt: skip
    wait_until("kube-apiserver ready", lambda: ready(admin), 90)
    for name, flags in {
        "kube-controller-manager": (
            f"--service-account-private-key-file={accounts.key}",
            f"--root-ca-file={authority.ca}",
            "--use-service-account-credentials=true",
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={POD_RANGE}",
            # A dead node is noticed, and its pods given up, within the tests' patience.
            "--node-monitor-grace-period=16s",
        ),
        "kube-scheduler": (),
    }.items():
        config = configs[name]
        processes.start(
            name, kube, name,
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            *flags,
        )  # fmt: skip
    _start_proxy(folder, program, processes, config=configs["kube-proxy"])
    return plane


def ready(admin: Path) -> bool:
    """Whether the apiserver says that it is ready."""
    ran = subprocess.run(
        ["kubectl", "--kubeconfig", str(admin), "get", "--raw", "/readyz"],
        capture_output=True,
        check=False,
    )
    return ran.returncode == 0


def _start_proxy(folder: Path, program: Path, processes: Processes, *, config: Path) -> None:
    file = folder / "kube-proxy.json"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "mode": "iptables",
                "clusterCIDR": POD_RANGE,
                "clientConnection": {"kubeconfig": str(config)},
                # 0: leave the kernel's limits alone; they are the machine's.
                "conntrack": {
                    "maxPerCore": 0,
                    "min": 0,
                    "tcpEstablishedTimeout": "0s",
                    "tcpCloseWaitTimeout": "0s",
                },
            }
        )
    )
    processes.start(
        "kube-proxy", str(program), "kube-proxy", f"--config={file}", "--hostname-override=node1"
    )
