"""Brings the whole cluster up and takes it down, leaving nothing behind."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from harness import control_plane, images, programs, services
from harness.control_plane import HOST_ADDRESS, POD_RANGE, SERVICE_RANGE, ControlPlane
from harness.nodes import Node
from harness.processes import Processes, wait_until


class Cluster:
    """A cluster of its own in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: Processes
        self.nodes: list[Node] = []
        self.admin = folder / "admin.kubeconfig"
        self.plane: ControlPlane

    def up(self, nodes: int = 2, image_targets: tuple[str, ...] = ()) -> None:
        """Start everything; returns when every node is Ready."""
        lacking = programs.missing()
        if lacking:
            raise RuntimeError(f"a cluster of its own needs {', '.join(lacking)}")
        kube = programs.kube()
        dns, s3 = programs.module("coredns"), programs.module("versitygw")
        archives = [images.pause(), *(images.project(target) for target in image_targets)]
        self.folder.mkdir(parents=True)
        self.processes = Processes(self.folder)
        started = time.monotonic()
        self._network(up=True)
        self.plane = control_plane.start(self.folder, kube, self.processes)
        services.start_dns(self.folder, dns, self.processes, admin=self.admin)
        services.start_s3(self.folder, s3, self.processes, admin=self.admin)
        self.nodes = [Node(n, self.folder, self.processes) for n in range(1, nodes + 1)]
        for node in self.nodes:
            node.start(kube, self.plane)
            for archive in archives:
                node.load(archive)
        wait_until("all nodes Ready", lambda: self.ready_nodes() == nodes, 90)
        (self.folder / "cluster.json").write_text(json.dumps({"nodes": nodes}))
        print(f"{nodes} nodes Ready after {time.monotonic() - started:.1f} s", flush=True)

    def down(self) -> None:
        """End every process, unmount, remove address, routes and rules, and the folder."""
        state = self.folder / "cluster.json"
        count = json.loads(state.read_text())["nodes"] if state.exists() else 8
        processes = getattr(self, "processes", None) or Processes(self.folder)
        nodes = self.nodes or [Node(n, self.folder, processes) for n in range(1, count + 1)]
        for node in nodes:
            processes.stop(f"kubelet-{node.name}")
            node.kill_containers()
        processes.stop_all()
        for node in nodes:
            node.clean()
        subprocess.run(
            [str(programs.kube()), "kube-proxy", "--cleanup"], check=False, capture_output=True
        )
        for table in ("nat", "filter", "mangle"):
            _remove_chains(table)
        self._network(up=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ready_nodes(self) -> int:
        """How many nodes are Ready."""
        listed = self.kubectl("get", "nodes", "-o", "json", check=False)
        if not listed:
            return 0
        return sum(
            condition["type"] == "Ready" and condition["status"] == "True"
            for node in json.loads(listed)["items"]
            for condition in node["status"].get("conditions", ())
        )

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return what it prints."""
        ran = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.admin), *arguments],
            capture_output=True,
            text=True,
            check=False,
            input=stdin,
        )
        if check and ran.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {ran.stderr}")
        return ran.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Server-side apply as the tests' own manager."""
        services.apply(self.admin, *objects)

    def _network(self, *, up: bool) -> None:
        """An address for host processes, and routes that keep everything on this machine."""
        change = "add" if up else "del"
        for command in (
            ["ip", "addr", change, f"{HOST_ADDRESS}/32", "dev", "lo"],
            # An unknown service address is refused here and at once, also without kube-proxy.
            ["ip", "route", change, "local", SERVICE_RANGE, "dev", "lo"],
            ["ip", "route", change, "blackhole", POD_RANGE],
        ):
            subprocess.run(command, check=False, capture_output=True)


def _remove_chains(table: str) -> None:
    """Remove the chains of kubelet, kube-proxy and the CNI plugins, and the jumps to them."""
    saved = subprocess.run(
        ["iptables-save", "-t", table], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    ours = [line[1:].split()[0] for line in saved if line.startswith((":KUBE-", ":CNI-"))]
    for line in saved:
        if line.startswith("-A ") and any(f" {chain}" in line for chain in ours):
            rule = shlex.split(line.replace("-A ", "-D ", 1))
            subprocess.run(["iptables", "-t", table, *rule], check=False, capture_output=True)
    for change in ("-F", "-X"):
        for chain in ours:
            subprocess.run(
                ["iptables", "-t", table, change, chain], check=False, capture_output=True
            )
