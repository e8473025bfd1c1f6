"""An operator beside the stages that it starts: how long a hundred different builds wait for it.

    python benchmarks/cluster_starved.py [--cpu 50m 500m] [--builds 100]

The operator runs as its chart installs it, in a pod, with another CPU request each time; builds
differ in their fidelity's budget, so they share ingest and compile and nothing else. The nodes are
this machine's, so stages and operator want the same cores. Needs what benchmarks/cluster.py needs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from cluster_parts.room import BUILDS, Room, Watch, load, table
from laptop import TINY

import charted  # isort: skip - of tests/cluster, whose folder `room` puts on the path


def wait_for(room: Room, cpu: str, count: int, limit: float) -> dict[str, object]:
    """Install, apply all builds at once, and see when they are Ready.

    Args:
        room: The cluster.
        cpu: The operator's request.
        count: Of builds.
        limit: Seconds after which it is given up.
    """
    room.install_targets()
    tenant = room.tenant()
    charts = charted.Charts(room.cluster, Path(tempfile.mkdtemp(prefix="genai-charts-")))
    ready: list[float] = []
    enough = threading.Event()
    seen: set[str] = set()

    def take(_kind: str, value: dict[str, Any], at: float) -> None:
        meta = value["metadata"]
        if meta["namespace"] != tenant.namespace or meta["name"] in seen:
            return
        for condition in value.get("status", {}).get("conditions", ()):
            if condition["type"] == "Ready" and condition["status"] == "True":
                seen.add(meta["name"])
                ready.append(at)
        if len(ready) >= count // 2:
            enough.set()

    try:
        charts.install(
            enabledNamespaces=[tenant.namespace],
            resources={"requests": {"cpu": cpu, "memory": "160Mi"}, "limits": {"memory": "512Mi"}},
        )
        manifests = [
            tenant.manifest(
                f"d{number:03}",
                TINY | {
                    "targets": ["cpu"],
                    "quantization": {"fidelity": {"budgetNats": round(0.02 + number / 1000, 3)}},
                },
            )
            for number in range(count)
        ]  # fmt: skip
        watch = Watch(room.cluster, BUILDS, take)
        began = time.monotonic()
        room.cluster.apply(*manifests)
        enough.wait(limit)
        watch.stop()
    finally:
        charts.uninstall()
        tenant.delete()
        room.cluster.kubectl("delete", "namespace", charted.NAMESPACE, check=False)
    times = sorted(at - began for at in ready)
    return {
        "operator's CPU request": cpu,
        "builds": count,
        "first Ready, s": times[0] if times else f"none in {limit:.0f}",
        "tenth, s": times[9] if len(times) > 9 else "-",
        "half, s": times[count // 2 - 1] if len(times) >= count // 2 else "-",
    }


def main() -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", nargs="+", default=["50m", "500m"])
    parser.add_argument("--builds", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=600)
    given = parser.parse_args()
    room = Room(Path(tempfile.mkdtemp(prefix="genai-bench-")) / "run")
    print(f"load at the start: {load()}", flush=True)
    try:
        for cpu in given.cpu:
            row = wait_for(room, cpu, given.builds, given.seconds)
            table("Different builds at once, operator in a pod", [row])
    finally:
        room.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
