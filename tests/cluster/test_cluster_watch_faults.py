"""The way to the apiserver fails: restarted, streams cut, streams that deliver nothing more.

After each: Ready, the laptop's revision, no task run twice at once, nothing half-written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import account
import pytest
import yaml
from freezing import go_on, hold
from harness.cluster import Cluster
from laptop import SMALL, Laptop
from operator_process import Operator
from proxies import CutProxy, through
from tenant import Tenant, wait

HEARD = 'genai_watch_event_timestamp_seconds{kind="genaibuilds"}'


@pytest.fixture
def expected(laptop: Laptop) -> dict[str, str]:
    return laptop.revisions(SMALL)


@pytest.fixture
def proxy(cluster: Cluster, tmp_path: Path) -> Iterator[CutProxy]:
    """In front of the apiserver; `tmp_path / kubeconfig` leads through it."""
    config = account.kubeconfig(cluster)
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


def touch(tenant: Tenant, build: str) -> None:
    """Make an event of a build, and a second's pause."""
    tenant.cluster.kubectl(
        "-n", tenant.namespace, "annotate", "--overwrite", "genaibuild", build,
        f"note={time.monotonic():.1f}",
    )  # fmt: skip
    time.sleep(1)


def test_the_watches_are_cut_again_and_again(
    tenant: Tenant, operator: Operator, proxy: CutProxy, expected: dict[str, str]
) -> None:
    tenant.small("torn")
    held = hold(tenant)  # or a fast machine is done before the third cut
    cuts = 0
    while tenant.condition("torn")[0] != "True" and cuts < 8:
        wait(lambda number=cuts: proxy.cut(refuse=number % 3 == 2) > 0, 30)  # type: ignore[misc]
        cuts += 1
        time.sleep(1.5)
        proxy.mend()
        if cuts == 3:
            go_on(held)
        time.sleep(2.5)
    tenant.sound("torn", expected)
    assert operator.ended() is None
    wait(lambda: operator.ask("healthz") == "ok", 30)


def test_streams_that_fall_silent_are_opened_anew(
    tenant: Tenant, operator: Operator, proxy: CutProxy, expected: dict[str, str]
) -> None:
    """They stand open and deliver nothing, as behind a firewall that forgot them; new ones work."""
    tenant.small("unheard")
    wait(lambda: bool(tenant.pods()), 60)
    assert proxy.silence() > 0
    time.sleep(2)  # what was on its way has come
    heard = operator.metric(HEARD)
    assert heard > 0
    began = time.monotonic()
    tenant.sound("unheard", expected, seconds=180)
    print(f"Ready {time.monotonic() - began:.0f} s after the silence")

    def delivered() -> bool:
        touch(tenant, "unheard")
        assert operator.ended() is None, operator.text()
        return operator.metric(HEARD) > heard

    wait(delivered, 120, operator.text)
    print(f"watched again after {time.monotonic() - began:.0f} s")
    wait(lambda: operator.ask("healthz") == "ok", 30)


def test_watches_that_deliver_nothing_more_are_noticed(
    tenant: Tenant, operator: Operator, proxy: CutProxy, expected: dict[str, str]
) -> None:
    """However often they are opened: requests are answered, watches fall silent at once."""
    assert operator.ask("healthz") == "ok"
    proxy.starve(2)
    tenant.small("unheard")
    began = time.monotonic()

    def noticed() -> bool:
        touch(tenant, "unheard")
        assert operator.ended() is None, operator.text()
        return "does not deliver" in operator.sickness()

    # Before the watches are opened anew after 70 silent seconds: that brings what was missed.
    wait(noticed, 65, operator.text)
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
