"""The way to the apiserver fails: restarted, streams cut, streams that deliver nothing more.

After each: Ready, the laptop's revision, no task run twice at once, nothing half-written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from harness.cluster import Cluster
from laptop import SMALL, Laptop
from operator_process import Operator
from proxies import CutProxy, through
from tenant import Tenant, wait


@pytest.fixture
def expected(laptop: Laptop) -> dict[str, str]:
    return laptop.revisions(SMALL)


@pytest.fixture
def proxy(cluster: Cluster, tmp_path: Path) -> Iterator[CutProxy]:
    """In front of the apiserver; `tmp_path / kubeconfig` leads through it."""
    config = yaml.safe_load(cluster.admin.read_text())
    found = CutProxy(config["clusters"][0]["cluster"]["server"])
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(through(config, found.address)))
    yield found
    found.close()


@pytest.fixture
def operator(cluster: Cluster, proxy: CutProxy, tmp_path: Path) -> Iterator[Operator]:
    """The operator behind the proxy, without a Lease that would end it first."""
    del proxy
    found = Operator(cluster, tmp_path)
    found.start(
        KUBECONFIG=str(tmp_path / "kubeconfig"), GENAI_LEASE="false", GENAI_COMPARE_SECONDS="4"
    )
    yield found
    found.stop()


def test_the_watches_are_cut_again_and_again(
    tenant: Tenant, operator: Operator, proxy: CutProxy, expected: dict[str, str]
) -> None:
    tenant.small("torn")
    cuts = 0
    while tenant.condition("torn")[0] != "True" and cuts < 8:
        time.sleep(2.5)
        assert proxy.cut(refuse=cuts % 3 == 2) > 0
        cuts += 1
        time.sleep(1.5)
        proxy.mend()
    tenant.sound("torn", expected)
    assert cuts >= 3
    assert operator.ended() is None
    wait(lambda: operator.ask("healthz") == "ok", 30)


def test_watches_that_deliver_nothing_more_are_noticed(
    tenant: Tenant, operator: Operator, proxy: CutProxy, expected: dict[str, str]
) -> None:
    """Streams stand open and stay silent, as behind a firewall that forgot them."""
    assert operator.ask("healthz") == "ok"
    assert proxy.silence() > 0
    tenant.small("unheard")
    began = time.monotonic()

    def noticed() -> bool:
        tenant.cluster.kubectl(
            "-n", tenant.namespace, "annotate", "--overwrite", "genaibuild", "unheard",
            f"note={time.monotonic():.1f}",
        )  # fmt: skip
        time.sleep(1)
        assert operator.ended() is None, operator.text()
        return "does not deliver" in operator.sickness()

    wait(noticed, 120, operator.text)
    print(f"noticed after {time.monotonic() - began:.0f} s")
    assert operator.metric("genai_watch_missed_total") > 0
    # Meanwhile comparing with listings has kept the build going.
    wait(lambda: bool(tenant.status("unheard")), 60)
    operator.kill()  # as the kubelet does
    operator.start(GENAI_LEASE="false")
    assert operator.ask("healthz") == "ok"
    tenant.sound("unheard", expected)


def test_apiserver_and_etcd_restart(
    own_cluster: Cluster, tenant: Tenant, operator: Operator, expected: dict[str, str]
) -> None:
    operator.stop()
    operator.start()  # with its Lease, and no proxy
    tenant.small("shaken")
    wait(lambda: bool(tenant.pods()), 60)
    processes = own_cluster.processes
    processes.stop("kube-apiserver")
    processes.stop("etcd")
    processes.restart("etcd")
    processes.restart("kube-apiserver")
    time.sleep(8)
    if operator.ended() is not None:  # its Lease ran out: it ends, and a kubelet starts it anew
        assert operator.ended() == 1
        operator.start()
    tenant.sound("shaken", expected, seconds=300)
    wait(lambda: operator.ask("healthz") == "ok", 30)
