"""Processes that die: the operator, stages, Jobs, replicas. Builds that crowd.

After each: Ready, the laptop's revision, no task run twice at once, nothing half-written.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import account
import pytest
import yaml
from freezing import hold, send
from harness.cluster import Cluster
from laptop import ROOT, SMALL, Laptop
from operator_process import Operator
from proxies import CutProxy, through
from tenant import Tenant, wait

KILLS = 20
BOTH: dict[str, Any] = {
    "targets": ["sm8750", "cpu"],
    "quantization": {"gaps": "Float"},
}


@pytest.fixture
def expected(laptop: Laptop) -> dict[str, str]:
    return laptop.revisions(SMALL)


def succeeded(tenant: Tenant) -> Counter[str]:
    """How many Jobs succeeded for each key."""
    return Counter(
        job["metadata"]["annotations"]["genai-operator.dev/key"]
        for job in tenant.jobs()
        if job["status"].get("succeeded")
    )


def running_pods(tenant: Tenant) -> list[str]:
    return [
        pod["metadata"]["name"] for pod in tenant.pods() if pod["status"].get("phase") == "Running"
    ]


def test_the_operator_is_killed_at_twenty_random_moments(
    tenants_of: Callable[..., Tenant], operator: Operator, laptop: Laptop
) -> None:
    """B25. Lives are as long as up to three starts take: some end before they began to work."""
    expected = laptop.revisions(SMALL | BOTH)
    operator.stop()
    began = time.monotonic()
    operator.start()
    start = time.monotonic() - began
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kills = 0
    while kills < KILLS:
        tenant = tenants_of()
        tenant.small("hunted", **BOTH)
        while tenant.condition("hunted")[0] != "True" and kills < KILLS:
            time.sleep(start * rng.uniform(0.1, 3))
            operator.kill()
            kills += 1
            operator.spawn()
        operator.wait_ready()
        tenant.sound("hunted", expected)
        assert max(succeeded(tenant).values()) == 1, "a task was done twice"
        print(f"{kills} kills so far; a start takes {start:.1f} s")


def test_stages_are_killed_and_a_job_is_deleted_by_hand(
    own_cluster: Cluster, tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    """B25."""
    del own_cluster, operator
    tenant.small("shot")
    killed = hold(tenant, task="ingest")
    send(killed, signal.SIGKILL)
    again = hold(tenant, task="ingest")
    assert again["job"] != killed["job"], "another attempt is another Job"
    tenant.cluster.kubectl("-n", tenant.namespace, "delete", "pod", again["name"], "--wait=false")
    wait(lambda: again["name"] not in running_pods(tenant), 30)
    deleted = hold(tenant)
    tenant.cluster.kubectl("-n", tenant.namespace, "delete", "job", deleted["job"])
    tenant.sound("shot", expected)
    assert max(succeeded(tenant).values()) == 1


def test_out_of_memory_is_tried_once_more_with_more(tenant: Tenant, operator: Operator) -> None:
    del operator
    tenant.build(
        "large", run={"resources": {"limits": {"memory": "24Mi"}, "requests": {"memory": "24Mi"}}}
    )
    status = tenant.wait_condition("large", ("False", "OOMKilled"), seconds=120)
    assert "memory" in status["conditions"][0]["message"]
    # The first task of all: `resolve`, or `ingest` where the source's digest is known already.
    limits = [
        job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        for job in tenant.jobs()
    ]
    assert sorted(limits) == ["24Mi", "48Mi"], tenant.jobs()


def test_a_replica_that_hangs_is_replaced_and_works_no_more(
    cluster: Cluster, tenant: Tenant, operator: Operator, tmp_path: Path, expected: dict[str, str]
) -> None:
    second = Operator(cluster, tmp_path, identity="two")
    second.start()
    try:
        assert second.metric("genai_lease_held") == 0
        tenant.small("inherited")
        wait(lambda: bool(running_pods(tenant)), 60)
        operator.pause(on=True)  # it hangs: nothing is given up
        took = wait(lambda: second.metric("genai_lease_held") == 1, 20)
        print(f"taken over after {took:.1f} s")
        tenant.sound("inherited", expected)
        operator.pause(on=False)
        wait(lambda: operator.ended() is not None, 20)
        assert operator.ended() == 1, "it must not work on without the Lease"
        assert max(succeeded(tenant).values()) == 1
    finally:
        second.stop()
        if operator.ended() is not None:
            operator.start()


def test_a_replica_that_is_cut_off_loses_the_lease_to_the_other(
    cluster: Cluster, tenant: Tenant, operator: Operator, tmp_path: Path, expected: dict[str, str]
) -> None:
    config = account.kubeconfig(cluster)
    proxy = CutProxy(config["clusters"][0]["cluster"]["server"])
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(through(config, proxy.address)))
    second = Operator(cluster, tmp_path, identity="two")
    operator.stop()
    operator.start(KUBECONFIG=str(file))
    second.start()
    try:
        wait(lambda: operator.metric("genai_lease_held") == 1, 20)
        tenant.small("cut-off")
        wait(lambda: bool(running_pods(tenant)), 60)
        assert proxy.cut(refuse=True) > 0
        began = time.monotonic()
        wait(lambda: operator.ended() is not None, 20)
        gave_up = time.monotonic() - began
        wait(lambda: second.metric("genai_lease_held") == 1, 20)
        print(f"ended after {gave_up:.1f} s, taken over after {time.monotonic() - began:.1f} s")
        assert operator.ended() == 1
        tenant.sound("cut-off", expected)
        assert max(succeeded(tenant).values()) == 1
    finally:
        second.stop()
        proxy.close()
        if operator.ended() is not None:
            operator.start()


def test_fifty_builds_applied_at_once_share_every_task(
    tenant: Tenant, operator: Operator, laptop: Laptop
) -> None:
    """B25: nothing is cached, half of them differ from the other half in their last tasks."""
    kinds = (SMALL, SMALL | {"graphs": {"autoRegression": [1, 32], "contextLengths": [64]}})
    began = time.monotonic()
    tenant.cluster.apply(*(tenant.manifest(f"many-{n}", kinds[n % 2]) for n in range(50)))

    def ready() -> int:
        return sum(
            any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
            for b in tenant.get("genaibuilds")
            if (conditions := b.get("status", {}).get("conditions", ()))
        )

    wait(lambda: ready() == 50, 300, lambda: str(ready()))
    print(f"50 builds Ready after {time.monotonic() - began:.1f} s, {operator.memory_mb():.0f} MB")
    for number, kind in enumerate(kinds):
        tenant.sound(f"many-{number}", laptop.revisions(kind))
    made = Counter(b["status"]["artifacts"][0]["revision"] for b in tenant.get("genaibuilds"))
    assert list(made.values()) == [25, 25]
    assert max(succeeded(tenant).values()) == 1, "a task was done twice"
    assert operator.memory_mb() < 300


def test_the_kinds_are_upgraded_under_a_running_build(
    cluster: Cluster, tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    """A later release's schema: one more member, one more column, one more version."""
    file = ROOT / "crds" / "genaibuilds.yaml"
    known = yaml.safe_load(file.read_text())
    newer = yaml.safe_load(file.read_text())
    version = newer["spec"]["versions"][0]
    run = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["run"]
    run["properties"]["shape"] = {"type": "string", "default": "round", "maxLength": 16}
    version["additionalPrinterColumns"].append(
        {"name": "Shape", "type": "string", "jsonPath": ".spec.run.shape", "priority": 1}
    )
    newer["spec"]["versions"].append({**version, "name": "v1alpha2", "storage": False})
    tenant.small("carried")
    wait(lambda: bool(running_pods(tenant)), 60)
    try:
        cluster.apply(newer)
        tenant.sound("carried", expected)
        assert max(succeeded(tenant).values()) == 1
        tenant.small("after")  # the new member's default is in what the operator reads
        tenant.sound("after", expected, seconds=30)
        assert operator.ended() is None
    finally:
        cluster.apply(known)
        tenant.cluster.kubectl(
            "wait", "--for=condition=Established", "crd/genaibuilds.genai-operator.dev"
        )
