"""A thousand tasks over a hundred simulated nodes: is it the operator that they wait for?

Twice: tasks of a second on nodes with room for everything, where the control plane is what can be
waited for; and tasks of twenty seconds on nodes that take one at a time, where the nodes are.

Two answers stand beside the operator's time. One is counted: the plan's Jobs, the longest way
first, on so many nodes, each Job at the very moment when what it reads is there. The other is
measured: the Jobs that the operator made, created all at once, none waiting for another and no
operator there.
"""

from __future__ import annotations

import heapq
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster_parts.nodes import LABEL, SimulatedNodes
from cluster_parts.played import FACTS, SOURCE, Player
from cluster_parts.room import MEMORY_LIMIT, Room, table
from kubernetes.client import BatchV1Api
from kubernetes.config import new_client_from_config

from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Digest
from genai_planner.expand.build import expand
from genai_planner.plan import FileRef
from genai_planner.shape import shape_from_facts
from genai_planner.sources import Source
from genai_planner.targets import parse_targets

__all__ = ["scale"]

NODES = 100
NODES_LIMIT = 1.2
"""Of what the nodes allow, where they are what there is to wait for."""
SPEC: dict[str, Any] = {
    "model": {"source": "s3://models/tiny-llama"}, "targets": ["sm8750"],
    "graphs": {"autoRegression": [1, 32, 64, 128], "contextLengths": [1024, 2048, 3072, 4096]},
    "splits": {"count": 30},
    "run": {"parallelism": 1000, "nodeSelector": LABEL},
}  # fmt: skip
_OURS = "genai-operator.dev/"


def scale(room: Room) -> bool:
    """Both, each with a pod a task and with chains."""
    held = True
    for what, seconds, pods in (("control plane", 1.0, 110), ("nodes", 20.0, 1)):
        rows = []
        with SimulatedNodes(room.cluster, NODES, room.folder, pods=pods):
            for chain in ("1", "8"):
                row, good = _run(room, chain, seconds=seconds, slots=pods * NODES)
                rows.append(row)
                held &= good and (pods > 1 or float(str(row["of that"])) <= NODES_LIMIT)
        table(
            f"A thousand tasks of {seconds:.0f} s on {NODES} simulated nodes of {pods} pods: "
            f"the {what} can be what they wait for (limit {NODES_LIMIT} where it is the nodes)",
            rows,
        )
    return held


def _run(room: Room, chain: str, *, seconds: float, slots: int) -> tuple[dict[str, object], bool]:
    tenant = room.tenant()
    player = Player(room.cluster, tenant.namespace, seconds=seconds)
    operator = room.operator(GENAI_CHAIN_TASKS=chain)
    time.sleep(1)
    peak = _Peak(operator.memory_mb)
    before = operator.usage()
    taken = room.seconds_to_ready(tenant, [tenant.manifest("many", SPEC)], 1800)["many"]
    used = operator.usage().since(before)
    jobs, count = list(player.jobs.values()), player.played
    player.stop()
    highest = peak.stop()
    operator.stop()
    tenant.delete()
    _wait_for_no_jobs(room)
    fastest = shortest(_ways(jobs), seconds=seconds, slots=slots)
    together = _at_once(room, jobs, seconds)
    row: dict[str, object] = {
        "on simulated nodes": f"GenAIBuild, at most {chain} in a pod",
        "tasks": count, "Jobs": len(jobs), "seconds": taken,
        "the nodes allow, s": fastest, "of that": taken / fastest,
        "the same Jobs at once, no operator, s": together, "of those": taken / together,
        "operator CPU s": used.cpu_seconds, "of a core": used.cpu_seconds / taken,
        "peak MB": highest,
        "API requests a task": used.api_requests / count,
        "S3 requests a task": used.s3_requests / count,
        "status writes": used.status_writes, "passes": used.passes,
    }  # fmt: skip
    return row, highest < MEMORY_LIMIT and used.cpu_seconds < taken


def _tasks_of(job: Mapping[str, Any]) -> list[str]:
    """Ids of a Job's tasks, in order."""
    notes = job["metadata"]["annotations"]
    links = json.loads(notes.get(f"{_OURS}chain", "[]"))
    return [notes[f"{_OURS}task"], *(link[0] for link in links)]


