"""A cluster, an operator as a process beside it, and namespaces for the operator's benchmarks.

The parts are those of the cluster's tests. Times come from watches that this process holds: what
Kubernetes writes into objects has whole seconds only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cluster"))

import tenant as tenants  # noqa: E402
from harness import images, programs  # noqa: E402
from harness.cluster import Cluster  # noqa: E402
from operator_process import Operator  # noqa: E402
from tenant import Tenant  # noqa: E402
from witness import Witness  # noqa: E402

__all__ = ["MEMORY_LIMIT", "Cluster", "Room", "Usage", "Watch", "load", "programs", "table"]

MEMORY_LIMIT = 300.0
"""MB of an operator."""
IMAGE = "localhost/genai-stages:test"
LABEL = "app.kubernetes.io%2Fmanaged-by%3Dgenai-operator"
JOBS = f"/apis/batch/v1/jobs?watch=1&labelSelector={LABEL}"
PODS = f"/api/v1/pods?watch=1&labelSelector={LABEL}"
BUILDS = "/apis/genai-operator.dev/v1alpha1/genaibuilds?watch=1"


class Watch:
    """Calls back with (kind of event, object, time) for everything that a path delivers.

    An apiserver ends the stream of a slow reader; it is opened anew, and what is there comes as
    ADDED once more.
    """

    def __init__(
        self, cluster: Cluster, path: str, take: Callable[[str, dict[str, Any], float], None]
    ) -> None:
        self._command = ["kubectl", "--kubeconfig", str(cluster.admin), "get", "--raw", path]
        self._take = take
        self._over = False
        self._child = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            assert self._child.stdout is not None
            for line in self._child.stdout:
                at = time.monotonic()
                if not line.endswith(b"\n"):
                    break  # cut off in the middle of an event
                event = json.loads(line)
                self._take(event["type"], event["object"], at)
            if self._over:
                return
            time.sleep(1)
            self._child = subprocess.Popen(self._command, stdout=subprocess.PIPE)

    def stop(self) -> None:
        """End it."""
        self._over = True
        self._child.terminate()
        self._child.wait()


@dataclass(frozen=True)
class Usage:
    """What the operator has used by a moment."""

    at: float
    cpu_seconds: float
    memory_mb: float
    api_requests: float
    s3_requests: float
    status_writes: float
    passes: float

    def since(self, other: Usage) -> Usage:
        """The difference; memory as it is now."""
        return Usage(
            self.at - other.at,
            self.cpu_seconds - other.cpu_seconds,
            self.memory_mb,
            self.api_requests - other.api_requests,
            self.s3_requests - other.s3_requests,
            self.status_writes - other.status_writes,
            self.passes - other.passes,
        )


class MeasuredOperator(Operator):
    """An operator whose use of the machine is read from the kernel and from its metrics."""

    def usage(self) -> Usage:
        """What it has used so far."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = os.sysconf("SC_CLK_TCK")
        text = self.ask("metrics")

        def total(name: str, *parts: str) -> float:
            return sum(
                float(line.rsplit(" ", 1)[1])
                for line in text.splitlines()
                if line.startswith(name) and all(part in line for part in parts)
            )

        return Usage(
            time.monotonic(),
            (int(fields[11]) + int(fields[12])) / ticks,
            self.memory_mb(),
            total("genai_api_requests_total{"),
            total("genai_s3_requests_total{"),
            total("genai_api_requests_total{", 'verb="PATCH"'),
            total("genai_reconcile_seconds_count{"),
        )


class Room:
    """See the module's docstring."""

    def __init__(self, folder: Path, *, keep_image: bool = False) -> None:
        self.folder = folder
        self._brought_up = not (folder / "cluster.json").exists()
        if self._brought_up:
            self.cluster = Cluster(folder)
            self.cluster.up(2, ("stages",))
        else:
            self.cluster = Cluster.attach(folder)
            if not keep_image:
                self._load()
        self.image = [node.pin(IMAGE) for node in self.cluster.nodes][-1]
        chain = subprocess.run(
            [sys.executable, "-m", "genai_stages", "toolchain"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        self._toolchain = json.loads(chain.stdout)
        self.install_targets()
        self._names = 0

    def install_targets(self) -> None:
        """The kinds and the tests' targets, also after a chart took them away."""
        tenants.install(self.cluster, self.image, self._toolchain)

    def _load(self) -> None:
        """Give the nodes the image of the stages as they are now."""
        archive = images.project("stages")
        stamp = self.folder / "benchmarks-image"
        if not stamp.exists() or stamp.read_text() != archive.name:
            for node in self.cluster.nodes:
                node.load(archive)
            stamp.write_text(archive.name)

    def close(self) -> None:
        """Take the cluster down if this process brought it up."""
        if self._brought_up:
            self.cluster.down()

    def tenant(self) -> Tenant:
        """A fresh namespace whose store is usable."""
        self._names += 1
        name = f"bench-{os.getpid()}-{self._names}"
        found = Tenant(self.cluster, name, witness=Witness(self.cluster))
        found.create()
        return found

    def operator(self, **environment: str) -> MeasuredOperator:
        """A running operator."""
        found = MeasuredOperator(self.cluster, self.folder, identity=f"bench-{time.time_ns()}")
        found.start(GENAI_LEASE="false", **environment)
        return found

    def seconds_to_ready(
        self, tenant: Tenant, manifests: list[dict[str, Any]], limit: float
    ) -> dict[str, float]:
        """Apply builds; name -> seconds from before the apply until its Ready is seen."""
        wanted = {manifest["metadata"]["name"] for manifest in manifests}
        ready: dict[str, float] = {}
        done = threading.Event()
        failed: list[str] = []

        def take(_kind: str, value: dict[str, Any], at: float) -> None:
            name = value["metadata"]["name"]
            if value["metadata"]["namespace"] != tenant.namespace or name not in wanted:
                return
            for condition in value.get("status", {}).get("conditions", ()):
                if condition["type"] == "Ready" and condition["status"] == "True":
                    ready.setdefault(name, at)
                if condition["type"] == "Stalled":
                    failed.append(condition["message"])
            if failed or ready.keys() == wanted:
                done.set()

        watch = Watch(self.cluster, BUILDS, take)
        time.sleep(0.5)
        began = time.monotonic()
        self.cluster.apply(*manifests)
        finished = done.wait(limit)
        watch.stop()
        if failed or not finished:
            raise RuntimeError(failed[0] if failed else f"{len(ready)} of {len(wanted)} Ready")
        return {name: at - began for name, at in ready.items()}


def load() -> str:
    """The machine's load averages."""
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as Markdown."""
    names = list(rows[0])
    print(f"\n{title} (load {load()})\n")
    print(f"| {' | '.join(names)} |")
    print(f"|{'---|' * len(names)}")
    for row in rows:
        cells = [f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()]
        print(f"| {' | '.join(cells)} |", flush=True)
