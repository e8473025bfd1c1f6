"""Nodes without room, under pressure, drained, dead.

After each: Ready, the laptop's revision, no task run twice at once, nothing half-written. A
disruption costs no attempt: the first Job of each task is the one that ends it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from freezing import hold
from harness.cluster import Cluster
from harness.nodes import Node
from laptop import SMALL, Laptop
from operator_process import Operator
from tenant import Tenant, wait


@pytest.fixture
def expected(laptop: Laptop) -> dict[str, str]:
    return laptop.revisions(SMALL)


def attempts(tenant: Tenant) -> set[str]:
    """Numbers of all attempts."""
    return {job["metadata"]["labels"]["genai-operator.dev/attempt"] for job in tenant.jobs()}


def node_called(cluster: Cluster, name: str) -> Node:
    return next(node for node in cluster.nodes if node.name == name)


def nodes_of(tenant: Tenant) -> set[str]:
    """Where its stages ran, as seen from outside."""
    runs = tenant.witness.runs(tenant.namespace).values()
    return {run.node for each in runs for run in each}


@pytest.fixture
def full(own_cluster: Cluster) -> Iterator[list[str]]:
    """Names of pods that leave no room on either node."""
    names = []
    for node in own_cluster.nodes:
        listed = json.loads(own_cluster.kubectl("get", "node", node.name, "-o", "json"))
        cores = listed["status"]["allocatable"]["cpu"]
        milli = int(cores[:-1]) if cores.endswith("m") else 1000 * int(cores)
        name = f"ballast-{node.name}"
        own_cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "nodeName": node.name,
                    "terminationGracePeriodSeconds": 0,
                    "containers": [
                        {
                            "name": "ballast",
                            "image": "localhost/pause:1",
                            "imagePullPolicy": "Never",
                            "resources": {"requests": {"cpu": f"{milli - 50}m"}},
                        }
                    ],
                },
            }
        )
        names.append(name)
    yield names
    own_cluster.kubectl("delete", "pod", *names, "-n", "default", "--ignore-not-found")


def test_no_node_has_room_until_one_has(
    own_cluster: Cluster,
    tenant: Tenant,
    operator: Operator,
    full: list[str],
    expected: dict[str, str],
) -> None:
    del operator
    tenant.small("crowded")

    def told() -> bool:
        ready = [c for c in tenant.status("crowded").get("conditions", ()) if c["type"] == "Ready"]
        return bool(ready) and "Insufficient cpu" in ready[0]["message"]

    wait(told, 60, lambda: str(tenant.status("crowded")))
    tenant.wait_condition("crowded", ("Unknown", "Unschedulable"), seconds=30)
    time.sleep(5)
    assert not tenant.witness.runs(tenant.namespace)
    own_cluster.kubectl("delete", "pod", full[1], "-n", "default")
    tenant.sound("crowded", expected)
    assert nodes_of(tenant) == {own_cluster.nodes[1].name}
    assert attempts(tenant) == {"1"}


def test_a_node_under_disk_pressure_gives_its_stages_up(
    own_cluster: Cluster, tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    """Its kubelet comes up, finds no room and evicts; the task begins anew on the other node.

    It costs no attempt: there are none to spend.
    """
    del operator
    tenant.small("evicted", run={"retries": 0})
    held = hold(tenant)
    node = node_called(own_cluster, held["node"])
    file = node.folder / "kubelet.json"
    before = file.read_text()
    config = json.loads(before)
    config["evictionHard"]["nodefs.available"] = "99%"  # no disk has that much left
    try:
        file.write_text(json.dumps(config))
        restart_kubelet(own_cluster, node)
        tenant.sound("evicted", expected)
        assert nodes_of(tenant) == {each.name for each in own_cluster.nodes}
    finally:
        file.write_text(before)
        restart_kubelet(own_cluster, node)
        wait(lambda: own_cluster.ready_nodes() == len(own_cluster.nodes), 60)
        wait(lambda: "disk-pressure" not in own_cluster.kubectl("get", "nodes", "-o", "json"), 60)


def restart_kubelet(cluster: Cluster, node: Node) -> None:
    cluster.processes.stop(f"kubelet-{node.name}")
    cluster.processes.restart(f"kubelet-{node.name}")


def test_a_node_is_drained(
    own_cluster: Cluster, tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    del operator
    tenant.small("drained")
    held = hold(tenant)
    try:
        own_cluster.kubectl(
            "drain", held["node"], "--ignore-daemonsets", "--delete-emptydir-data", "--force",
            "--timeout=60s",
        )  # fmt: skip
        tenant.sound("drained", expected)
        assert attempts(tenant) == {"1"}
    finally:
        own_cluster.kubectl("uncordon", held["node"])


def test_a_stage_that_fills_its_scratch_is_told_so(
    own_cluster: Cluster, tenant: Tenant, operator: Operator
) -> None:
    """Evicted for its own fault: that is no disruption."""
    del own_cluster, operator
    tenant.small("stuffed", run={"scratch": {"size": "1Ki"}, "retries": 0})
    hold(tenant)  # the kubelet measures every ten seconds
    status = tenant.wait_condition("stuffed", ("False", "NoSpace"), seconds=90)
    assert "spec.run.scratch.size" in status["conditions"][0]["message"]


def test_a_node_dies_and_comes_back(
    own_cluster: Cluster, tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    del operator
    tenant.small("bereft")
    held = hold(tenant)
    node = node_called(own_cluster, held["node"])
    node.kill()
    began = time.monotonic()
    try:

        def elsewhere() -> bool:
            return any(
                pod["spec"].get("nodeName") not in {node.name, None}
                and pod["status"].get("phase") in {"Running", "Succeeded"}
                and pod["metadata"]["uid"] != held["uid"]
                for pod in tenant.pods()
            )

        took = wait(elsewhere, 120)
        print(f"elsewhere after {took:.0f} s")
        assert took < 90
        tenant.sound("bereft", expected, seconds=300)
        print(f"Ready after {time.monotonic() - began:.0f} s")
    finally:
        node.revive()
        wait(lambda: own_cluster.ready_nodes() == len(own_cluster.nodes), 90)