def _ways(jobs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, set[str]]]:
    """Job -> how many tasks it has, and the Jobs that it reads from, by the plan."""
    plan = expand(
        BuildSpec.model_validate(SPEC),
        targets=parse_targets(SPEC["targets"]),
        sources={
            MODEL: Source(
                {r: FileRef(Digest(f.sha256), f.size) for r, f in SOURCE.files.items()},
                SOURCE.config,
                SOURCE.weight_bits,
            )
        },
        shapes={MODEL: shape_from_facts(FACTS)},
    )
    home = {task: job["metadata"]["name"] for job in jobs for task in _tasks_of(job)}
    resolve = next(name for task, name in home.items() if task.startswith("resolve"))
    found = {job["metadata"]["name"]: (len(_tasks_of(job)), set[str]()) for job in jobs}
    for task in plan.tasks:
        mine = home[task.id]
        found[mine][1].update(home[before] for before in task.after() if home[before] != mine)
        if not task.after() and mine != resolve:
            found[mine][1].add(resolve)
    return found


def shortest(jobs: Mapping[str, tuple[int, set[str]]], *, seconds: float, slots: int) -> float:
    """Seconds that Jobs take on so many slots, none of which waits when it need not.

    Whatever has the longest way before it goes first: R. L. Graham, Bounds on multiprocessing
    timing anomalies (1969).
    """
    after: dict[str, list[str]] = {name: [] for name in jobs}
    for name, (_, needs) in jobs.items():
        for need in needs:
            after[need].append(name)
    ways: dict[str, int] = {}

    def way(name: str) -> int:
        if name not in ways:
            ways[name] = jobs[name][0] + max(map(way, after[name]), default=0)
        return ways[name]

    missing = {name: len(needs) for name, (_, needs) in jobs.items()}
    ready = [(-way(name), name) for name, count in missing.items() if not count]
    heapq.heapify(ready)
    running: list[tuple[int, str]] = []
    now = 0
    while ready or running:
        while ready and len(running) < slots:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + jobs[name][0], name))
        now, name = heapq.heappop(running)
        for follower in after[name]:
            missing[follower] -= 1
            if not missing[follower]:
                heapq.heappush(ready, (-way(follower), follower))
    return now * seconds


def _at_once(room: Room, jobs: Sequence[dict[str, Any]], seconds: float) -> float:
    """Seconds until the pods of the same Jobs have ended, created as fast as eight threads can."""
    tenant = room.tenant()
    player = Player(room.cluster, tenant.namespace, seconds=seconds)
    api = BatchV1Api(new_client_from_config(str(room.cluster.admin)))  # type: ignore[no-untyped-call]
    time.sleep(1)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        for done in [
            pool.submit(
                api.create_namespaced_job, tenant.namespace, _fresh(job), _preload_content=False
            )
            for job in jobs
        ]:
            done.result()
    while player.succeeded < len(jobs):
        if time.monotonic() - began > 1800:
            raise TimeoutError(f"{player.succeeded} of {len(jobs)} ended")
        time.sleep(0.2)
    player.stop()
    tenant.delete()
    _wait_for_no_jobs(room)
    return player.ended - began


def _fresh(job: Mapping[str, Any]) -> Any:
    """The same, as if it had never been."""
    meta, template = job["metadata"], job["spec"]["template"]
    labels = {k: v for k, v in template["metadata"]["labels"].items() if "controller-uid" not in k}
    labels = {k: v for k, v in labels.items() if "job-name" not in k}
    spec = {k: v for k, v in job["spec"].items() if k != "selector"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {key: meta[key] for key in ("name", "labels", "annotations")},
        "spec": spec | {"template": {"metadata": {"labels": labels}, "spec": template["spec"]}},
    }


class _Peak:
    """The highest of a figure, looked at twice a second."""

    def __init__(self, ask: Callable[[], float]) -> None:
        self._ask = ask
        self._highest = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            self._highest = max(self._highest, self._ask())

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return self._highest


def _wait_for_no_jobs(room: Room) -> None:
    """What was deleted is gone, so that it costs the next run nothing."""
    for _ in range(300):
        if not room.cluster.kubectl("get", "jobs", "-A", "-o", "name").strip():
            return
        time.sleep(1)
