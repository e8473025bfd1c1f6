"""Nodes that kwok simulates beside the real ones: pods on them start at once.

They end when what they stand for was played: one that ended before its record stands would be a
stage that lost it.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Self

from cluster_parts.room import Cluster, programs

__all__ = ["LABEL", "PLAYED", "SimulatedNodes"]

LABEL = {"genai-benchmarks/node": "simulated"}
SELECTOR = "genai-benchmarks/node=simulated"
PLAYED = "genai-benchmarks/played"
"""Annotation of a pod whose record stands."""


_READY = '.status.conditions.[] | select( .type == "Ready" ) | .status'
_CONTAINERS = """
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: %s
  restartCount: 0
  state: %s
{{ end }}
"""
_NODE = """
{{ $now := Now | Quote }}
conditions:
- {type: Ready, status: "True", reason: Simulated, message: "",
   lastHeartbeatTime: {{ $now }}, lastTransitionTime: {{ $now }}}
"""
_RUNS = "phase: Running\nstartTime: {{ Now | Quote }}\n" + _CONTAINERS % (
    "true",
    "{running: {startedAt: {{ Now | Quote }}}}",
)
_ENDED = "{terminated: {exitCode: 0, reason: Completed, finishedAt: {{ Now | Quote }}}}"
_SUCCEEDS = "phase: Succeeded\n" + _CONTAINERS % ("false", _ENDED)
_UNHINDERED = ("--kube-api-qps=1000", "--kube-api-burst=2000")


def _stage(
    name: str, kind: str, rules: dict[str, tuple[str, ...]], does: dict[str, object]
) -> dict[str, object]:
    """A rule of kwok's: what becomes of an object that looks like this."""
    matches: list[dict[str, object]] = [
        {"key": key, "operator": rule[0]} | ({"values": list(rule[1:])} if rule[1:] else {})
        for key, rule in rules.items()
    ]
    spec: dict[str, object] = {
        "resourceRef": {"apiGroup": "v1", "kind": kind},
        "selector": {"matchExpressions": matches},
        "next": does,
    }
    meta = {"name": name}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": meta, "spec": spec}


_DELETED = ".metadata.deletionTimestamp"
_STAGES = (
    _stage("node-ready", "Node", {_READY: ("NotIn", "True")}, {"statusTemplate": _NODE}),
    _stage(
        "pod-runs", "Pod", {_DELETED: ("DoesNotExist",), ".status.phase": ("In", "Pending")},
        {"statusTemplate": _RUNS},
    ),
    _stage(
        "played-pod-succeeds", "Pod",
        {
            _DELETED: ("DoesNotExist",), ".status.phase": ("In", "Running"),
            f'.metadata.annotations["{PLAYED}"]': ("Exists",),
        },
        {"statusTemplate": _SUCCEEDS},
    ),
    _stage("pod-goes", "Pod", {_DELETED: ("Exists",)}, {"delete": True}),
)  # fmt: skip


class SimulatedNodes:
    """kwok and its nodes, for as long as the context lasts.

    Args:
        cluster: That they join.
        count: How many.
        folder: For kwok's configuration and log.
        pods: That a node takes at once.
    """

    def __init__(self, cluster: Cluster, count: int, folder: Path, *, pods: int = 110) -> None:
        self._cluster = cluster
        self._pods = pods
        self._names = [f"simulated-{number:03d}" for number in range(count)]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start kwok, make the nodes, wait until they are Ready."""
        self._loosen(*_UNHINDERED)
        config = self._folder / "kwok.yaml"
        config.write_text("\n---\n".join(json.dumps(stage) for stage in _STAGES))
        with (self._folder / "kwok.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(programs.module("kwok")), "--kubeconfig", str(self._cluster.admin),
                    "--manage-nodes-with-label-selector", SELECTOR,
                    "--node-lease-duration-seconds", "40", "--config", str(config),
                    "--server-address", "127.0.0.1:0",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        size = {"cpu": "32", "memory": "256Gi", "pods": str(self._pods), "ephemeral-storage": "1Ti"}
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
        self._loosen()

    def _loosen(self, *flags: str) -> None:
        """Start controllers and scheduler anew; by default they ask 20 times a second at most."""
        processes = self._cluster.processes
        for name in ("kube-controller-manager", "kube-scheduler"):
            processes.kill(name)
            jobs = ("--concurrent-job-syncs=32",) if flags and "controller" in name else ()
            processes.restart(name, *flags, *jobs)
