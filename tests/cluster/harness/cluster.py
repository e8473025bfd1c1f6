"""Brings the whole cluster up and takes it down, leaving nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from harness import control_plane, images, programs, services
from harness.control_plane import ControlPlane
from harness.network import Network
from harness.nodes import Node
from harness.processes import Processes, wait_until


class Cluster:
    """A cluster of its own in one folder and one network namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.admin = folder / "admin.kubeconfig"
        self.network: Network
        self.processes: Processes
        self.plane: ControlPlane
        self.nodes: list[Node] = []

    @staticmethod
    def attach(folder: Path) -> Cluster:
        """A cluster that is there already, brought up by another process.

        Raises:
            FileNotFoundError: There is none in that folder.
        """
        cluster = Cluster(folder)
        state = json.loads((folder / "cluster.json").read_text())
        cluster.network = Network(state["network"])
        cluster.processes = Processes(folder, cluster.network)
        cluster.nodes = cluster._nodes(state["nodes"])
        return cluster

    @property
    def s3_endpoint(self) -> str:
        """The S3 server, for pods and for processes of this machine alike."""
        return f"http://{self.network.address}:{services.S3_PORT}"

    @property
    def s3_keys(self) -> tuple[str, str]:
        """Of the S3 server's administrator."""
        return services.S3_ROOT_KEYS

    def up(self, nodes: int = 2, image_targets: tuple[str, ...] = ()) -> None:
        """Start everything; returns when every node is Ready."""
        lacking = programs.missing()
        if lacking:
            raise RuntimeError(f"a cluster of its own needs {', '.join(lacking)}")
        kube = programs.kube()
        dns, s3 = programs.module("coredns"), programs.module("versitygw")
        archives = [images.pause(), *(images.project(target) for target in image_targets)]
        self.folder.mkdir(parents=True)
        started = time.monotonic()
        self.network = Network.create()
        state = {"network": self.network.name, "nodes": nodes}
        (self.folder / "cluster.json").write_text(json.dumps(state))
        self.processes = Processes(self.folder, self.network)
        self.plane = control_plane.start(
            self.folder, kube, self.processes, address=self.network.address
        )
        services.start_dns(self.folder, dns, self.processes, plane=self.plane)
        services.start_s3(self.folder, s3, self.processes, plane=self.plane)
        self.nodes = self._nodes(nodes)
        for node in self.nodes:
            node.start(kube, self.plane)
            for archive in archives:
                node.load(archive)
        wait_until("all nodes Ready", lambda: self.ready_nodes() == nodes, 240)
        # Without it the apiserver refuses every pod.
        account = ("get", "serviceaccount", "default", "--ignore-not-found", "-o", "name")
        wait_until("a first service account", lambda: bool(self.kubectl(*account)), 60)
        print(f"{nodes} nodes Ready after {time.monotonic() - started:.1f} s", flush=True)

    def down(self) -> None:
        """End every process, unmount, remove the network namespace and the folder."""
        if not hasattr(self, "processes"):
            return  # it never began
        for node in self.nodes:
            self.processes.stop(f"kubelet-{node.name}")
            node.kill_containers()
        self.processes.stop_all()
        for node in self.nodes:
            node.clean()
        self.network.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _nodes(self, count: int) -> list[Node]:
        return [Node(n, self.folder, self.processes) for n in range(1, count + 1)]

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
