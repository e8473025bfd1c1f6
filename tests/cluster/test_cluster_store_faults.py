"""The store fails: stopped, slow, overloaded, bytes lost, credentials wrong.

After each: Ready, the laptop's revision, no task run twice at once, nothing half-written.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from harness.cluster import Cluster
from harness.processes import wait_until
from laptop import SMALL, Laptop
from operator_process import Operator
from proxies import S3Proxy
from tenant import BUCKET, Tenant, s3_client, wait


@pytest.fixture
def expected(laptop: Laptop) -> dict[str, str]:
    return laptop.revisions(SMALL)


def records(tenant: Tenant) -> list[str]:
    return tenant.objects("records/")


def test_s3_is_stopped_and_started(
    own_cluster: Cluster, tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    del operator
    tenant.small("dry")
    wait(lambda: len(records(tenant)) >= 2, 120)
    own_cluster.processes.kill("s3")
    time.sleep(10)
    assert tenant.condition("dry")[0] == "Unknown", "a store that comes back is waited for"
    own_cluster.processes.restart("s3")
    wait_until("S3", lambda: _answers(own_cluster), 30)
    tenant.sound("dry", expected, seconds=300)


def _answers(cluster: Cluster) -> bool:
    try:
        s3_client(cluster).list_buckets()
    except Exception:  # noqa: BLE001 - whatever it is, it does not answer yet
        return False
    return True


def test_s3_is_slow_answers_503_and_breaks_off(
    own_cluster: Cluster,
    tenants_of: Callable[..., Tenant],
    operator: Operator,
    expected: dict[str, str],
) -> None:
    """The operator and every stage reach their store through a bad proxy only."""
    del operator
    proxy = S3Proxy(own_cluster.network.gateway, own_cluster.s3_endpoint)
    try:
        proxy.delay, proxy.rate = 0.1, 2e6
        proxy.refused, proxy.broken = 0.2, 0.1
        tenant = tenants_of(endpoint=proxy.endpoint)
        tenant.small("slow")
        wait(lambda: len(records(tenant)) >= 2, 180, lambda: str(proxy.answers))
        proxy.refused = 1.0
        time.sleep(12)
        assert tenant.condition("slow")[0] == "Unknown"
        proxy.refused = 0.2
        tenant.sound("slow", expected, seconds=300)
        print(dict(proxy.answers))
        assert proxy.answers["refused"] > 20
        assert proxy.answers["broken"] > 0
        assert proxy.answers["passed"] > 50
    finally:
        proxy.close()


def test_a_record_is_deleted_and_a_blob_corrupted(
    tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    """B21: what is wrong is made again, and nothing else."""
    tenant.small("whole")
    tenant.sound("whole", expected)
    before = tenant.witness.jobs(tenant.namespace)
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
    tenant.small("again")
    tenant.sound("again", expected, seconds=300)
    made = tenant.witness.operations(tenant.namespace, but=before)
    assert {"compile", "package"} <= made
    assert "resolve" not in made


def test_credentials_are_wrong_then_right(
    tenants_of: Callable[..., Tenant], operator: Operator, expected: dict[str, str]
) -> None:
    del operator
    tenant = tenants_of(secret="wrong")
    tenant.small("locked")
    status = tenant.wait_condition("locked", ("Unknown", "StoreNotReady"))
    assert {c["type"] for c in status["conditions"]} == {"Ready", "Reconciling"}
    time.sleep(6)
    assert not tenant.jobs()
    tenant.credentials()
    tenant.sound("locked", expected)
