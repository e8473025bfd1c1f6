"""Nodes: each is a containerd and a kubelet of its own, on this machine.

Two kubelets must never share a containerd: each ends pods that it does not know.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from harness.control_plane import DNS_ADDRESS, ControlPlane
from harness.processes import Processes, wait_until

CGROUPS = Path("/sys/fs/cgroup")
CNI = next(
    (path for path in ("/usr/lib/cni", "/opt/cni/bin") if Path(path, "ptp").exists()),
    "/usr/lib/cni",
)


class Node:
    """One node of the cluster."""

    def __init__(self, number: int, folder: Path, processes: Processes) -> None:
        self.number = number
        self.name = f"node{number}"
        self.folder = folder / self.name
        self.cgroup = f"{processes.network.name}-{self.name}"
        self.socket = self.folder / "containerd.sock"
        self._processes = processes

    def start(self, program: Path, plane: ControlPlane) -> None:
        """Start containerd and the kubelet."""
        (self.folder / "cni").mkdir(parents=True)
        self._write_network()
        self._write_containerd()
        self._make_cgroups()
        self._processes.start(
            f"containerd-{self.name}", "containerd", "-c", str(self.folder / "containerd.toml")
        )
        wait_until(f"containerd of {self.name}", self._containerd_answers, 30)
        config = self._write_kubelet(plane)
        self._processes.start(
            f"kubelet-{self.name}", str(program), "kubelet",
            f"--config={self.folder / 'kubelet.json'}",
            f"--kubeconfig={config}",
            f"--hostname-override={self.name}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--node-ip={plane.address}",
        )  # fmt: skip

    def load(self, archive: Path) -> None:
        """Put an image archive into this node's containerd."""
        subprocess.run(
            ["ctr", "-a", str(self.socket), "-n", "k8s.io", "images", "import", str(archive)],
            check=True,
            capture_output=True,
        )

    def images(self) -> str:
        """Names of the images that this node has, one a line."""
        return subprocess.run(
            ["ctr", "-a", str(self.socket), "-n", "k8s.io", "images", "ls", "-q"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def pin(self, name: str) -> str:
        """Name an image by its digest too, as a registry would; returns that name."""
        ctr = ["ctr", "-a", str(self.socket), "-n", "k8s.io", "images"]
        listed = subprocess.run(
            [*ctr, "ls", f"name=={name}"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        digest = next(line.split()[2] for line in listed if line.startswith(name))
        pinned = f"{name.rpartition(':')[0]}@{digest}"
        subprocess.run([*ctr, "tag", "--force", name, pinned], check=True, capture_output=True)
        return pinned

    def kill(self) -> None:
        """The node dies: kubelet, containerd and every container, at once and for good."""
        for name in (f"kubelet-{self.name}", f"containerd-{self.name}"):
            self._processes.kill(name)
        self.kill_containers()

    def revive(self) -> None:
        """The node comes back, as after a loss of power: what ran on it is gone."""
        self._processes.restart(f"containerd-{self.name}")
        wait_until(f"containerd of {self.name}", self._containerd_answers, 30)
        self._processes.restart(f"kubelet-{self.name}")

    def kill_containers(self) -> None:
        """End this node's container shims and what runs in its cgroups; nothing else's."""
        for pid in self._pids():
            subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)

    def clean(self) -> None:
        """Unmount and remove what the node left on the machine."""
        self.kill_containers()
        mounts = Path("/proc/mounts").read_text().splitlines()
        for line in reversed(mounts):
            target = line.split()[1]
            if target.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "-l", target], check=False, capture_output=True)
        for controller in sorted(CGROUPS.iterdir()):
            root = controller / self.cgroup
            if root.is_dir():
                for child in sorted(root.rglob("*"), reverse=True):
                    if child.is_dir():
                        _remove_cgroup(child)
                _remove_cgroup(root)

    def _pids(self) -> list[int]:
        found: set[int] = set()
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                command = (process / "cmdline").read_bytes().decode(errors="replace")
                cgroup = (process / "cgroup").read_text()
            except OSError:
                continue
            shim = "containerd-shim" in command and str(self.socket) in command
            if shim or f":/{self.cgroup}/" in cgroup:
                found.add(int(process.name))
        return sorted(found)

    def _containerd_answers(self) -> bool:
        ran = subprocess.run(
            ["ctr", "-a", str(self.socket), "version"], capture_output=True, check=False
        )
        return ran.returncode == 0

    def _write_network(self) -> None:
        # ptp routes every packet, so there is no bridge and no hairpin trouble.
        (self.folder / "cni/10-pods.conflist").write_text(
            json.dumps(
                {
                    "cniVersion": "0.4.0",
                    "name": "pods",
                    "plugins": [
                        {
                            "type": "ptp",
                            "ipMasq": True,
                            "ipam": {
                                "type": "host-local",
                                "dataDir": str(self.folder / "ipam"),
                                "ranges": [[{"subnet": f"10.244.{self.number}.0/24"}]],
                                "routes": [{"dst": "0.0.0.0/0"}],
                            },
                        },
                        {"type": "portmap", "capabilities": {"portMappings": True}},
                    ],
                }
            )
        )

    def _write_containerd(self) -> None:
        (self.folder / "containerd.toml").write_text(
            f"""version = 2
root = "{self.folder}/containerd/root"
state = "{self.folder}/containerd/state"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  # Without CAP_SYS_RESOURCE runc cannot lower oom_score_adj.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI}"
    conf_dir = "{self.folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"""
        )

    def _make_cgroups(self) -> None:
        for controller in CGROUPS.iterdir():
            if controller.is_dir() and (controller / "tasks").exists():
                (controller / self.cgroup).mkdir(exist_ok=True)
        cpuset = CGROUPS / "cpuset" / self.cgroup
        if cpuset.is_dir():
            for name in ("cpuset.cpus", "cpuset.mems"):
                (cpuset / name).write_text((cpuset.parent / name).read_text())

    def _write_kubelet(self, plane: ControlPlane) -> Path:
        pair = plane.authority.issue(
            self.name,
            f"system:node:{self.name}",
            organization="system:nodes",
            hosts=(plane.address, self.name),
        )
        (self.folder / "kubelet.json").write_text(
            json.dumps(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "cgroupDriver": "cgroupfs",
                    "cgroupRoot": f"/{self.cgroup}",
                    "port": 10250 + 10 * self.number,
                    "healthzPort": 10252 + 10 * self.number,
                    "readOnlyPort": 0,
                    "address": "0.0.0.0",
                    "authentication": {
                        "anonymous": {"enabled": False},
                        "webhook": {"enabled": True},
                        "x509": {"clientCAFile": str(plane.authority.ca)},
                    },
                    "authorization": {"mode": "Webhook"},
                    "tlsCertFile": str(pair.certificate),
                    "tlsPrivateKeyFile": str(pair.key),
                    "containerRuntimeEndpoint": f"unix://{self.socket}",
                    "clusterDNS": [DNS_ADDRESS],
                    "clusterDomain": "cluster.local",
                    "failSwapOn": False,
                    "imageGCHighThresholdPercent": 100,
                    "evictionHard": {
                        "nodefs.available": "0%",
                        "imagefs.available": "0%",
                        "memory.available": "100Mi",
                    },
                    "podLogsDir": str(self.folder / "podlogs"),
                    "volumePluginDir": str(self.folder / "volumeplugins"),
                    "syncFrequency": "5s",
                    "nodeStatusUpdateFrequency": "4s",
                }
            )
        )
        return plane.authority.kubeconfig(
            self.folder.parent / f"{self.name}.kubeconfig", plane.server, pair
        )


def _remove_cgroup(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
