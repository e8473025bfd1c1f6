"""What a cluster does to builds; after each fault: Ready, the same revision, no task run twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.cluster import Cluster
from harness.processes import wait_until
from harness.services import S3_ROOT_KEYS
from operator_process import Operator
from tenant import BUCKET, Tenant, revisions, s3_client, wait


@pytest.fixture(scope="module")
def expected(cluster: Cluster, operator: Operator) -> Iterator[dict[str, str]]:
    """The revision of a build to which nothing happens."""
    found = Tenant(cluster, f"calm-{time.monotonic_ns() % 1_000_000}")
    found.create()
    found.build("calm")
    yield revisions(found.wait_ready("calm"))
    found.delete()


def keys(tenant: Tenant) -> Counter[str]:
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


def records(tenant: Tenant) -> list[str]:
    return tenant.objects("records/")


def test_the_operator_is_killed_again_and_again(
    tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    rng = random.Random(7)
    tenant.build("hunted")
    kills = 0
    while tenant.condition("hunted")[0] != "True" and kills < 20:
        time.sleep(rng.uniform(0.2, 6))
        operator.kill()
        kills += 1
        operator.start()
    assert revisions(tenant.wait_ready("hunted")) == expected
    assert kills >= 3
    assert max(keys(tenant).values()) == 1, "a task ran twice"


def test_a_stages_pod_is_killed_and_a_job_deleted(
    tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    del operator
    tenant.build("shot")
    wait(lambda: bool(running_pods(tenant)), 60)
    tenant.cluster.kubectl(
        "-n", tenant.namespace, "delete", "pod", *running_pods(tenant), "--grace-period=0",
        "--force", "--wait=false",
    )  # fmt: skip
    wait(lambda: any(job["status"].get("failed") for job in tenant.jobs()), 60)
    wait(lambda: bool(running_pods(tenant)), 60)
    unfinished = [j["metadata"]["name"] for j in tenant.jobs() if not j["status"].get("conditions")]
    tenant.cluster.kubectl("-n", tenant.namespace, "delete", "job", *unfinished)
    assert revisions(tenant.wait_ready("shot")) == expected
    assert max(keys(tenant).values()) == 1


def test_s3_is_stopped_and_started(
    tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    del operator
    tenant.build("dry")
    wait(lambda: len(records(tenant)) >= 2, 120)
    processes = tenant.cluster.processes
    processes.kill("s3")
    time.sleep(10)
    restart_s3(tenant.cluster)
    assert revisions(tenant.wait_ready("dry", 300)) == expected


def restart_s3(cluster: Cluster) -> None:
    """Start the S3 server again as it was started."""
    cluster.processes.restart("s3")
    wait_until("S3", lambda: _answers(cluster), 30)


def _answers(cluster: Cluster) -> bool:
    try:
        s3_client(cluster).list_buckets()
    except Exception:  # noqa: BLE001 - whatever it is, it does not answer yet
        return False
    return True


def test_a_record_is_deleted_and_a_blob_corrupted(
    tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    tenant.build("whole")
    tenant.wait_ready("whole")
    operator.kill()  # what it remembers to have found counts for some minutes
    client = s3_client(tenant.cluster)
    for key in records(tenant):
        if "/package/" in key or "/compile/" in key:
            client.delete_object(Bucket=BUCKET, Key=key)
    largest = max(
        tenant.objects("blobs/"),
        key=lambda k: client.head_object(Bucket=BUCKET, Key=k)["ContentLength"],
    )
    client.put_object(Bucket=BUCKET, Key=largest, Body=b"not what it was")
    operator.start()
    tenant.build("again")
    assert revisions(tenant.wait_ready("again", 300)) == expected


def test_credentials_are_wrong_then_right(
    cluster: Cluster, operator: Operator, expected: dict[str, str]
) -> None:
    del operator
    tenant = Tenant(cluster, f"locked-{time.monotonic_ns() % 1_000_000}")
    tenant.create(secret="wrong")
    try:
        tenant.build("locked")
        status = tenant.wait_condition("locked", ("Unknown", "StoreNotReady"))
        assert {c["type"] for c in status["conditions"]} == {"Ready", "Reconciling"}
        time.sleep(6)
        assert not tenant.jobs()
        tenant.credentials(S3_ROOT_KEYS[1])
        assert revisions(tenant.wait_ready("locked", 240)) == expected
    finally:
        tenant.delete()


def test_a_second_replica_takes_over(
    cluster: Cluster, tenant: Tenant, operator: Operator, tmp_path: Path, expected: dict[str, str]
) -> None:
    second = Operator(cluster, tmp_path, identity="two")
    second.start()
    try:
        assert second.metric("genai_lease_held") == 0
        tenant.build("inherited")
        wait(lambda: bool(running_pods(tenant)), 60)
        operator.pause(on=True)  # it hangs: nothing is given up
        took = wait(lambda: second.metric("genai_lease_held") == 1, 20)
        print(f"taken over after {took:.1f} s")
        assert revisions(tenant.wait_ready("inherited")) == expected
        operator.pause(on=False)
        wait(lambda: operator.ended() is not None, 20)
        assert operator.ended() == 1, "it must not work on without the Lease"
        assert max(keys(tenant).values()) == 1
    finally:
        second.stop()
        if operator.ended() is not None:
            operator.start()


def test_out_of_memory_is_tried_once_more_with_more(tenant: Tenant, operator: Operator) -> None:
    del operator
    tenant.build(
        "large", run={"resources": {"limits": {"memory": "60Mi"}, "requests": {"memory": "60Mi"}}}
    )
    status = tenant.wait_condition("large", ("False", "OOMKilled"), seconds=120)
    assert "memory" in status["conditions"][0]["message"]
    limits = [
        job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        for job in tenant.jobs()
        if job["metadata"]["annotations"]["genai-operator.dev/task"] == "ingest"
    ]
    assert sorted(limits) == ["120Mi", "60Mi"]


def test_apiserver_and_etcd_restart(
    tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    tenant.build("shaken")
    wait(lambda: bool(running_pods(tenant)), 60)
    processes = tenant.cluster.processes
    processes.stop("kube-apiserver")
    processes.stop("etcd")
    processes.restart("etcd")
    processes.restart("kube-apiserver")
    time.sleep(8)
    if operator.ended() is not None:  # its Lease ran out: it ends, and a kubelet starts it anew
        assert operator.ended() == 1
        operator.start()
    assert revisions(tenant.wait_ready("shaken", 300)) == expected
    wait(lambda: operator.ask("healthz") == "ok", 30)
    assert max(keys(tenant).values()) == 1


def test_a_node_dies(tenant: Tenant, operator: Operator, expected: dict[str, str]) -> None:
    """The last test here: the node stays dead."""
    del operator
    tenant.build("bereft")
    wait(lambda: bool(running_pods(tenant)), 60)
    victim = next(
        pod["spec"]["nodeName"] for pod in tenant.pods() if pod["status"].get("phase") == "Running"
    )
    doomed = set(running_pods(tenant))
    node = next(node for node in tenant.cluster.nodes if node.name == victim)
    node.kill()
    began = time.monotonic()

    def elsewhere() -> bool:
        return any(
            pod["spec"].get("nodeName") not in {victim, None}
            and pod["metadata"]["name"] not in doomed
            and pod["status"].get("phase") in {"Running", "Succeeded"}
            for pod in tenant.pods()
        )

    wait(elsewhere, 120)
    print(f"elsewhere after {time.monotonic() - began:.0f} s")
    assert revisions(tenant.wait_ready("bereft", 300)) == expected
