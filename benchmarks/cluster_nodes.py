"""Nodes that kwok simulates beside the real ones: pods on them start and end at once."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Self

from cluster_room import Cluster, programs

__all__ = ["LABEL", "SimulatedNodes"]

LABEL = {"genai-benchmarks/node": "simulated"}
SELECTOR = "genai-benchmarks/node=simulated"


class SimulatedNodes:
    """kwok and its nodes, for as long as the context lasts."""

    def __init__(self, cluster: Cluster, count: int, folder: Path) -> None:
        self._cluster = cluster
        self._names = [f"simulated-{number:03d}" for number in range(count)]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start kwok, make the nodes, wait until they are Ready."""
        with (self._folder / "kwok.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(programs.module("kwok")), "--kubeconfig", str(self._cluster.admin),
                    "--manage-nodes-with-label-selector", SELECTOR,
                    "--node-lease-duration-seconds", "40", "--config", os.devnull,
                    "--server-address", "127.0.0.1:0",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        size = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}
        self._cluster.apply(
            *(
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {
                        "name": name,
                        "labels": LABEL | {"kubernetes.io/hostname": name},
                        "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
                    },
                    "status": {"allocatable": size, "capacity": size},
                }
                for name in self._names
            )
        )
        deadline = time.monotonic() + 120
        while self._cluster.ready_nodes() < len(self._names):
            if time.monotonic() > deadline:
                raise TimeoutError((self._folder / "kwok.log").read_text()[-2000:])
            time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the nodes and end kwok."""
        self._cluster.kubectl("delete", "nodes", "-l", SELECTOR, "--wait=false")
        assert self._process is not None
        self._process.terminate()
        self._process.wait(20)
